//! What the target durably has of blocks that were written not long ago, so that their next content can go as a delta.
//!
//! Content comes here when its set is acknowledged, and goes when the block is changed by anything else, when it is the
//! oldest, and with each new phase. While the link takes more than the processors compress, or the target's disks have no
//! time to be read, nothing is kept. A base is given only for a set before which the target has nothing newer of the block
//! than what is kept: no older set that is not acknowledged touches it. Were it wrong all the same, the target would notice by
//! its checksum, and take no more deltas.

use std::collections::{BTreeMap, VecDeque};

use blockio::{BLOCK, SECTOR};
use bytes::Bytes;
use proto::frame::{Bases, RawContent};
use proto::ids::DiskIndex;

use super::core::{Group, Mode};
use super::queue::QueuedSet;
use crate::changeset::{Content, PartPlan};

/// Share of the group's memory that is kept beside what sets may pin.
const MEMORY_SHARE: u64 = 8;
/// What is kept at least, bytes.
const BYTES_MIN: u64 = 64 << 10;
/// The most that is kept, bytes: what a busy database writes again and again.
const BYTES_MAX: u64 = 64 << 20;
/// Longer writes are copies of files, not pages that are changed.
const WRITE_BYTES_MAX: u64 = 64 << 10;
/// Entries of the order that may be stale, beside as many as there are blocks, before it is made anew.
const STALE_MAX: usize = 4096;
/// Sectors of a block.
const BLOCK_SECTORS: u64 = BLOCK / SECTOR;

/// What is kept of one block.
#[derive(Debug)]
struct Kept {
    content: Bytes,
    set: u64,
    stamp: u64,
}

/// Content of blocks as the target durably has it.
#[derive(Debug, Default)]
pub(super) struct Recent {
    blocks: BTreeMap<(u32, u64), Kept>,
    /// Oldest first; an entry whose stamp is not the block's is stale.
    order: VecDeque<(u64, (u32, u64))>,
    stamps: u64,
    blocks_max: usize,
    link_compresses: bool,
    target_takes: bool,
}

impl Recent {
    /// Keeps at most an eighth of `memory_bytes`.
    pub(super) fn new(memory_bytes: u64) -> Self {
        let blocks_max = (memory_bytes / MEMORY_SHARE).clamp(BYTES_MIN, BYTES_MAX) / BLOCK;
        Self { blocks_max: blocks_max as usize, ..Self::default() }
    }

    fn is_wanted(&self) -> bool {
        self.link_compresses && self.target_takes
    }

