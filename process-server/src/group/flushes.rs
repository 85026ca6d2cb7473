//! Flushes of the source disks, and what follows when one fails (REVIEW W10).
//!
//! A disk that can't be flushed may have lost anything that was written since its last good flush, and a later flush that
//! succeeds says nothing of it. So these regions are read again, twice: at once, since the disk may have fallen back
//! already, and after the next flush that succeeds, when what the disk holds is what it keeps. Their marks stay until then.
//! Flushes are tried again with growing delays; the guest is told by the driver.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::ids::DiskIndex;

use super::action::Action;
use super::core::Group;
use crate::rules::Rule;

/// Time before a flush that failed is tried again; twice as long after each failure.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest time between two tries.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Regions of a disk that are remembered one by one: 64 GiB. Beyond that the whole disk counts.
const REGIONS_MAX: usize = 65_536;

/// Names a flush of one disk from its begin to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlushId(u64);

/// Some regions of a disk.
#[derive(Debug, PartialEq, Eq)]
enum Regions {
    Some(BTreeSet<u64>),
    All,
}

impl Default for Regions {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

impl Regions {
    fn add(&mut self, regions: impl IntoIterator<Item = u64>) {
        let Self::Some(some) = self else { return };
        some.extend(regions);
        if some.len() > REGIONS_MAX {
            *self = Self::All;
        }
    }

    fn absorb(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
            // The common case: all of it, with nothing to be copied.
            (Self::Some(some), Self::Some(more)) if some.is_empty() => *some = more,
            (Self::Some(_), Self::Some(more)) => self.add(more),
        }
    }

    /// Runs of (first region, count) of a disk with so many regions.
    fn runs(&self, of_disk: u64) -> Vec<(u64, u64)> {
        let Self::Some(some) = self else { return vec![(0, of_disk)] };
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for region in some {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == *region => *count += 1,
                _ => runs.push((*region, 1)),
            }
        }
        runs
    }
}

/// A disk that can't be flushed.
#[derive(Debug)]
struct Trouble {
    again: Duration,
    after: Duration,
    /// A try is under way.
    is_tried: bool,
}

/// What is known of the flushes of one disk.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    /// Regions written since the flush under way began, or since the last good one.
    written: Regions,
    /// The flush under way that vouches for what was written before it, and what that is.
    covering: Option<FlushId>,
    covered: Regions,
    trouble: Option<Trouble>,
    begun: u64,
    /// Flushes that have ended and said something: they failed, or vouched for what was written before.
    ended: u64,
    /// How often the disk came into trouble.
    failures: u64,
}

impl Flushes {
    /// Something of these regions is being written, or was.
    pub(super) fn wrote(&mut self, regions: impl IntoIterator<Item = u64>) {
        self.written.add(regions);
    }

    fn begin(&mut self) -> FlushId {
        self.begun += 1;
        let id = FlushId(self.begun);
        if self.covering.is_none() {
            self.covering = Some(id);
            self.covered.absorb(std::mem::take(&mut self.written));
        }
        id
    }

    fn is_in_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    /// Regions of which a disk in trouble may have lost something, as runs (first region, count).
    fn doubtful(&self, of_disk: u64) -> Vec<(u64, u64)> {
        let regions = [&self.written, &self.covered].into_iter().filter(|_| self.is_in_trouble());
        regions.flat_map(|regions| regions.runs(of_disk)).collect()
    }
}

impl Group {
    /// A flush of a disk begins, for a guest.
    pub fn flush_begins(&mut self, disk: DiskIndex) -> FlushId {
        self.disks[disk.0 as usize].flushes.begin()
    }

    /// It has ended.
    pub fn flush_ended(&mut self, disk: DiskIndex, id: FlushId, ok: bool) {
        let flushes = &mut self.disks[disk.0 as usize].flushes;
        let is_covering = flushes.covering == Some(id);
        if is_covering {
            flushes.covering = None;
        }
        flushes.ended += u64::from(is_covering || !ok);
        match ok {
            true if is_covering => {
                let covered = std::mem::take(&mut flushes.covered);
                if flushes.trouble.take().is_some() && Rule::ReadAgainAfterGoodFlush.holds() {
                    self.read_again(disk, &covered);
                }
            }
            true => {}
            false => self.flush_failed(disk),
        }
    }

    /// Nothing written since the last good flush is known to be on the disk.
    fn flush_failed(&mut self, disk: DiskIndex) {
        let now = self.now.mono;
        let flushes = &mut self.disks[disk.0 as usize].flushes;
        // Another flush under way may succeed without the data: it vouches for nothing.
        flushes.covering = None;
        let covered = std::mem::take(&mut flushes.covered);
        flushes.written.absorb(covered);
        match &mut flushes.trouble {
            Some(trouble) => {
                (trouble.again, trouble.is_tried) = (now + trouble.after, false);
                trouble.after = (trouble.after * 2).min(RETRY_MAX);
            }
            None => {
                flushes.trouble = Some(Trouble { again: now + RETRY_MIN, after: RETRY_MIN * 2, is_tried: false });
                flushes.failures += 1;
                if Rule::ReadAgainAfterFailedFlush.holds() {
                    let written = std::mem::take(&mut flushes.written);
                    self.read_again(disk, &written);
                    self.disks[disk.0 as usize].flushes.written.absorb(written);
                }
            }
        }
    }

