//! The change sets of a group that the target does not have yet, oldest first; the last one may be open.
//!
//! Where the content of a set lies, in memory or in the spool, changes nothing about its place here.

use std::collections::VecDeque;
use std::ops::{Index, IndexMut};

use blockio::{BLOCK, SECTOR};
use proto::ids::{DiskIndex, Epoch};

use crate::changeset::{ChangeSet, Content, PartPlan};

/// Sectors of a block.
const BLOCK_SECTORS: u64 = BLOCK / SECTOR;

/// How far a part has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PartState {
    /// Not handed to the link in this session.
    Waiting,
    /// Being read from the disk.
    Reading,
    /// With the link.
    Sent,
    /// Acknowledged as durable.
    Durable,
}

/// One part of a sealed set.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) plan: PartPlan,
    pub(super) state: PartState,
    /// Whether its buffers are its own, read from the disk or the spool for sending, and not the set's.
    pub(super) has_own_buffers: bool,
    /// Whether it was handed to the link in this phase.
    pub(super) was_sent: bool,
    /// Whether the link keeps what it sends of it.
    pub(super) is_kept: bool,
}

impl Part {
    pub(super) fn new(plan: PartPlan) -> Self {
        Self { plan, state: PartState::Waiting, has_own_buffers: false, was_sent: false, is_kept: false }
    }
}

/// What of a set is in the spool, and what may still go there.
#[derive(Debug)]
pub(super) struct SetSpool {
    /// Extents before this disk and sector have been looked at; `None`: all have.
    cursor: Option<(u32, u64)>,
    /// First sectors of extents behind the cursor that are to be looked at again.
    pub(super) late: VecDeque<(DiskIndex, u64)>,
    /// Room that it has: offset and length.
    pub(super) chunks: Vec<(u64, u64)>,
    /// Writes that have not ended.
    pub(super) writing: u32,
    /// Reads of on-disk blocks that have not ended.
    pub(super) captures: u32,
}

impl SetSpool {
    fn new() -> Self {
        Self { cursor: Some((0, 0)), late: VecDeque::new(), chunks: Vec::new(), writing: 0, captures: 0 }
    }

    /// Whether something of the set is there or on its way.
    pub(super) fn is_used(&self) -> bool {
        !self.chunks.is_empty() || self.writing > 0
    }
}

/// A set and how far it has come on its way to the target.
#[derive(Debug)]
pub(super) struct QueuedSet {
    pub(super) set: ChangeSet,
    /// Given when it is sealed.
    pub(super) number: Option<u64>,
    /// Planned when sending begins.
    pub(super) parts: Option<Vec<Part>>,
    pub(super) seal_sent: bool,
    /// It is the rest of a catching-up and ends the target's bulk generation.
    pub(super) closes_bulk: bool,
    /// It is the rest of a catching-up: its blocks are on disk, and copied before they are overwritten.
    pub(super) is_rest: bool,
    pub(super) spool: SetSpool,
    /// False once a block of it could not be read (S17).
    pub(super) is_point: bool,
    /// What its first seal in this phase said of it: whether it is a point, and the bytes that could not be read. The target
    /// keeps that one.
    pub(super) told: Option<(bool, u64)>,
}

impl QueuedSet {
    pub(super) fn new(set: ChangeSet) -> Self {
        Self {
            set,
            number: None,
            parts: None,
            seal_sent: false,
            closes_bulk: false,
            is_rest: false,
            spool: SetSpool::new(),
            is_point: true,
            told: None,
        }
    }

    /// Whether it changes something in the block.
    pub(super) fn touches(&self, disk: DiskIndex, block: u64) -> bool {
        self.set.extents(disk).overlaps(block * BLOCK_SECTORS, BLOCK_SECTORS)
    }

    /// Whether any of it may have left this agent.
    pub(super) fn is_started(&self) -> bool {
        self.parts.is_some()
    }

    /// Whether a part that has some of these sectors is being put together, or with the link: then their content is
    /// pinned in memory wherever else it may lie.
    pub(super) fn is_with_link(&self, disk: DiskIndex, sector: u64, sectors: u64) -> bool {
        let Some(parts) = &self.parts else { return false };
        let ends_before = |part: &Part| {
            part.plan.ranges.last().is_some_and(|last| (last.disk.0, last.sector + last.sectors) <= (disk.0, sector))
        };
        let begins_before = |part: &&Part| {
            part.plan.ranges.first().is_some_and(|first| (first.disk.0, first.sector) < (disk.0, sector + sectors))
        };
        let first = parts.partition_point(ends_before);
        let mut covering = parts[first..].iter().take_while(begins_before);
        covering.any(|part| matches!(part.state, PartState::Reading | PartState::Sent))
    }

