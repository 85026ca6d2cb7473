//! What every point must hold: for each sector, the last write of an epoch at or before the point's.
//!
//! The judge sees arrivals, failures and cuts from outside the core: it re-derives epochs from the order of cuts.

use std::collections::BTreeMap;

/// Content of a sector: the number of the write that made it, 0 for zeroes.
pub(super) type Content = u64;

/// Everything that ever became the content of one sector, by the epoch it counts in, in order of arrival.
#[derive(Debug, Default, Clone)]
struct History {
    entries: Vec<(u64, Content)>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Judge {
    sectors: BTreeMap<(u32, u64), History>,
}

impl Judge {
    /// Content before the first write.
    pub(super) fn initial(&mut self, disk: u32, sector: u64, content: Content) {
        self.sectors.entry((disk, sector)).or_default().entries.push((0, content));
    }

    /// A write of `epoch` changed the sector (its completion succeeded), or a failed one left `content` there and counts
    /// in the epoch that was open when it failed.
    pub(super) fn became(&mut self, disk: u32, sector: u64, epoch: u64, content: Content) {
        self.sectors.entry((disk, sector)).or_default().entries.push((epoch, content));
    }

    /// What a point cut at the end of `epoch` must hold.
    pub(super) fn expected(&self, disk: u32, sector: u64, epoch: u64) -> Content {
        let history = &self.sectors[&(disk, sector)];
        let entry = history.entries.iter().rev().find(|(counts_in, _)| *counts_in <= epoch);
        entry.map_or(0, |(_, content)| *content)
    }
}
