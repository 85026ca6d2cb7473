//! Blocks that could not be read when their content was to be sent: the target keeps what it has, and they are tried again.
//!
//! A bad block never blocks the guest (S17): its set is no point, and the target is told. But a disk may fail for a moment
//! only. Then source and target differ, and nothing else would say so. So each such block is remembered, keeps its region
//! marked (S7), goes into the record of a clean stop, and is read again from time to time; once that works, it is sent like what a
//! failed write left. A write over the whole block settles it as well.

use std::collections::BTreeMap;
use std::time::Duration;

use blockio::BLOCK;
use proto::ids::{DiskIndex, Epoch};

use super::action::ReadOutcome;
use super::core::Group;
use super::sending::{BLOCK_SECTORS, PendingRead, ReadPurpose};

/// Time before unreadable blocks are tried again: the first time, and at most. It doubles with each pass that reads nothing.
const RETRY_MIN: Duration = Duration::from_secs(10);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// When unreadable blocks are tried again.
#[derive(Debug, Default)]
pub(super) struct Retry {
    /// The next block to try, while a pass over them is under way.
    pass: Option<(usize, u64)>,
    /// A read is under way.
    is_reading: bool,
    /// Some block of this pass could be read.
    has_read: bool,
    after: Duration,
    at: Option<Duration>,
    /// Blocks that come to the target with the set of an epoch: for sets before it they are still missing.
    healing: BTreeMap<Epoch, u64>,
}

impl Group {
    /// A block's content could not be read: the target is told so, and lacks it.
    pub(super) fn is_unreadable(&mut self, read: &PendingRead) {
        let (block, blocks) = blocks_of(read);
        self.disks[read.disk.0 as usize].unreadable.set(block, blocks);
        if self.unreadable.at.is_none() && self.unreadable.pass.is_none() {
            self.unreadable.after = RETRY_MIN;
            self.unreadable.at = Some(self.now.mono + RETRY_MIN);
        }
    }

    /// Bytes that the target lacks since they could not be read.
    #[must_use]
    pub fn unreadable_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.unreadable.count_blocks() * BLOCK).sum()
    }

    /// Bytes whose content the target lacks at the point of this epoch since they could not be read.
    pub(super) fn unreadable_bytes_at(&self, epoch: Epoch) -> u64 {
        let later: u64 = self.unreadable.healing.range(Epoch(epoch.0 + 1)..).map(|(_, blocks)| blocks).sum();
        self.unreadable_bytes() + later * BLOCK
    }

    /// The set of an epoch is durable on the target, and with it what came in it.
    pub(super) fn healed_through(&mut self, epoch: Epoch) {
        self.unreadable.healing = self.unreadable.healing.split_off(&Epoch(epoch.0 + 1));
    }

    /// Whether unreadable blocks are being tried, or are about to be.
    pub(super) fn is_trying_unreadable(&self) -> bool {
        let is_due = self.unreadable.at.is_some_and(|at| self.now.mono >= at);
        is_due || self.unreadable.pass.is_some()
    }

    /// Tries all unreadable blocks now, if there are any.
    pub(super) fn try_unreadable(&mut self) {
        self.unreadable.at = self.unreadable.at.map(|_| self.now.mono);
    }

    /// Tries the next unreadable block, when it is time.
    pub(super) fn pump_unreadable(&mut self) {
        let is_due = self.unreadable.at.is_some_and(|at| self.now.mono >= at);
        if is_due {
            self.unreadable.at = None;
            self.unreadable.pass = Some((0, 0));
            self.unreadable.has_read = false;
        }
        let Some((mut disk, mut from)) = self.unreadable.pass.filter(|_| !self.unreadable.is_reading) else { return };
        while let Some(state) = self.disks.get(disk) {
            if let Some((block, _)) = state.unreadable.next_run(from, state.blocks - from.min(state.blocks)) {
                let sector = block * BLOCK_SECTORS;
                let sectors = BLOCK_SECTORS.min(state.sectors - sector);
                self.unreadable.pass = Some((disk, block + 1));
                self.unreadable.is_reading = true;
                return self.start_read(ReadPurpose::Retry, DiskIndex(disk as u32), sector, sectors, false);
            }
            (disk, from) = (disk + 1, 0);
        }
        self.unreadable.pass = None;
        if self.disks.iter().any(|disk| !disk.unreadable.is_empty()) {
            let after = if self.unreadable.has_read { RETRY_MIN } else { (self.unreadable.after * 2).min(RETRY_MAX) };
            self.unreadable.after = after;
            self.unreadable.at = Some(self.now.mono + after);
        }
    }

    /// An unreadable block was tried. What could be read is sent from the disk, as it is when it is read for that.
    pub(super) fn retried(&mut self, read: &PendingRead, outcome: &ReadOutcome) {
        self.unreadable.is_reading = false;
        let (block, blocks) = blocks_of(read);
        let state = &mut self.disks[read.disk.0 as usize];
        if matches!(outcome, ReadOutcome::Failed) || !state.unreadable.any(block, blocks) {
            return;
        }
        let healed = state.unreadable.clear(block, blocks);
        self.unreadable.has_read = true;
        *self.unreadable.healing.entry(self.epochs.current()).or_default() += healed;
        self.is_on_disk(read.disk, block, blocks);
    }

    /// A write has reached the disk: blocks that it covers whole are what it made them.
    pub(super) fn no_longer_unreadable(&mut self, disk: DiskIndex, sector: u64, sectors: u64, epoch: Epoch) {
        let state = &mut self.disks[disk.0 as usize];
        if state.unreadable.is_empty() {
            return;
        }
        let end = sector + sectors;
        let first = sector.div_ceil(BLOCK_SECTORS);
        let last = if end == state.sectors { state.blocks } else { end / BLOCK_SECTORS };
        if first < last {
            let healed = state.unreadable.clear(first, last - first);
            if healed > 0 {
                *self.unreadable.healing.entry(epoch).or_default() += healed;
            }
        }
    }
}

fn blocks_of(read: &PendingRead) -> (u64, u64) {
    let first = read.sector / BLOCK_SECTORS;
    (first, (read.sector + read.sectors).div_ceil(BLOCK_SECTORS) - first)
}