    /// The next captured extent that was not looked at yet, for the spool.
    pub(super) fn next_extent(&mut self) -> Option<(DiskIndex, u64)> {
        let (first, sector) = self.spool.cursor?;
        for disk in first..self.set.disks() as u32 {
            let from = if disk == first { sector } else { 0 };
            let mut extents = self.set.extents(DiskIndex(disk)).overlapping(from, u64::MAX - from);
            let captured =
                extents.find(|(start, _, content)| *start >= from && matches!(content, Content::Captured(_)));
            if let Some((start, _, _)) = captured {
                self.spool.cursor = Some((disk, start));
                return Some((DiskIndex(disk), start));
            }
        }
        self.spool.cursor = None;
        None
    }

    /// The extent there was looked at.
    pub(super) fn pass_extent(&mut self, disk: DiskIndex, sector: u64) {
        self.spool.cursor = Some((disk.0, sector + 1));
    }

    /// Something that begins there has become captured: it is looked at again if it was passed.
    pub(super) fn became_captured(&mut self, disk: DiskIndex, sector: u64) {
        if self.spool.cursor.is_none_or(|cursor| (disk.0, sector) < cursor) {
            self.spool.late.push_back((disk, sector));
        }
    }
}

/// The queue. Sets are cut in order of their epochs and sealed in order, with numbers that go on without gaps.
#[derive(Debug, Default)]
pub(super) struct SetQueue {
    sets: VecDeque<QueuedSet>,
    charged: u64,
}

impl SetQueue {
    pub(super) fn push(&mut self, queued: QueuedSet) {
        self.charged += queued.set.charged();
        self.sets.push_back(queued);
    }

    /// Changes the content of one set and keeps the sum of charges right.
    pub(super) fn change(&mut self, index: usize, change: impl FnOnce(&mut ChangeSet)) {
        let set = &mut self.sets[index].set;
        let before = set.charged();
        change(set);
        self.charged = self.charged + set.charged() - before;
    }

    pub(super) fn len(&self) -> usize {
        self.sets.len()
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &QueuedSet> {
        self.sets.iter()
    }

    pub(super) fn front(&self) -> Option<&QueuedSet> {
        self.sets.front()
    }

    pub(super) fn pop_front(&mut self) -> Option<QueuedSet> {
        let queued = self.sets.pop_front()?;
        self.charged -= queued.set.charged();
        Some(queued)
    }

    pub(super) fn pop_back(&mut self) -> Option<QueuedSet> {
        let queued = self.sets.pop_back()?;
        self.charged -= queued.set.charged();
        Some(queued)
    }

    /// Index of the sealed set with this number.
    pub(super) fn index_of(&self, number: u64) -> Option<usize> {
        let first = self.front()?.number?;
        let index = usize::try_from(number.checked_sub(first)?).ok()?;
        (self.sets.get(index)?.number == Some(number)).then_some(index)
    }

    /// What was with the link is with it no more: the link has let go of its memory.
    pub(super) fn link_lost(&mut self) {
        let parts = self.sets.iter_mut().flat_map(|queued| queued.parts.iter_mut().flatten());
        for part in parts.filter(|part| part.state == PartState::Sent) {
            part.state = PartState::Waiting;
        }
    }

    /// Index of the set of this epoch.
    pub(super) fn index_of_epoch(&self, epoch: Epoch) -> Option<usize> {
        let index = self.sets.partition_point(|queued| queued.set.epoch().0 < epoch.0);
        (self.sets.get(index)?.set.epoch() == epoch).then_some(index)
    }

    /// Index of the set that takes writes of the current epoch, if writes are captured.
    pub(super) fn open_index(&self) -> Option<usize> {
        self.sets.back().filter(|queued| queued.set.cut_mark().is_none()).map(|_| self.sets.len() - 1)
    }

    /// Index of the oldest set that is not sealed.
    pub(super) fn first_unsealed(&self) -> usize {
        self.sets.iter().rposition(|queued| queued.number.is_some()).map_or(0, |last| last + 1)
    }

    /// The set that a completed write of `epoch` belongs to: the oldest one of its epoch or a younger that is not
    /// sealed. A write whose own set was dropped thus belongs to the next one that still takes content.
    pub(super) fn unsealed_for(&self, epoch: Epoch) -> Option<usize> {
        (self.first_unsealed()..self.sets.len()).find(|index| self.sets[*index].set.epoch().0 >= epoch.0)
    }

    /// Memory charged to all sets.
    pub(super) fn charged(&self) -> u64 {
        self.charged
    }

    /// Sectors of change that are not yet acknowledged.
    pub(super) fn sectors(&self) -> u64 {
        self.sets.iter().map(|queued| queued.set.sectors()).sum()
    }
}

impl Index<usize> for SetQueue {
    type Output = QueuedSet;
    fn index(&self, index: usize) -> &QueuedSet {
        &self.sets[index]
    }
}

impl IndexMut<usize> for SetQueue {
    fn index_mut(&mut self, index: usize) -> &mut QueuedSet {
        &mut self.sets[index]
    }
}
