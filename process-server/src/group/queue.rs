//! The change sets of a group that the target does not have yet, oldest first; the last one may be open.

use std::collections::VecDeque;
use std::ops::{Index, IndexMut};

use blockio::{BLOCK, SECTOR};
use proto::ids::{DiskIndex, Epoch};

use crate::changeset::{ChangeSet, PartPlan};

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
    /// Whether its buffers are its own, read from the disk for sending, and not the set's.
    pub(super) read_from_disk: bool,
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
    /// False once a block of it could not be read (S17).
    pub(super) is_point: bool,
}

impl QueuedSet {
    pub(super) fn new(set: ChangeSet) -> Self {
        Self { set, number: None, parts: None, seal_sent: false, closes_bulk: false, is_point: true }
    }

    /// Whether it changes something in the block.
    pub(super) fn touches(&self, disk: DiskIndex, block: u64) -> bool {
        self.set.extents(disk).overlaps(block * BLOCK_SECTORS, BLOCK_SECTORS)
    }

    /// Whether any of it may have left this agent.
    pub(super) fn is_started(&self) -> bool {
        self.parts.is_some()
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
