//! The journal of one group: who holds which lock, how the manifest changes, and what stops everything.
//!
//! Three threads meet here: one receives (`receive`), one applies (`undo`, called by `crate::apply`), and any number
//! read points. `redo` and `undo` are held by their thread across its I/O; `state` never is. Locks are taken in the
//! order redo, undo, manifest, sums, tails, one tail, state; that of the cached pages of indexes is taken last, and held
//! with none but sums.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::ids::{Counter, Lineage, SetNumber};

use super::error::{JournalError, JournalResult};
use super::header::{CommitHeader, SegmentBytes, SegmentHeader, SegmentId};
use super::index::{PageCache, UndoTail};
use super::limits::{GENERATION_RECORDS_MAX, RESERVE_BYTES, SEGMENT_BYTES_MAX};
use super::manifest::{MANIFEST, Manifest, RecoveryRecord};
use super::receive::RedoWriter;
use super::room::WhenFull;
use super::segment::SegmentWriter;
use super::state::{Pin, State};
use super::sums::Sums;
use super::undo::UndoWriter;
use super::volume::{Volume, VolumeError};
use crate::rules::Rule;

/// What can be chosen about a journal.
#[derive(Debug, Clone)]
pub struct Options {
    /// Age at which a generation is followed by the next.
    pub generation_age: Duration,
    /// Bytes at which it is; zero stands for 1/16 of the volume.
    pub generation_bytes: u64,
    /// Redo and undo records at which it is.
    pub generation_records: u64,
    /// Bytes at which a segment is followed by the next.
    pub segment_bytes: u64,
    /// Bytes of the volume that stay free, 1/16 of it at most.
    pub reserve_bytes: u64,
    /// What gives way on a full volume.
    pub when_full: WhenFull,
    /// Bytes that the journal may take of the volume; none: all of it.
    pub size_max: Option<u64>,
    /// Points younger than this are not given up for want of room.
    pub keep_at_least: Duration,
    /// A point with a label or of quiesced machines ends its generation, so that it stays a point when redo is thinned.
    pub marked_points_end_generations: bool,
    /// How log lines call the group.
    pub group: String,
    /// Memory for first-touch bits, in leaves of 4 KiB that each map 128 MiB of a disk.
    pub first_touch_leaves: usize,
    /// Randomness of a new journal: its own identity and its lineage. The system's where there is none.
    pub identity: Option<[u8; 32]>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            generation_age: Duration::from_secs(3600),
            generation_bytes: 0,
            generation_records: GENERATION_RECORDS_MAX,
            segment_bytes: SEGMENT_BYTES_MAX,
            reserve_bytes: RESERVE_BYTES,
            when_full: WhenFull::DropOldest,
            size_max: None,
            keep_at_least: Duration::ZERO,
            marked_points_end_generations: false,
            group: String::new(),
            first_touch_leaves: 8192,
            identity: None,
        }
    }
}