    /// Nothing that is kept counts any more.
    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.order.clear();
    }

    /// Whether deltas pay on the link.
    pub(super) fn link_compresses(&mut self, compresses: bool) {
        self.link_compresses = compresses;
        self.settle();
    }

    /// Whether the target takes them.
    pub(super) fn target_takes(&mut self, takes: bool) {
        self.target_takes = takes;
        self.settle();
    }

    fn settle(&mut self) {
        if !self.is_wanted() {
            self.clear();
        }
    }

    /// A set is acknowledged: what it holds in memory is kept, and of all else that it changes nothing. Neither is what was read
    /// for sending: its disk may have fallen back since, with a flush that failed, and then the set holds what was never sent.
    pub(super) fn acknowledged(&mut self, queued: &QueuedSet, number: u64) {
        if !self.is_wanted() {
            return;
        }
        for disk in 0..queued.set.disks() as u32 {
            for (sector, sectors, _) in queued.set.extents(DiskIndex(disk)).iter() {
                self.forget(disk, sector, sectors);
            }
        }
        let parts = queued.parts.iter().flatten().filter(|part| !part.has_own_buffers);
        for range in parts.flat_map(|part| &part.plan.ranges) {
            for (sector, sectors, content) in queued.set.extents(range.disk).clipped(range.sector, range.sectors) {
                self.keep_extent(range.disk, sector, sectors, &content, number);
            }
        }
        self.make_room();
    }

    fn keep_extent(&mut self, disk: DiskIndex, sector: u64, sectors: u64, content: &Content, set: u64) {
        let Content::Captured(captured) = content else { return };
        if !is_whole(sector, sectors) || captured.pinned() > WRITE_BYTES_MAX {
            return;
        }
        let Some(RawContent::Data { bytes, .. }) = captured.to_raw() else { return };
        for (block, content) in (sector / BLOCK_SECTORS..).zip(bytes.chunks_exact(BLOCK as usize)) {
            self.keep((disk.0, block), content, set);
        }
    }

    /// Something else than a set writes the block.
    pub(super) fn forget_block(&mut self, disk: DiskIndex, block: u64) {
        self.blocks.remove(&(disk.0, block));
    }

    fn forget(&mut self, disk: u32, sector: u64, sectors: u64) {
        let (first, end) = (sector / BLOCK_SECTORS, (sector + sectors).div_ceil(BLOCK_SECTORS));
        if end - first == 1 {
            self.blocks.remove(&(disk, first));
            return;
        }
        let gone: Vec<_> = self.blocks.range((disk, first)..(disk, end)).map(|(key, _)| *key).collect();
        gone.iter().for_each(|key| _ = self.blocks.remove(key));
    }

    fn keep(&mut self, key: (u32, u64), content: &[u8], set: u64) {
        self.stamps += 1;
        let kept = Kept { content: Bytes::copy_from_slice(content), set, stamp: self.stamps };
        self.blocks.insert(key, kept);
        self.order.push_back((self.stamps, key));
    }

    fn make_room(&mut self) {
        let Self { blocks, order, .. } = self;
        let is_kept = |blocks: &BTreeMap<(u32, u64), Kept>, (stamp, key): &(u64, (u32, u64))| {
            blocks.get(key).is_some_and(|kept| kept.stamp == *stamp)
        };
        while blocks.len() > self.blocks_max {
            let Some(oldest) = order.pop_front() else { break };
            if is_kept(blocks, &oldest) {
                blocks.remove(&oldest.1);
            }
        }
        if order.len() > 2 * blocks.len() + STALE_MAX {
            order.retain(|entry| is_kept(blocks, entry));
        }
    }
}

impl Group {
    /// How the link encodes at the moment: deltas pay only where it compresses.
    pub fn link_compresses(&mut self, compresses: bool) {
        self.recent.link_compresses(compresses);
    }

    /// What the target has of the blocks of a part, as far as that is known.
    pub(super) fn bases_of(&self, index: usize, plan: &PartPlan) -> Bases {
        let mut bases = Bases::default();
        if self.recent.blocks.is_empty() || !matches!(self.mode, Mode::Streaming) {
            return bases;
        }
        for range in &plan.ranges {
            for (sector, sectors, content) in
                self.queue[index].set.extents(range.disk).clipped(range.sector, range.sectors)
            {
                let is_whole = sector.is_multiple_of(BLOCK_SECTORS) && sectors.is_multiple_of(BLOCK_SECTORS);
                if !is_whole
                    || sectors * SECTOR > WRITE_BYTES_MAX
                    || !matches!(content, Content::Captured(_) | Content::Spooled(_))
                {
                    continue;
                }
                for block in sector / BLOCK_SECTORS..(sector + sectors) / BLOCK_SECTORS {
                    let Some(kept) = self.recent.blocks.get(&(range.disk.0, block)) else { continue };
                    if !self.queue.iter().take(index).any(|older| older.touches(range.disk, block)) {
                        bases.insert(range.disk, block, kept.content.clone(), kept.set);
                    }
                }
            }
        }
        bases
    }
}

