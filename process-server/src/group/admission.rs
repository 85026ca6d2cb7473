//! A write arrives: its place in the order of every block, its epoch, its dirty bits; then copy before write.
//!
//! Admission is one step, taken when the payload has arrived (S13). Whatever may wait comes after: earlier
//! overlapping writes, then the old content of blocks that an older set still holds on disk (S4), then the durable marks
//! of its regions (S7).

use blockio::{BLOCK, IO_BYTES_MAX, SECTOR};
use proto::ids::DiskIndex;

use super::action::{Change, WriteId};
use super::core::{Group, Mode};
use super::inflight::InFlight;
use super::sending::ReadPurpose;
use crate::rules::Rule;

/// Sectors in a block.
const BLOCK_SECTORS: u64 = BLOCK / SECTOR;

/// What the driver does with a write that was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// Submit it at once.
    Submit(WriteId),
    /// Keep it; `Action::Submit` will name it.
    Wait(WriteId),
}

/// Why a write was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The group is fenced for failback.
    #[error("the group is fenced: its machine is being failed back or runs on-premises again")]
    Fenced,
}

impl Group {
    /// Admits a write of whole sectors inside the disk; data is at most 1 MiB, zeroes at most 64 MiB.
    ///
    /// # Errors
    /// `AdmitError::Fenced` when writes are no longer taken.
    pub fn admit(
        &mut self,
        disk: DiskIndex,
        sector: u64,
        sectors: u64,
        change: Change,
    ) -> Result<Admitted, AdmitError> {
        if self.fence.refuses_writes() {
            return Err(AdmitError::Fenced);
        }
        let state = &mut self.disks[disk.0 as usize];
        assert!(sectors > 0 && sector + sectors <= state.sectors, "the driver checks requests against the disk");
        let block = sector / BLOCK_SECTORS;
        let blocks = (sector + sectors).div_ceil(BLOCK_SECTORS) - block;
        let capturing = matches!(self.mode, Mode::Streaming);
        if !capturing {
            state.dirty.set(block, blocks);
        }
        self.counters.captured_bytes += sectors * SECTOR;
        let crc = match &change {
            Change::Data(bytes) if capturing => {
                debug_assert!(bytes.len() <= IO_BYTES_MAX);
                Some(blockio::crc32(bytes))
            }
            _ => None,
        };
        self.verify_touched(disk, block, blocks);
        self.wrote(disk, block, blocks);
        let epoch = self.epochs.enter();
        let write = InFlight { disk, sector, sectors, block, blocks, change, crc, epoch, waits: 0, copies: 0 };
        self.tracked.intent.want(disk, block, blocks);
        let id = self.writes.insert(write);
        if self.writes.at(id).waits > 0 || self.copies_before(id) {
            return Ok(Admitted::Wait(id));
        }
        if !self.is_marked(id) {
            self.wait_for_mark(id);
            return Ok(Admitted::Wait(id));
        }
        Ok(Admitted::Submit(id))
    }

    /// An admitted write waits for no other one any more.
    pub(super) fn prepare(&mut self, id: WriteId) {
        if !self.copies_before(id) {
            self.submit_when_marked(id);
        }
    }

    /// Starts reading the old content that older sets still need from the blocks of a write. False: nothing to copy.
    fn copies_before(&mut self, id: WriteId) -> bool {
        let write = self.writes.at(id);
        let (disk, block, blocks, epoch) = (write.disk, write.block, write.blocks, write.epoch);
        if !self.disks[disk.0 as usize].held.any(block, blocks) || !Rule::CopyBeforeWrite.holds() {
            return false;
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for queued in self.queue.iter().take_while(|queued| queued.set.epoch().0 < epoch.0) {
            ranges.extend(queued.set.held_ranges(disk, block * BLOCK_SECTORS, blocks * BLOCK_SECTORS));
        }
        for (sector, sectors) in joined(ranges) {
            let pieces = (IO_BYTES_MAX as u64) / SECTOR;
            let mut at = sector;
            while at < sector + sectors {
                let len = pieces.min(sector + sectors - at);
                self.writes.at_mut(id).copies += 1;
                self.start_read(ReadPurpose::CopyBeforeWrite(id), disk, at, len, true);
                at += len;
            }
        }
        self.writes.at(id).copies > 0
    }
}

/// Sorts ranges and joins those that touch or overlap.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (start, len) in ranges {
        match joined.last_mut() {
            Some((last, last_len)) if start <= *last + *last_len => *last_len = (*last_len).max(start + len - *last),
            _ => joined.push((start, len)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::joined;

    #[test]
    fn touching_ranges_become_one() {
        assert_eq!(joined(vec![(8, 8), (0, 8), (20, 1), (20, 4)]), vec![(0, 16), (20, 4)]);
    }
}