/// The journal of one group on a volume.
#[derive(Debug)]
pub struct Journal<V> {
    pub(crate) volume: V,
    pub(crate) options: Options,
    pub(super) redo: Mutex<RedoWriter>,
    pub(crate) undo: Mutex<UndoWriter>,
    pub(crate) sums: Mutex<Sums>,
    pub(crate) manifest_io: Mutex<()>,
    pub(crate) state: Mutex<State>,
    pub(crate) pages: Mutex<PageCache>,
    pub(crate) tails: Mutex<BTreeMap<SegmentId, Arc<Mutex<UndoTail>>>>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<V: Volume> Journal<V> {
    /// The state, for as short as possible.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The volume, for readers.
    pub(crate) fn volume(&self) -> &V {
        &self.volume
    }

    /// Identity of the history (rule L1).
    pub fn lineage(&self) -> Lineage {
        Lineage::from_slice(&self.state().manifest.lineage).unwrap_or(Lineage([0; 16]))
    }

    /// Counter of the newest acknowledgement (rule L1).
    pub fn counter(&self) -> Counter {
        Counter(self.state().counter)
    }

    /// The last set that may be acknowledged.
    pub fn last_durable_set(&self) -> SetNumber {
        SetNumber(self.state().durable)
    }

    /// Sets up to this one are on the disks.
    pub fn applied_set(&self) -> SetNumber {
        SetNumber(self.state().applied)
    }

    /// Redo of durable sets that are not on the disks yet, bytes.
    pub fn unapplied_bytes(&self) -> u64 {
        let state = self.state();
        let waiting = state.sets.complete().range(state.applied + 1..);
        waiting.take_while(|(number, _)| **number <= state.durable).map(|(_, set)| set.stored_bytes).sum()
    }

    /// True while catching up: the disks are a mixture.
    pub fn bulk_open(&self) -> bool {
        self.state().manifest.open_bulk().is_some()
    }

    /// True once anything was replicated.
    pub fn has_history(&self) -> bool {
        let state = self.state();
        state.durable > 0 || state.manifest.open_bulk().is_some()
    }

    /// True where a catching-up has written to the disks since they were synced.
    pub fn needs_bulk_sync(&self) -> bool {
        self.state().bulk_unsynced
    }

    /// Refuses a range that is not on the disks of the group.
    pub fn check_sectors(&self, disk: u32, sector: u64, sectors: u64) -> JournalResult<()> {
        if self.state().manifest.has_sectors(disk, sector, sectors) {
            return Ok(());
        }
        let what = format!("{sectors} sectors at sector {sector} are not on disk {disk} of the group");
        Err(JournalError::Protocol { what })
    }

    /// Bytes that the journal takes on its volume.
    pub fn stored_bytes(&self) -> u64 {
        self.state().bytes()
    }

    /// How log lines call the group.
    pub(crate) fn group(&self) -> &str {
        &self.options.group
    }

    /// Name of a disk, for log lines.
    pub(crate) fn disk_name(&self, disk: u32) -> String {
        self.state().manifest.disks.get(disk as usize).map_or_else(String::new, |disk| disk.name.clone())
    }

    /// Bytes of a disk.
    pub fn disk_bytes(&self, disk: u32) -> JournalResult<u64> {
        let size = self.state().manifest.disks.get(disk as usize).map(|disk| disk.size);
        size.ok_or(JournalError::State { what: "there is no disk of this index" })
    }

    /// The failback that is under way or done; none while the group replicates.
    pub fn recovery_state(&self) -> Option<RecoveryRecord> {
        self.state().manifest.recovery.clone()
    }

    /// Records durably where the group stands with a failback. While there is a record no point is removed. Where the point
    /// that it `needs` has gone, nothing is recorded.
    pub fn set_recovery_state(&self, record: Option<RecoveryRecord>, needs: Option<SetNumber>) -> JournalResult<()> {
        // Whoever removes points holds it from the decision on.
        let _undo = lock(&self.undo);
        if let Some(SetNumber(set)) = needs.filter(|set| !self.lists(*set)) {
            return Err(JournalError::PointGone { set });
        }
        self.update_manifest(|manifest| manifest.recovery = record)
    }

    /// Begins a new history: the disks are not what the journal left. Points that end at the disks would show what
    /// somebody else wrote, so all are given up; the source sees the new lineage and sends everything.
    pub fn begin_lineage(&self, lineage: Lineage) -> JournalResult<()> {
        let given_up = self.points().len();
        tracing::error!(points = given_up, "the disks were written by somebody else: all points before are given up");
        let mut redo = lock(&self.redo);
        if let Some(segment) = redo.segment.take() {
            self.close_segment(segment)?;
        }
        let durable = self.state().durable;
        let sums_since = self.next_sums_number();
        self.update_manifest(|manifest| {
            manifest.lineage = lineage.to_vec();
            manifest.sums_since = sums_since;
            manifest.floor = durable + 1;
            manifest.pinned.clear();
            if let Some(range) = manifest.phases.last_mut() {
                range.last.get_or_insert(durable);
            }
        })?;
        lock(&self.sums).begin(sums_since);
        let mut state = self.state();
        state.phase = None;
        state.sets.drop_building();
        state.pins.drain(..).for_each(|pin| pin.revoke());
        Ok(())
    }

    /// A reader has ended.
    pub(crate) fn unpin(&self, pin: &Arc<Pin>) {
        let is_last = {
            let mut state = self.state();
            state.pins.retain(|known| !Arc::ptr_eq(known, pin));
            state.pins.is_empty()
        };
        if is_last {
            lock(&self.tails).clear();
        }
    }

    /// Refuses to write after a failure.
    pub(crate) fn check_running(&self) -> JournalResult<()> {
        match self.state().stopped.clone() {
            Some(reason) if Rule::FailureStops.holds() => Err(JournalError::Stopped { reason }),
            _ => Ok(()),
        }
    }

    /// Whether a write or sync has failed: it has to be opened anew.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.check_running().is_err()
    }

