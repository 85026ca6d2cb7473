//! The ladder's last step: when memory and spool are used up, sets give way to the bitmap (S8, S19).
//!
//! Sets that have not begun to travel go first; those that have are finished, so that every cycle yields a point. Only
//! where that is not enough, or the link is down, is everything dropped and a new phase begun. What a dropped set held
//! is dirty: nothing is lost but the points in between.

use blockio::BLOCK;

use super::catchup::{CatchUp, CatchUpReason};
use super::core::{Group, Mode};
use super::limits::SETS_MAX;
use super::rounds::FailedCut;
use crate::rules::Rule;

impl Group {
    /// Whether captured data may pin more memory; if not, sets give way to the bitmap (S8, S19).
    pub(super) fn check_budget(&mut self) {
        let full = self.queue.charged() > self.options.memory_bytes || self.queue.len() > SETS_MAX;
        if full {
            self.overflow();
        }
    }

    /// Memory, and the spool where there is one, are used up: sets that have not begun to travel become dirty bits. If
    /// that is not enough, or the link is down, so do all others, and a new phase begins (S8).
    fn overflow(&mut self) {
        let reason = self.spool.overflow_reason();
        let why = reason.words();
        let cut = self.last_cut_held();
        self.drop_unstarted(why);
        let still_full = self.queue.charged() > self.options.memory_bytes;
        if still_full || !self.peer.is_open() {
            self.drop_all(why);
        }
        if cut.is_some() && self.last_cut_held().is_none() {
            self.progress.cut_failed(cut);
        }
        self.catch_up(reason);
    }

    /// What the last cut of a catching-up and all that came after it may need, while its set is there (S18).
    fn last_cut_held(&self) -> Option<FailedCut> {
        let rest = self.queue.iter().find(|queued| queued.is_rest)?;
        let held = rest.set.on_disk_blocks() * BLOCK;
        let limit_bytes = self.options.memory_bytes + self.spool.limit();
        Some(FailedCut { needed_bytes: self.queue.charged() + self.spool.stored() + held, limit_bytes })
    }

    /// Nothing that was captured can be trusted to continue what the target has: everything unacknowledged is dirty.
    pub(super) fn drop_everything(&mut self, reason: CatchUpReason) {
        self.drop_all(reason.words());
        self.catch_up(reason);
    }

    fn catch_up(&mut self, reason: CatchUpReason) {
        self.verify_lost(&format!("the group catches up ({})", reason.code()));
        // Writes in flight have no set any more: they belong to the bitmap from now on, also those that fail.
        let Self { writes, disks, .. } = self;
        for write in writes.iter() {
            disks[write.disk.0 as usize].dirty.set(write.block, write.blocks);
        }
        self.recent.clear();
        self.mode = Mode::CatchingUp(CatchUp::new(reason));
    }

    fn drop_unstarted(&mut self, why: &str) {
        while self.queue.len() > 0 && !self.queue[self.queue.len() - 1].is_started() {
            self.drop_last(why);
        }
    }

    fn drop_all(&mut self, why: &str) {
        while self.queue.len() > 0 {
            self.drop_last(why);
        }
        self.return_bulk();
        self.assemblies.clear();
        self.next_number = None;
        self.new_phase();
        self.reopen();
    }

    fn drop_last(&mut self, why: &str) {
        let Some(queued) = self.queue.pop_back() else { return };
        for (disk, block, blocks) in queued.set.block_runs().filter(|_| Rule::DroppedIsDirty.holds()) {
            self.disks[disk.0 as usize].dirty.set(block, blocks);
        }
        if let Some(number) = queued.number {
            self.next_number = Some(number);
        }
        self.points_lost(queued.set.epoch().0, why);
        self.release_held();
        self.spool.release(&queued);
    }
}
