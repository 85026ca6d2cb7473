//! The state of one replication group and the entry points its driver calls.
//!
//! The other files of this module add the behaviour, one subject each, as further `impl Group` blocks: `admission`
//! (a write arrives), `marks` (what survives a crash), `cut` (epochs, seals, points), `spool`, `moving` and `overload` (when memory runs
//! short), `catchup` (bitmap, rounds, last cut), `compare` (blocks in doubt), `verify` (is the target the same?), `sending`,
//! `assembly`, `bases` and `recent` (parts, reads, deltas), `peer` (what the target says), `fence` (failback), `snapshot` (what status shows).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use blockio::{BLOCK, DirtyMap, LeafPool, SECTOR};
use bytes::Bytes;
use proto::ids::{Counter, DiskIndex, Lineage, Phase};
use proto::replication::{DiskSpec, OpenGroup};

use super::action::{Action, Change, Now, ReadId, WriteId};
use super::assembly::Assembly;
use super::catchup::BulkPart;
use super::catchup::CatchUp;
use super::cut::PendingPoint;
use super::epochs::Epochs;
use super::fence::Fence;
use super::flushes::{FlushId, Flushes};
use super::inflight::{InFlight, WriteTable};
use super::marks::{Tracked, Tracking};
use super::peer::Peer;
use super::queue::{QueuedSet, SetQueue};
use super::recent::Recent;
use super::rounds::Progress;
use super::sending::PendingRead;
use super::snapshot::Counters;
use super::spool::Spool;
use super::unreadable::Retry;
use super::verify::Verify;
use crate::changeset::{Captured, ChangeSet, Content};
use crate::rules::Rule;

/// Leaves of the dirty maps of a group: 64 MiB of bitmaps, enough to track 2 TiB block by block at a time; what goes
/// beyond is tracked in regions of 128 MiB.
pub(super) const LEAVES_MAX: usize = 16_384;

/// What a group is made of and what it may use.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// Name of the group.
    pub name: String,
    /// Name, size and logical block of its disks, in order.
    pub disks: Vec<DiskSpec>,
    /// Bytes that captured data may pin, the open set included.
    pub memory_bytes: u64,
    /// Bytes that the spool on the cache volume may have; 0 where there is none.
    pub spool_bytes: u64,
    /// Raw bytes of data in one part: the unit that is acknowledged, and sent again after a lost link.
    pub part_bytes: u64,
    /// Time between cuts.
    pub point_interval: Duration,
    /// Time between the end of one watch over the marks and the next (`marks`).
    pub watch_interval: Duration,
    /// Durable count of the agent's starts.
    pub source_start: u64,
    /// Random bytes made at this start.
    pub source_instance: [u8; 16],
    /// Whether a durable fence was found.
    pub fenced: bool,
    /// The newest failback that asked for a fence; 0 where none is known.
    pub fence_request: u64,
}

/// One protected disk as the core sees it.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) spec: DiskSpec,
    pub(super) sectors: u64,
    pub(super) blocks: u64,
    /// Blocks whose content the target lacks and no set holds.
    pub(super) dirty: DirtyMap,
    /// Blocks of which it is not known whether the target has their content.
    pub(super) suspect: DirtyMap,
    /// Blocks that could not be read when they were to be sent (`unreadable`).
    pub(super) unreadable: DirtyMap,
    /// Blocks that some set, already cut, holds as "on disk": a filter before the exact look-up in the sets.
    pub(super) held: DirtyMap,
    pub(super) flushes: Flushes,
}

impl Disk {
    pub(super) fn dirty_mut(&mut self) -> &mut DirtyMap {
        &mut self.dirty
    }

    pub(super) fn suspect_mut(&mut self) -> &mut DirtyMap {
        &mut self.suspect
    }
}

/// Whether writes are captured or only marked.
#[derive(Debug)]
pub(super) enum Mode {
    /// Writes are captured into the open set, the last of the queue.
    Streaming,
    /// Writes set dirty bits.
    CatchingUp(CatchUp),
}

