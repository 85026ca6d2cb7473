//! Comparison by digest: blocks of which nobody knows whether the target has them.
//!
//! After a crash these are the marked regions; after any doubt all of a disk (rule S12). They are read and digested, and
//! only what the target holds differently becomes dirty. A bit is cleared before its block is read, and a write sets the
//! *dirty* bit meanwhile, so "same" forgets nothing (rule S6). The bits of an answer that never comes go back. Comparing
//! ends before anything is sent, so a block is on its way at most once (rule S8).

use blockio::{BLOCK, SECTOR};
use proto::digest;
use proto::frame::RawExtent;
use proto::ids::DiskIndex;
use proto::replication::BlocksCompared;

use super::action::Action;
use super::catchup::{BulkKind, Step};
use super::core::{Group, Mode};
use crate::send::{CompareJob, ToLink};

/// Sectors of what one digest stands for.
const UNIT_SECTORS: u64 = digest::UNIT_BYTES as u64 / SECTOR;
/// Sectors of a block.
const BLOCK_SECTORS: u64 = BLOCK / SECTOR;

impl Group {
    /// Whether there is anything to compare.
    pub(super) fn has_suspects(&self) -> bool {
        self.disks.iter().any(|disk| !disk.suspect.is_empty())
    }

    /// The target has nothing to compare with: what is suspect is dirty.
    pub(super) fn suspects_are_dirty(&mut self) {
        for disk in &mut self.disks {
            disk.dirty.merge_from(&disk.suspect);
            disk.suspect.clear_all();
        }
    }

    /// All blocks of a part have been read: the target is asked.
    pub(super) fn ask_to_compare(&mut self, id: u32, extents: Vec<RawExtent>) {
        let part = self.bulk.get_mut(&id).expect("the part is still there");
        part.compared = extents.iter().map(|extent| (extent.disk, extent.sector, extent.sectors())).collect();
        if extents.is_empty() {
            self.bulk.remove(&id);
            return;
        }
        let job = CompareJob { group: self.options.name.clone(), phase: self.phase.0, request: id, extents };
        self.actions.push_back(Action::Link(ToLink::Compare(job)));
    }

    /// The target has compared: what differs is dirty. What the answer leaves out counts as different.
    pub(super) fn compared(&mut self, answer: &BlocksCompared) {
        if self.verify_compared(answer) {
            return;
        }
        let is_asked = self.bulk.get(&answer.request).is_some_and(|part| part.kind == BulkKind::Compare && part.handed);
        if !is_asked {
            return;
        }
        let part = self.bulk.remove(&answer.request).expect("it was found a moment ago");
        let mut unit = 0;
        for (disk, sector, sectors) in part.compared {
            let mut at = sector;
            let end = sector + sectors;
            while at < end {
                let next = (at + UNIT_SECTORS).min(end);
                if digest::differs(&answer.differs, unit) {
                    let block = at / BLOCK_SECTORS;
                    self.disks[disk.0 as usize].dirty.set(block, next.div_ceil(BLOCK_SECTORS) - block);
                }
                unit += 1;
                at = next;
            }
        }
    }

    /// What could not be read on the source can't be compared; the round that follows says so to the target.
    pub(super) fn is_not_comparable(&mut self, disk: DiskIndex, sector: u64, sectors: u64) {
        let block = sector / BLOCK_SECTORS;
        self.disks[disk.0 as usize].dirty.set(block, (sector + sectors).div_ceil(BLOCK_SECTORS) - block);
    }

    /// Begins to compare.
    pub(super) fn begin_comparing(&mut self) {
        if let Mode::CatchingUp(catch_up) = &mut self.mode {
            catch_up.step = Step::Comparing { disk: 0, block: 0 };
        }
    }
}
