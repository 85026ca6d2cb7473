//! What every point must hold: for each sector, the last write of an epoch at or before the point's.
//!
//! The judge sees arrivals, failures and cuts from outside the core: it re-derives epochs from the order of cuts.

use std::collections::BTreeMap;

/// Content of a sector: the number of the write that made it, 0 for zeroes.
pub(super) type Content = u64;

/// Something that became the content of a sector.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Points up to an epoch before this one need not hold it...
    must_from: u64,
    /// ...but from this one on they may: what a failed write left is there or not.
    may_from: u64,
    content: Content,
}

/// Everything that ever became the content of one sector, in order of arrival.
#[derive(Debug, Default, Clone)]
struct History {
    entries: Vec<Entry>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Judge {
    sectors: BTreeMap<(u32, u64), History>,
}

impl Judge {
    /// Content before the first write.
    pub(super) fn initial(&mut self, disk: u32, sector: u64, content: Content) {
        self.became(disk, sector, 0, content);
    }

    /// A write of `epoch` reached the disk.
    pub(super) fn became(&mut self, disk: u32, sector: u64, epoch: u64, content: Content) {
        let entry = Entry { must_from: epoch, may_from: epoch, content };
        self.sectors.entry((disk, sector)).or_default().entries.push(entry);
    }

    /// A write of `epoch` failed while `open` was the current epoch, and left `content` on the disk.
    pub(super) fn failed(&mut self, disk: u32, sector: u64, epoch: u64, open: u64, content: Content) {
        let entry = Entry { must_from: open, may_from: epoch, content };
        self.sectors.entry((disk, sector)).or_default().entries.push(entry);
    }

    /// The disk lost what it had not flushed: any point may hold what there was before.
    pub(super) fn fell_back(&mut self, disk: u32, sector: u64, content: Content) {
        let entry = Entry { must_from: u64::MAX, may_from: 0, content };
        self.sectors.entry((disk, sector)).or_default().entries.push(entry);
    }

    /// Whether a point cut at the end of `epoch` may hold `content`.
    pub(super) fn allows(&self, disk: u32, sector: u64, epoch: u64, content: Content) -> bool {
        let entries = &self.sectors[&(disk, sector)].entries;
        let must = entries.iter().rposition(|entry| entry.must_from <= epoch).unwrap_or(0);
        let later = entries[must + 1..].iter().filter(|entry| entry.may_from <= epoch);
        entries[must].content == content || later.into_iter().any(|entry| entry.content == content)
    }
}