/// A replication group's state machine. See the module's documentation.
#[derive(Debug)]
pub struct Group {
    pub(super) options: GroupOptions,
    pub(super) disks: Vec<Disk>,
    pub(super) writes: WriteTable,
    pub(super) epochs: Epochs,
    pub(super) mode: Mode,
    pub(super) queue: SetQueue,
    pub(super) spool: Spool,
    pub(super) recent: Recent,
    pub(super) progress: Progress,
    pub(super) fence: Fence,
    pub(super) tracked: Tracked,
    /// Flushes that the driver was asked for, by their numbers.
    pub(super) flushing: BTreeMap<u64, Vec<(DiskIndex, FlushId)>>,
    pub(super) flushes_asked: u64,
    pub(super) peer: Peer,
    pub(super) phase: Phase,
    pub(super) phases_used: u32,
    pub(super) lineage: Option<Lineage>,
    pub(super) counter: Counter,
    /// Number of the next set to be sealed; known once the target has said what it has.
    pub(super) next_number: Option<u64>,
    pub(super) points: Vec<PendingPoint>,
    pub(super) reads: BTreeMap<ReadId, PendingRead>,
    pub(super) reads_started: u64,
    pub(super) assemblies: BTreeMap<(u64, u32), Assembly>,
    pub(super) bulk: BTreeMap<u32, BulkPart>,
    pub(super) bulk_parts_used: u32,
    pub(super) verify: Option<Verify>,
    /// Blocks that are being mended: request, disk, block. Sets that have them are held back.
    pub(super) mends: BTreeMap<u32, (DiskIndex, u64)>,
    pub(super) actions: VecDeque<Action>,
    pub(super) now: Now,
    pub(super) last_cut: Duration,
    pub(super) last_cut_time: u64,
    pub(super) last_beat: Duration,
    pub(super) counters: Counters,
    pub(super) unreadable: Retry,
    ready: Vec<WriteId>,
    /// Time and epoch of each cut, for the judge.
    #[cfg(test)]
    pub(super) cuts: BTreeMap<u64, u64>,
}

impl Group {
    /// A group right after the agent's start, which knows of its disks what `tracking` says.
    #[must_use]
    pub fn new(options: GroupOptions, tracking: Tracking, now: Now) -> Self {
        let pool = LeafPool::new(LEAVES_MAX);
        let mut disks: Vec<Disk> = options
            .disks
            .iter()
            .map(|spec| Disk {
                sectors: spec.size / SECTOR,
                blocks: spec.size.div_ceil(BLOCK),
                held: DirtyMap::new(spec.size, &pool),
                dirty: DirtyMap::new(spec.size, &pool),
                suspect: DirtyMap::new(spec.size, &pool),
                unreadable: DirtyMap::new(spec.size, &pool),
                flushes: Flushes::default(),
                spec: spec.clone(),
            })
            .collect();
        let (tracked, reason) = Tracked::new(tracking, &mut disks);
        let key = tracked.intent.key();
        let fence = Fence::new(options.fenced, options.fence_request);
        let mut group = Self {
            writes: WriteTable::new(disks.len()),
            disks,
            epochs: Epochs::new(),
            mode: Mode::CatchingUp(CatchUp::new(reason)),
            queue: SetQueue::default(),
            spool: Spool::new(options.spool_bytes),
            recent: Recent::new(options.memory_bytes),
            progress: Progress::default(),
            fence,
            tracked,
            flushing: BTreeMap::new(),
            flushes_asked: 0,
            peer: Peer::new(now.mono),
            phase: Phase(0),
            phases_used: 0,
            lineage: key.map(|key| key.lineage),
            counter: key.map_or(Counter(0), |key| key.counter),
            next_number: None,
            points: Vec::new(),
            reads: BTreeMap::new(),
            reads_started: 0,
            assemblies: BTreeMap::new(),
            bulk: BTreeMap::new(),
            bulk_parts_used: 0,
            verify: None,
            mends: BTreeMap::new(),
            actions: VecDeque::new(),
            now,
            last_cut: now.mono,
            last_cut_time: 0,
            last_beat: now.mono,
            counters: Counters::new(now.mono),
            unreadable: Retry::default(),
            ready: Vec::new(),
            #[cfg(test)]
            cuts: BTreeMap::new(),
            options,
        };
        group.new_phase();
        group.open_spool();
        group
    }

    /// The next thing to do. Call until `None` after every event.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Time passes: cuts that are due, seals, the next parts to send. Call once per turn of the driver, before `poll`.
    pub fn advance(&mut self, now: Now) {
        self.now = now;
        self.cut_if_due();
        self.seal();
        self.pump_spool();
        self.pump();
        self.pump_flushes();
        self.pump_unreadable();
        self.pump_marks();
        self.pump_open();
        self.beat();
        self.note_state();
    }