    /// A write or sync failed: what is on the disk is unknown, so nothing is written until it was checked (rule J13).
    pub(crate) fn stop(&self, error: VolumeError) -> JournalError {
        self.state().stopped.get_or_insert_with(|| error.to_string());
        error.into()
    }

    /// Changes the manifest: durable first, visible then.
    pub(crate) fn update_manifest(&self, change: impl FnOnce(&mut Manifest)) -> JournalResult<()> {
        let _order = lock(&self.manifest_io);
        self.check_running()?;
        let mut manifest = {
            let state = self.state();
            let mut manifest = state.manifest.clone();
            // A note brings a counter of its own, which the state learns afterwards.
            manifest.counter = manifest.counter.max(state.counter);
            manifest.applied = state.applied_durable;
            manifest.open_segments = state.open_segments();
            manifest
        };
        change(&mut manifest);
        self.volume.replace(MANIFEST, &manifest.encode_file()).map_err(|error| self.stop(error))?;
        self.state().manifest = manifest;
        Ok(())
    }

    /// Lets the manifest vouch for what is durable of the open segments, where no commit record will for a while: call it every
    /// second. While sets arrive and are applied, their commits do (rule J16).
    pub fn vouch_when_idle(&self) -> JournalResult<()> {
        let is_idle = {
            let mut state = self.state();
            let synced = state.synced.clone();
            let is_same = std::mem::replace(&mut state.synced_before, synced) == state.synced;
            is_same && state.open_segments() != state.manifest.open_segments
        };
        if is_idle && Rule::SegmentsVouch.holds() { self.update_manifest(|_| {}) } else { Ok(()) }
    }

    /// Makes a segment and lets it be known.
    pub(crate) fn create_segment(&self, id: SegmentId, phase: u64) -> JournalResult<SegmentWriter> {
        let journal = self.state().manifest.journal.clone();
        let head = SegmentHeader { journal, generation: id.generation, index: id.index, phase };
        let writer = SegmentWriter::create(&self.volume, id, &head).map_err(|error| self.stop(error))?;
        self.state().segments.entry(id).or_default().bytes = writer.len();
        Ok(writer)
    }

    /// Ends a segment of which everything has to be durable: from now on the manifest vouches for it.
    pub(crate) fn close_segment(&self, mut writer: SegmentWriter) -> JournalResult<()> {
        writer.sync(&self.volume).map_err(|error| self.stop(error))?;
        let (id, bytes) = (writer.id(), writer.len());
        self.volume.finish(&id.to_string());
        {
            let mut state = self.state();
            state.segments.entry(id).or_default().bytes = bytes;
            state.synced.remove(&id);
        }
        self.update_manifest(|manifest| {
            manifest.segments.push(SegmentBytes::of(id, bytes));
        })
    }

    /// The header of a commit record in redo or undo, with a counter that was never used. Before a source is there it stands
    /// still: nobody is told of it, and a journal that came back from an image must not catch up with what its source knows
    /// (rule L1).
    pub(crate) fn next_commit(&self, id: SegmentId, synced_bytes: u64) -> CommitHeader {
        let mut state = self.state();
        if state.is_greeted {
            state.counter_given += 1;
        }
        let journal = state.manifest.journal.clone();
        let other = state.synced.iter().find(|(other, _)| other.is_redo() != id.is_redo());
        let other = other.map(|(other, bytes)| SegmentBytes::of(*other, *bytes));
        CommitHeader { counter: state.counter_given, synced_bytes, applied: state.applied, journal, other }
    }
}
