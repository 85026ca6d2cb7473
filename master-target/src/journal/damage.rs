//! What the disks do not hold though they should: which points that spoils, and what the source has to send again.
//!
//! A range is *open* while the disk is damaged there. It is told to the source in every session until content of all its
//! blocks has come, in a set, in a catching-up or by a repair; the tables of block sums say when (`Sum::DAMAGED`). So
//! nothing has to be answered, and an agent of either side may end at any time. A closed range stays for as long as there are points
//! that it may spoil. Reading a point is exact: this list says *may*.

use super::core::Journal;
use super::error::JournalResult;
use super::limits::{BLOCK_BYTES, BLOCK_SECTORS, DAMAGES_MAX, SECTOR_BYTES};
use super::manifest::{DamagedRange, Manifest};
use super::state::State;
use super::sums::Sum;
use super::volume::Volume;

/// Sectors that the source has to send again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingRange {
    /// Index of the disk.
    pub disk: u32,
    /// First sector.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u64,
}

impl State {
    /// Whether a part of the point after this set may not be right.
    pub(crate) fn is_spoiled(&self, point: u64) -> bool {
        let spoils = |range: &DamagedRange| {
            let is_in = range.from <= point && range.until.is_none_or(|until| point < until);
            is_in && self.manifest.has_disk(range.disk, point)
        };
        self.manifest.damages.iter().any(spoils)
    }
}

impl Manifest {
    /// Forgets closed ranges that spoil no point: this one is the oldest there is.
    pub(crate) fn forget_damages(&mut self, oldest: u64) {
        self.damages.retain(|range| range.until.is_none_or(|until| until > oldest));
    }
}

impl<V: Volume> Journal<V> {
    /// Records durably that blocks of a disk, in order, spoil the points from a set on, up to a later one or until the
    /// source has sent them.
    pub(crate) fn note_damage(&self, disk: u32, blocks: &[u64], from: u64, until: Option<u64>) -> JournalResult<()> {
        let known = self.state().manifest.damages.clone();
        let mut damages = known.clone();
        // What the source sent again may have been lost again.
        self.state().is_damage_untold |= until.is_none() && !blocks.is_empty();
        for run in blocks.chunk_by(|a, b| a + 1 == *b) {
            let fresh = DamagedRange { disk, block: run[0], blocks: run.len() as u64, from, until };
            add(&mut damages, fresh);
        }
        if damages == known {
            return Ok(());
        }
        let oldest = self.state().point_times().map(|(point, _)| point).min().unwrap_or(u64::MAX);
        self.update_manifest(|manifest| {
            manifest.damages = damages;
            manifest.forget_damages(oldest);
        })
    }

    /// Closes ranges whose blocks the disks hold again since a set. What a repair mended is right for all points.
    pub(crate) fn note_healed(&self, since: Option<u64>) -> JournalResult<()> {
        let known = self.state().manifest.damages.clone();
        let mut damages = Vec::with_capacity(known.len());
        for mut range in known.iter().cloned() {
            if range.until.is_none() && self.is_whole(&range)? {
                // Else a loss of power could bring back a sum that says damaged, which nobody would heal.
                self.sync_sums(range.disk)?;
                match since {
                    Some(set) => range.until = Some(set.max(range.from)),
                    None if range.from == 0 => continue,
                    None => range.until = Some(self.applied_set().0.max(range.from) + 1),
                }
                let (disk, offset) = (range.disk, range.block * BLOCK_BYTES);
                tracing::info!(disk, offset, blocks = range.blocks, "a damaged range of a target is right again");
            }
            damages.push(range);
        }
        if damages == known { Ok(()) } else { self.update_manifest(|manifest| manifest.damages = damages) }
    }