    /// When `advance` has something to do though nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        (self.last_cut + self.options.point_interval).min(self.last_beat + super::peer::BEAT_INTERVAL)
    }

    /// A write in flight, for the driver that carries it out: disk, first sector, sectors, change.
    #[must_use]
    pub fn write(&self, id: WriteId) -> (DiskIndex, u64, u64, &Change) {
        let write = self.writes.at(id);
        (write.disk, write.sector, write.sectors, &write.change)
    }

    /// Gives a write that was admitted as `Change::Later` its content.
    pub fn fill(&mut self, id: WriteId, content: Bytes) {
        let write = self.writes.at_mut(id);
        assert_eq!(content.len() as u64, write.sectors * SECTOR, "the content covers what was admitted");
        write.crc = Some(blockio::crc32(&content));
        write.change = Change::Data(content);
    }

    /// A submitted write has ended. `ok` is false when the disk reported an error.
    pub fn write_done(&mut self, id: WriteId, ok: bool) {
        let mut ready = std::mem::take(&mut self.ready);
        let write = self.writes.remove(id, &mut ready);
        self.wrote(write.disk, write.block, write.blocks);
        if ok {
            self.no_longer_unreadable(write.disk, write.sector, write.sectors, write.epoch);
            self.write_succeeded(&write);
        } else if Rule::FailedWritesAreRead.holds() {
            self.is_on_disk(write.disk, write.block, write.blocks);
        }
        self.epochs.leave(write.epoch);
        for waiter in ready.drain(..) {
            self.prepare(waiter);
        }
        self.ready = ready;
        self.check_budget();
    }

    /// These blocks are being written, or were: they are on the disk for good after the next flush.
    pub(super) fn wrote(&mut self, disk: DiskIndex, block: u64, blocks: u64) {
        let regions = self.tracked.intent.layout().around(block, blocks);
        self.disks[disk.0 as usize].flushes.wrote(regions);
    }

    /// The set of the write's epoch takes its content (S3); without one the bitmap marks it (S6).
    fn write_succeeded(&mut self, write: &InFlight) {
        let Some(index) = self.queue.unsealed_for(write.epoch) else {
            if Rule::CompletionMarks.holds() {
                self.disks[write.disk.0 as usize].dirty.set(write.block, write.blocks);
            }
            return;
        };
        let content = match (&write.change, write.crc) {
            (Change::Data(bytes), Some(crc)) => Content::Captured(Captured::new(bytes.clone(), crc)),
            (Change::Data(bytes), None) => Content::Captured(Captured::checksummed(bytes.clone())),
            (Change::Zero, _) => Content::Zero,
            (Change::Later, _) => unreachable!("the driver gives the content before the write is done"),
        };
        self.queue.change(index, |set| set.insert(write.disk, write.sector, write.sectors, content));
    }

    /// What the disk holds there is not what the target has, after a failed write or flush, or because the target lost it:
    /// the open epoch reads it again (S3).
    pub(super) fn is_on_disk(&mut self, disk: DiskIndex, block: u64, blocks: u64) {
        let state = &mut self.disks[disk.0 as usize];
        match self.queue.open_index() {
            Some(index) => {
                self.queue.change(index, |set| set.on_disk(disk, block, blocks, state.sectors));
                state.held.set(block, blocks);
            }
            None => state.dirty.set(block, blocks),
        }
    }

    /// Opens the conversation with the target in the current phase.
    pub(super) fn open_message(&self) -> OpenGroup {
        OpenGroup {
            group: self.options.name.clone(),
            phase: self.phase.0,
            source_start: self.options.source_start,
            source_instance: self.options.source_instance.to_vec(),
            disks: self.disks.iter().map(|disk| disk.spec.clone()).collect(),
            lineage: self.lineage.map(|lineage| lineage.0.to_vec()).unwrap_or_default(),
            counter: self.counter.0,
        }
    }

    /// Begins a new phase: frames and acknowledgements of the old one count no more (L2, S8).
    pub(super) fn new_phase(&mut self) {
        self.phases_used += 1;
        self.mends.clear();
        self.recent.clear();
        self.phase = Phase(self.options.source_start << 32 | u64::from(self.phases_used));
    }

    /// Bytes in blocks that the target lacks or may lack.
    pub(super) fn dirty_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| (disk.dirty.count_blocks() + disk.suspect.count_blocks()) * BLOCK).sum()
    }

    /// A new open set for the current epoch.
    pub(super) fn new_open_set(&mut self) {
        let set = ChangeSet::new(self.epochs.current(), self.disks.len());
        self.queue.push(QueuedSet::new(set));
    }
}