/// Whether an extent is of whole blocks, and no longer than a page that somebody may change.
fn is_whole(sector: u64, sectors: u64) -> bool {
    let is_of_blocks = sector.is_multiple_of(BLOCK_SECTORS) && sectors.is_multiple_of(BLOCK_SECTORS);
    is_of_blocks && sectors * SECTOR <= WRITE_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changeset::{Captured, ChangeSet};
    use crate::group::queue::{Part, PartState};
    use proto::ids::Epoch;

    fn recent() -> Recent {
        let mut recent = Recent::new(0);
        recent.blocks_max = 4;
        recent.link_compresses(true);
        recent.target_takes(true);
        recent
    }

    /// A set that writes these ranges of sectors, each byte `value`.
    fn set(writes: &[(u64, u64)], value: u8) -> QueuedSet {
        let mut set = ChangeSet::new(Epoch(1), 1);
        for (sector, sectors) in writes {
            let bytes = Bytes::from(vec![value; (*sectors * SECTOR) as usize]);
            set.insert(DiskIndex(0), *sector, *sectors, Content::Captured(Captured::checksummed(bytes)));
        }
        sent(set)
    }

    /// A set whose parts were sent from memory.
    fn sent(set: ChangeSet) -> QueuedSet {
        let mut queued = QueuedSet::new(set);
        let plans = PartPlan::of(&queued.set, 1 << 20).into_iter();
        queued.parts =
            Some(plans.map(|plan| Part { plan, state: PartState::Durable, has_own_buffers: false }).collect());
        queued
    }

    fn kept(recent: &Recent) -> Vec<(u64, u8, u64)> {
        recent.blocks.iter().map(|((_, block), kept)| (*block, kept.content[0], kept.set)).collect()
    }

    #[test]
    fn whole_blocks_are_kept_and_what_changes_a_part_of_one_takes_it_away() {
        let mut recent = recent();
        recent.acknowledged(&set(&[(0, 16), (80, 8)], 1), 5);
        assert_eq!(kept(&recent), [(0, 1, 5), (1, 1, 5), (10, 1, 5)]);
        recent.acknowledged(&set(&[(9, 1), (80, 8)], 2), 6);
        assert_eq!(kept(&recent), [(0, 1, 5), (10, 2, 6)]);
        let mut zero = ChangeSet::new(Epoch(2), 1);
        zero.insert(DiskIndex(0), 0, 1 << 21, Content::Zero);
        recent.acknowledged(&sent(zero), 7);
        assert_eq!(kept(&recent), []);
    }

    #[test]
    fn what_was_read_for_sending_is_not_kept() {
        let mut recent = recent();
        recent.acknowledged(&set(&[(0, 8)], 1), 5);
        let mut read = set(&[(0, 8)], 2);
        read.parts.iter_mut().flatten().for_each(|part| part.has_own_buffers = true);
        recent.acknowledged(&read, 6);
        assert_eq!(kept(&recent), []);
    }

    #[test]
    fn the_oldest_go_first_and_blocks_that_are_written_all_the_time_take_no_more_room() {
        let mut recent = recent();
        for round in 0..10_000 {
            recent.acknowledged(&set(&[(0, 8)], 1), round);
        }
        assert!(recent.order.len() <= 2 + STALE_MAX + 1, "{}", recent.order.len());
        for block in 1..5 {
            recent.acknowledged(&set(&[(block * 8, 8)], 2), 20_000 + block);
        }
        assert_eq!(kept(&recent).iter().map(|(block, ..)| *block).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn nothing_is_kept_while_one_of_both_ends_does_not_want_it() {
        let mut recent = recent();
        recent.acknowledged(&set(&[(0, 8)], 1), 1);
        recent.link_compresses(false);
        assert_eq!(kept(&recent), []);
        recent.acknowledged(&set(&[(0, 8)], 1), 2);
        assert_eq!(kept(&recent), []);
        recent.link_compresses(true);
        recent.acknowledged(&set(&[(0, 8)], 1), 3);
        assert_eq!(kept(&recent), [(0, 1, 3)]);
        recent.target_takes(false);
        assert_eq!(kept(&recent), []);
    }
}
