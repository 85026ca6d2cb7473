//! Flushes of the protected disks, for guests and for the core, and who is told when one fails.
//!
//! The kernel reports a failed write-back once, to whoever asks next, so that a flush of the core would swallow what the
//! guest must know. Each client is therefore told of each time that flushes of its disk began to fail: with the flush that
//! failed, or with its next one, even if that one succeeds. What must be read again then is the core's business.

use blockio::{IoError, Op};
use nbd::Errno;
use proto::ids::DiskIndex;
use tracing::{info, warn};

use super::complaints::Trouble;
use super::thread::{Tap, Token};

/// A flush of some disks for the core that has not ended.
#[derive(Debug)]
pub(super) struct CoreFlush {
    left: usize,
    failed: Vec<DiskIndex>,
}

impl Tap {
    /// A client asks for a flush, or for a write that is flushed.
    pub(super) fn start_flush(&mut self, slot: usize, disk: usize) {
        let index = DiskIndex(disk as u32);
        let flush = self.group.flush_begins(index);
        self.requests.at(slot).flush = Some((index, flush));
        let file = self.disks[disk].file.clone();
        self.engine.submit(Token::Flush(slot).encode(), Op::Sync { file });
    }

    /// A client's flush has ended; it ends its request.
    pub(super) fn flush_done(&mut self, slot: usize, result: Result<(), IoError>) {
        let pending = self.requests.at(slot);
        let (name, flush) = (pending.connection, pending.flush);
        let Some((disk, flush)) = flush else { unreachable!("a flush that ends was begun") };
        let ok = result.is_ok();
        self.note_flush(disk, result);
        self.group.flush_ended(disk, flush, ok);
        self.note_recovery(disk);
        let failures = self.group.flush_failures(disk);
        let client = self.connections.get_mut(&name);
        let is_told = client.is_none_or(|client| std::mem::replace(&mut client.flush_failures, failures) == failures);
        if !ok || !is_told {
            self.requests.at(slot).fail(Errno::Io, "the disk behind the export could not be flushed");
        }
        self.finish(slot, None);
    }

    /// Flushes disks for the core.
    pub(super) fn flush_for_core(&mut self, id: u64, disks: &[DiskIndex]) {
        self.core_flushes.insert(id, CoreFlush { left: disks.len(), failed: Vec::new() });
        for disk in disks {
            let file = self.disks[disk.0 as usize].file.clone();
            self.engine.submit(Token::CoreFlush { id, disk: disk.0 }.encode(), Op::Sync { file });
        }
    }

    /// One of these disks has been flushed.
    pub(super) fn core_flush_done(&mut self, id: u64, disk: DiskIndex, result: Result<(), IoError>) {
        let ok = result.is_ok();
        self.note_flush(disk, result);
        let Some(flush) = self.core_flushes.get_mut(&id) else { return };
        flush.left -= 1;
        if !ok {
            flush.failed.push(disk);
        }
        if flush.left > 0 {
            return;
        }
        if let Some(CoreFlush { failed, .. }) = self.core_flushes.remove(&id) {
            self.group.disks_flushed(id, &failed);
            (0..self.disks.len() as u32).for_each(|disk| self.note_recovery(DiskIndex(disk)));
        }
    }

    fn note_flush(&mut self, disk: DiskIndex, result: Result<(), IoError>) {
        let Err(error) = result else { return };
        let (index, now) = (disk.0 as usize, self.clock.now().mono);
        self.disks[index].is_unflushed = true;
        // The core reads again what was written since the last good flush, so the next one may count (REVIEW W10).
        self.disks[index].file.forgive_failed_sync();
        if let Some(left_out) = self.complaints.is_due(index, Trouble::Flush, now) {
            warn!(
                group = %self.name, disk = self.disks[index].name(), %error, left_out,
                "a protected disk can't be flushed: the guest is told, what was written since it could is read again, and \
                 it is tried again"
            );
        }
    }

    fn note_recovery(&mut self, disk: DiskIndex) {
        let is_failing = self.group.is_flush_failing(disk);
        let state = &mut self.disks[disk.0 as usize];
        if state.is_unflushed && !is_failing {
            state.is_unflushed = false;
            info!(group = %self.name, disk = state.name(), "the protected disk can be flushed again");
        }
    }
}