    /// Whether all blocks of a range have a sum.
    fn is_whole(&self, range: &DamagedRange) -> JournalResult<bool> {
        /// Sums that are looked at a time.
        const STEP: u64 = 1 << 16;
        let (mut at, end) = (range.block, range.block + range.blocks);
        while at < end {
            let count = (end - at).min(STEP);
            if self.sums(range.disk, at, count)?.iter().any(|sum| [Sum::DAMAGED, Sum::UNKNOWN].contains(sum)) {
                return Ok(false);
            }
            at += count;
        }
        Ok(true)
    }

    /// Whether a disk lacks something that only the source has.
    pub fn is_damage_open(&self) -> bool {
        self.state().manifest.damages.iter().any(|range| range.until.is_none())
    }

    /// The first open range.
    pub(crate) fn open_damage(&self) -> Option<MissingRange> {
        let state = self.state();
        let open = state.manifest.damages.iter().find(|range| range.until.is_none())?;
        let (sector, sectors) = (open.block * BLOCK_SECTORS, open.blocks * BLOCK_SECTORS);
        Some(MissingRange { disk: open.disk, sector, sectors })
    }

    /// Open ranges of a disk, as (first block, blocks).
    pub(crate) fn open_damages(&self, disk: u32) -> Vec<(u64, u64)> {
        let state = self.state();
        let open = state.manifest.damages.iter().filter(|range| range.disk == disk && range.until.is_none());
        open.map(|range| (range.block, range.blocks)).collect()
    }

    /// What the source has to send again, if it was not told in this session.
    pub fn take_untold_damage(&self) -> Option<Vec<MissingRange>> {
        let mut state = self.state();
        if !std::mem::take(&mut state.is_damage_untold) {
            return None;
        }
        let sizes: Vec<u64> = state.manifest.disks.iter().map(|disk| disk.size / SECTOR_BYTES).collect();
        let open = state.manifest.damages.iter().filter(|range| range.until.is_none());
        let missing = open.map(|range| {
            let sector = range.block * BLOCK_SECTORS;
            let end = sizes.get(range.disk as usize).copied().unwrap_or(0);
            let sectors = (range.blocks * BLOCK_SECTORS).min(end.saturating_sub(sector));
            MissingRange { disk: range.disk, sector, sectors }
        });
        Some(missing.filter(|range| range.sectors > 0).collect::<Vec<_>>()).filter(|missing| !missing.is_empty())
    }
}

/// Adds a range, unless one covers it. Where there are too many, all of its kind become one for each disk.
fn add(damages: &mut Vec<DamagedRange>, fresh: DamagedRange) {
    let is_kin = |known: &DamagedRange| known.disk == fresh.disk && known.until.is_none() == fresh.until.is_none();
    let end = |range: &DamagedRange| range.block + range.blocks;
    let covers = |known: &DamagedRange| {
        is_kin(known)
            && known.block <= fresh.block
            && end(known) >= end(&fresh)
            && known.from <= fresh.from
            && known.until >= fresh.until
    };
    if damages.iter().any(covers) {
        return;
    }
    if damages.len() < DAMAGES_MAX {
        return damages.push(fresh);
    }
    let mut all = fresh.clone();
    for kin in damages.extract_if(.., |known| is_kin(known)) {
        let last = end(&all).max(end(&kin));
        all.block = all.block.min(kin.block);
        all.blocks = last - all.block;
        all.from = all.from.min(kin.from);
        all.until = all.until.max(kin.until);
    }
    damages.push(all);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(block: u64, until: Option<u64>) -> DamagedRange {
        DamagedRange { disk: 0, block, blocks: 1, from: 3, until }
    }

    #[test]
    fn too_many_ranges_become_one_that_covers_them_all() {
        let mut damages = Vec::new();
        for block in 0..DAMAGES_MAX as u64 + 5 {
            add(&mut damages, range(block * 2, None));
        }
        assert!(damages.len() <= DAMAGES_MAX && damages.iter().any(|all| all.block == 0 && all.blocks == 2049));
        let before = damages.clone();
        add(&mut damages, range(2048, None));
        assert_eq!(damages, before, "it is covered");
        add(&mut damages, range(2048, Some(7)));
        assert_ne!(damages, before, "of another kind");
    }
}