    /// What these regions hold is read again for the open set, or marked in the bitmap; their marks stay.
    fn read_again(&mut self, disk: DiskIndex, regions: &Regions) {
        let region_blocks = self.tracked.intent.layout().region_blocks();
        let blocks_of_disk = self.disks[disk.0 as usize].blocks;
        for (first, count) in regions.runs(self.tracked.intent.layout().regions(disk)) {
            let block = first * region_blocks;
            let blocks = (count * region_blocks).min(blocks_of_disk - block);
            self.tracked.intent.want(disk, block, blocks);
            self.verify_touched(disk, block, blocks);
            self.is_on_disk(disk, block, blocks);
        }
    }

    /// Blocks that a disk which can't be flushed may have lost since they were last read, as runs (first block, count):
    /// until they are read again after a good flush, only the marks know of them.
    pub(super) fn doubtful_since_flush(&self, disk: DiskIndex) -> impl Iterator<Item = (u64, u64)> {
        let layout = self.tracked.intent.layout();
        let (region_blocks, blocks) = (layout.region_blocks(), self.disks[disk.0 as usize].blocks);
        let runs = self.disks[disk.0 as usize].flushes.doubtful(layout.regions(disk));
        runs.into_iter().map(move |(first, count)| {
            let block = first * region_blocks;
            (block, (count * region_blocks).min(blocks - block))
        })
    }

    /// Tries again what is due. Part of `advance`.
    pub(super) fn pump_flushes(&mut self) {
        for index in 0..self.disks.len() {
            let due = self.disks[index].flushes.trouble.as_mut().filter(|trouble| !trouble.is_tried);
            if let Some(trouble) = due.filter(|trouble| self.now.mono >= trouble.again) {
                trouble.is_tried = true;
                self.flush_disks(vec![DiskIndex(index as u32)]);
            }
        }
    }

    /// Disks that can't be flushed, each with the number of its flushes that have ended.
    pub(super) fn unflushable_disks(&self) -> Vec<(DiskIndex, u64)> {
        let disks = (0..).map(DiskIndex).zip(&self.disks).filter(|(_, disk)| disk.flushes.is_in_trouble());
        disks.map(|(index, disk)| (index, disk.flushes.ended)).collect()
    }

    /// Sees to it that a disk which can't be flushed is tried again after so many flushes have ended. False: it was.
    pub(super) fn is_trying_flush(&mut self, disk: DiskIndex, ended: u64) -> bool {
        let flushes = &self.disks[disk.0 as usize].flushes;
        if !flushes.is_in_trouble() || flushes.ended > ended {
            return false;
        }
        // One that begins while another is under way would vouch for nothing.
        if flushes.covering.is_none() {
            self.flush_disks(vec![disk]);
        }
        true
    }

    /// Asks the driver to flush disks; the number names the flush in `disks_flushed`.
    pub(super) fn flush_disks(&mut self, disks: Vec<DiskIndex>) -> u64 {
        self.flushes_asked += 1;
        let id = self.flushes_asked;
        let begun = disks.iter().map(|disk| (*disk, self.disks[disk.0 as usize].flushes.begin())).collect();
        self.flushing.insert(id, begun);
        self.actions.push_back(Action::FlushDisks { id, disks });
        id
    }

    /// The disks that an `Action::FlushDisks` named have been flushed, but for these.
    pub fn disks_flushed(&mut self, id: u64, failed: &[DiskIndex]) {
        for (disk, flush) in self.flushing.remove(&id).unwrap_or_default() {
            self.flush_ended(disk, flush, !failed.contains(&disk));
        }
        self.watched_disks_flushed(id, failed.is_empty());
    }

    /// Whether a disk can't be flushed.
    #[must_use]
    pub fn is_flush_failing(&self, disk: DiskIndex) -> bool {
        self.disks[disk.0 as usize].flushes.is_in_trouble()
    }

    /// Name of a disk that can't be flushed.
    #[must_use]
    pub fn unflushable(&self) -> Option<&str> {
        self.disks.iter().find(|disk| disk.flushes.is_in_trouble()).map(|disk| disk.spec.name.as_str())
    }

    /// How often flushes of a disk began to fail: each client is told of each once.
    #[must_use]
    pub fn flush_failures(&self, disk: DiskIndex) -> u64 {
        self.disks[disk.0 as usize].flushes.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_flush_vouches_for_what_was_written_before_it_and_for_nothing_else() {
        let mut flushes = Flushes::default();
        flushes.wrote([1, 2]);
        let first = flushes.begin();
        flushes.wrote([2, 3]);
        let second = flushes.begin();
        assert_eq!(flushes.covering, Some(first), "the second came while the first was under way");
        assert_eq!(flushes.covered.runs(9), [(1, 2)]);
        assert_eq!(flushes.written.runs(9), [(2, 2)]);
        assert_ne!(first, second);
    }

    #[test]
    fn regions_beyond_counting_are_the_whole_disk() {
        let mut regions = Regions::default();
        regions.add((0..=REGIONS_MAX as u64).map(|region| region * 2));
        assert_eq!(regions, Regions::All);
        let mut few = Regions::default();
        few.add([7]);
        few.absorb(regions);
        assert_eq!(few.runs(500_000), [(0, 500_000)]);
    }
}
