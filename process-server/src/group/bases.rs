//! When what is remembered of the target's blocks may be used, and what is remembered (rule L8, docs/wire-format.md "Deltas").
//!
//! What the target has of a block is what was sent last in a part that it has made durable. So a block is forgotten when a bulk
//! part that has it is handed to the link, when a set that touches it is acknowledged, and when it is mended; and what was sent is
//! remembered when its part or set is acknowledged. A base is given only to a set before which the target has nothing newer of the
//! block: no older set that is not acknowledged touches it. Were a base wrong all the same, the target would notice by its
//! checksum, and take no more deltas.

use std::sync::Arc;

use proto::frame::{Bases, Keep, Parcel};
use proto::ids::DiskIndex;
use proto::replication::{PartBegin, PartKind};

use super::core::{Group, Mode};
use super::queue::QueuedSet;
use super::sending::BLOCK_SECTORS;
use crate::changeset::{Content, PartPlan};

impl Group {
    /// How the link encodes at the moment: deltas pay only where it compresses.
    pub fn link_compresses(&mut self, compresses: bool) {
        self.recent.link_compresses(compresses);
    }

    /// What the link has kept of a part that it is about to end: the target can't have acknowledged it yet.
    pub fn parcels_made(&mut self, begin: &PartBegin, parcels: Vec<Arc<Parcel>>) {
        if begin.phase != self.phase.0 || !self.peer.is_open() {
            return;
        }
        let is_awaited = match begin.kind() {
            PartKind::Bulk => self.bulk.contains_key(&begin.part),
            _ => self.queue.index_of(begin.number).is_some_and(|index| {
                let parts = self.queue[index].parts.as_ref();
                parts.and_then(|parts| parts.get(begin.part as usize)).is_some_and(|part| part.is_kept)
            }),
        };
        if is_awaited {
            self.recent.sent((begin.number, begin.part), parcels);
        }
    }

    /// What is to be kept of a part that is handed to the link. Of one that is sent again in the same phase, nothing: the target
    /// may have taken the first, and a disk that has fallen back with a failed flush in between makes them differ.
    pub(super) fn keep_of(&mut self, index: usize, part: usize) -> Keep {
        // The rest of a catching-up is more of what its rounds sent.
        let keep = if self.queue[index].is_rest { self.recent.keep_of_bulk() } else { self.recent.keep_of_sets() };
        let part = self.part(index, part);
        let keep = if part.was_sent { Keep::Nothing } else { keep };
        (part.was_sent, part.is_kept) = (true, keep != Keep::Nothing);
        keep
    }

    /// A set is acknowledged: what it changes is what was sent of it, and nothing else counts there.
    pub(super) fn remember(&mut self, queued: &QueuedSet, number: u64) {
        for disk in (0..queued.set.disks() as u32).map(DiskIndex) {
            for (sector, sectors, _) in queued.set.extents(disk).iter() {
                self.recent.forget(disk, sector, sectors);
            }
        }
        self.recent.set_durable(number, queued.is_rest);
    }

    /// What the target has of the blocks of a part, as far as that is known.
    pub(super) fn bases_of(&self, index: usize, plan: &PartPlan) -> Bases {
        let mut bases = Bases::default();
        if !self.recent.gives() || !matches!(self.mode, Mode::Streaming) {
            return bases;
        }
        let set = &self.queue[index].set;
        for range in &plan.ranges {
            for (sector, sectors, content) in set.extents(range.disk).clipped(range.sector, range.sectors) {
                let is_whole = sector.is_multiple_of(BLOCK_SECTORS) && sectors.is_multiple_of(BLOCK_SECTORS);
                if !is_whole || !matches!(content, Content::Captured(_) | Content::Spooled(_)) {
                    continue;
                }
                let is_changed = |sector, sectors| {
                    let mut older = self.queue.iter().take(index);
                    older.any(|older| older.set.extents(range.disk).overlaps(sector, sectors))
                };
                // Mostly nothing of it is on its way.
                let is_any_changed = is_changed(sector, sectors);
                for block in sector / BLOCK_SECTORS..(sector + sectors) / BLOCK_SECTORS {
                    let Some(base) = self.recent.base(range.disk, block) else { continue };
                    if !is_any_changed || !is_changed(block * BLOCK_SECTORS, BLOCK_SECTORS) {
                        bases.insert(range.disk, block, base);
                    }
                }
            }
        }
        bases
    }
}
