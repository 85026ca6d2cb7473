//! What goes to the spool next: the queue behind its kept part, in order, a chunk of one set at a time.
//!
//! Only sealed sets, and of these only what the link does not have at the moment. What a set still holds on disk is read
//! first, so that it does not wait for long under copy before write. Writing and reading is `spool`'s.

use blockio::SECTOR;
use bytes::Bytes;
use proto::frame::RawContent;
use proto::ids::{DiskIndex, Epoch};

use super::action::ReadOutcome;
use super::catchup::CatchUpReason;
use super::core::Group;
use super::limits::KEPT_SHARE;
use super::queue::QueuedSet;
use super::sending::ReadPurpose;
use crate::changeset::{Captured, Content, Record};
use crate::spool::limits::{CAPTURES_IN_FLIGHT_MAX, CHUNK_BYTES_MAX, LATE_LOOKS_MAX};

/// An extent on its way to the spool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved {
    pub(super) disk: DiskIndex,
    pub(super) sector: u64,
    pub(super) sectors: u64,
    pub(super) record: Record,
}

/// What goes to the spool in one write.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) extents: Vec<Moved>,
    pub(super) pieces: Vec<Bytes>,
    pub(super) bytes: u64,
}

/// What an extent of a set is to the spool.
enum Look {
    /// It can go.
    Fits(Moved, Bytes),
    /// It can go, with the next chunk.
    NextTime,
    /// The link has it at the moment.
    Later,
    /// It is not in memory.
    Nothing,
    /// It is no longer what was captured.
    Damaged,
}

impl Group {
    /// Moves what is behind the kept part of the queue, in order, as long as there may be more writes.
    pub(super) fn move_to_spool(&mut self) {
        let keep = self.options.memory_bytes / KEPT_SHARE;
        let (mut kept, mut is_behind) = (0, false);
        let mut index = 0;
        while self.spool.takes_more() && index < self.queue.len() {
            let queued = &self.queue[index];
            // Only a sealed set is what it will be.
            if queued.number.is_none() {
                return;
            }
            kept += queued.set.pinned();
            is_behind |= queued.spool.is_used() || kept > keep;
            if is_behind {
                self.capture_fully(index);
                while self.queue[index].set.pinned() > 0 {
                    if !self.spool.may_write() {
                        return;
                    }
                    match self.gather(index) {
                        Some(chunk) if chunk.extents.is_empty() => break,
                        Some(chunk) => {
                            if !self.write_chunk(index, chunk) {
                                return;
                            }
                        }
                        None => return self.drop_everything(CatchUpReason::DamagedCapture),
                    }
                }
            }
            index += 1;
        }
    }

    /// A set in the spool may wait for long, and copy before write would guard its blocks all that time: what it holds on
    /// disk is read. The rest of a catching-up is too large for that, and stays (S18).
    fn capture_fully(&mut self, index: usize) {
        let queued = &mut self.queue[index];
        if queued.is_rest || queued.set.on_disk_blocks() == 0 || queued.spool.captures > 0 {
            return;
        }
        let epoch = queued.set.epoch();
        let mut ranges = Vec::new();
        for disk in (0..queued.set.disks() as u32).map(DiskIndex) {
            let held = queued.set.extents(disk).iter().filter(|(_, _, content)| matches!(content, Content::OnDisk));
            ranges.extend(held.map(|(sector, sectors, _)| (disk, sector, sectors.min(CHUNK_BYTES_MAX / SECTOR))));
            if ranges.len() >= CAPTURES_IN_FLIGHT_MAX {
                break;
            }
        }
        ranges.truncate(CAPTURES_IN_FLIGHT_MAX);
        queued.spool.captures = ranges.len() as u32;
        for (disk, sector, sectors) in ranges {
            self.start_read(ReadPurpose::Capture(epoch), disk, sector, sectors, true);
        }
    }

    /// One read for `capture_fully` has become `more` further ones.
    pub(super) fn captures_added(&mut self, epoch: Epoch, more: u32) {
        if let Some(index) = self.queue.index_of_epoch(epoch) {
            self.queue[index].spool.captures += more;
        }
    }

    /// What a set held on disk has been read; what was saved before an overwrite meanwhile is newer, and stays (S5).
    pub(super) fn capture_done(
        &mut self,
        epoch: Epoch,
        (disk, sector, sectors): (DiskIndex, u64, u64),
        outcome: ReadOutcome,
    ) {
        let Some(index) = self.queue.index_of_epoch(epoch) else { return };
        self.queue[index].spool.captures -= 1;
        let old = match outcome {
            ReadOutcome::Data(bytes) => Content::Captured(Captured::checksummed(bytes)),
            ReadOutcome::Hole => Content::Zero,
            ReadOutcome::Failed => Content::Unreadable,
        };
        self.save_in(index, disk, sector, sectors, &old);
        self.release_held();
    }

    /// Collects the next chunk of a set. Empty: nothing can go now. `None`: something is no longer what was captured.
    fn gather(&mut self, index: usize) -> Option<Chunk> {
        let max = CHUNK_BYTES_MAX.min(self.options.part_bytes);
        let queued = &mut self.queue[index];
        let mut chunk = Chunk::default();
        for _ in 0..queued.spool.late.len().min(LATE_LOOKS_MAX) {
            let Some((disk, sector)) = queued.spool.late.pop_front() else { break };
            match chunk.look(queued, disk, sector, max) {
                Look::Fits(moved, bytes) => chunk.push(moved, bytes),
                Look::Later => queued.spool.late.push_back((disk, sector)),
                Look::NextTime => {
                    queued.spool.late.push_front((disk, sector));
                    return Some(chunk);
                }
                Look::Nothing => {}
                Look::Damaged => return None,
            }
        }
        while let Some((disk, sector)) = queued.next_extent() {
            match chunk.look(queued, disk, sector, max) {
                Look::Fits(moved, bytes) => chunk.push(moved, bytes),
                Look::Later => queued.spool.late.push_back((disk, sector)),
                Look::NextTime => break,
                Look::Nothing => {}
                Look::Damaged => return None,
            }
            queued.pass_extent(disk, sector);
        }
        Some(chunk)
    }
}

impl Chunk {
    /// Whether the extent that begins at this sector can go with this chunk.
    fn look(&self, queued: &QueuedSet, disk: DiskIndex, sector: u64, max: u64) -> Look {
        let Some((start, sectors, Content::Captured(captured))) = queued.set.extents(disk).at(sector) else {
            return Look::Nothing;
        };
        if start != sector {
            return Look::Nothing;
        }
        if queued.is_with_link(disk, sector, sectors) {
            return Look::Later;
        }
        let bytes = sectors * SECTOR;
        if self.bytes > 0 && self.bytes + bytes > max {
            return Look::NextTime;
        }
        match captured.to_raw() {
            Some(RawContent::Data { bytes: data, crc }) => {
                let record = Record { offset: self.bytes, bytes: bytes as u32, crc };
                Look::Fits(Moved { disk, sector, sectors, record }, data)
            }
            _ => Look::Damaged,
        }
    }

    fn push(&mut self, moved: Moved, bytes: Bytes) {
        self.bytes += u64::from(moved.record.bytes);
        self.extents.push(moved);
        self.pieces.push(bytes);
    }
}
