//! How a group leaves a failback: cancelled, committed, or protected again. Each turn is one durable replacement of the
//! manifest, so a crash finds it done or not begun (rules S20, L5 and L7).
//!
//! A rollback that is left becomes a stretch of catching up: its undo stays, so older points do as well, and the source
//! compares everything and goes on from whatever the disks hold.

use proto::ids::Lineage;
use proto::time::Timestamp;

use super::core::{Journal, lock};
use super::error::{JournalError, JournalResult};
use super::manifest::{Generation, RecoveryRecord};
use super::volume::Volume;

/// Whether history stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// All points stay.
    Kept,
    /// All points and everything they need go; numbers and counter go on.
    Discarded,
}

/// Where a group turns to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Where it stands with a failback afterwards; none: it replicates.
    pub record: Option<RecoveryRecord>,
    /// A new identity of the history: the source must compare everything.
    pub lineage: Option<Lineage>,
    /// The failback whose fence its source may lift.
    pub cancelled: Option<u64>,
    /// What becomes of the points.
    pub history: History,
}

impl<V: Volume> Journal<V> {
    /// The failback whose fence the source may lift, for as long as the group replicates.
    pub fn cancelled_fence(&self) -> Option<u64> {
        let state = self.state();
        state.manifest.cancelled_fence.filter(|_| state.manifest.recovery.is_none())
    }

    /// The state before the rollback that is open, as the number of its set; none where none is, or where the group was
    /// catching up before.
    pub fn rollback_start(&self) -> Option<u64> {
        let state = self.state();
        let bulk = state.manifest.open_bulk().filter(|bulk| bulk.rollback_to.is_some())?;
        Some(bulk.first - 1)
    }

    /// Turns a group. With a new lineage or without history no session may be open, and nothing be unapplied.
    pub fn turn(&self, turn: Turn, now: Timestamp) -> JournalResult<()> {
        let mut redo = lock(&self.redo);
        let mut undo = lock(&self.undo);
        self.check_running()?;
        let is_new = turn.lineage.is_some() || turn.history == History::Discarded;
        if is_new {
            if let Some(segment) = redo.segment.take() {
                self.close_segment(segment)?;
            }
            self.sync_undo(&mut undo)?;
        }
        let is_discarded = turn.history == History::Discarded;
        let durable = {
            let state = self.state();
            if is_discarded && state.applied_durable != state.durable {
                return Err(JournalError::State { what: "sets are still to be applied" });
            }
            state.durable
        };
        let marks = self.marks();
        let sums_since = is_discarded.then(|| self.next_sums_number());
        let is_left = turn.record.is_none();
        let disks = u32::try_from(self.state().manifest.disks.len()).unwrap_or(0);
        self.update_manifest(|manifest| {
            manifest.recovery = turn.record;
            manifest.cancelled_fence = turn.cancelled.or(manifest.cancelled_fence);
            if let Some(bulk) = manifest.generations.last_mut().filter(|_| is_left) {
                (bulk.rollback_to, bulk.rollback_done) = (None, false);
            }
            if let Some(lineage) = turn.lineage {
                manifest.lineage = lineage.0.to_vec();
            }
            if is_new && let Some(range) = manifest.phases.last_mut() {
                range.last.get_or_insert(durable);
            }
            if is_discarded {
                let id = manifest.newest().id + 1;
                let fresh = Generation { id, first: durable + 1, opened_us: now.0, ..Default::default() };
                manifest.generations = vec![fresh];
                manifest.segments.clear();
                manifest.open_segments.clear();
                manifest.phases.clear();
                manifest.pinned.clear();
                // The source compares everything: what it has to send again is found so.
                manifest.damages.clear();
                (manifest.forgotten, manifest.forgotten_marks) = (durable, marks);
                manifest.floor = durable + 1;
            }
            manifest.sums_since = sums_since.unwrap_or(manifest.sums_since);
        })?;
        if let Some(since) = sums_since {
            lock(&self.sums).begin(since);
            for disk in 0..disks {
                // A table of before goes where it is looked at.
                self.sync_sums(disk)?;
            }
        }
        let mut state = self.state();
        if is_new {
            state.phase = None;
            state.sets.drop_building();
        }
        drop(state);
        if is_discarded {
            undo.generation = 0;
            undo.segment = None;
            self.remove_history(durable);
        }
        Ok(())
    }

    /// Removes the files of everything up to a set; the manifest knows none of them any more.
    fn remove_history(&self, durable: u64) {
        let gone: Vec<_> = {
            let mut state = self.state();
            state.pins.drain(..).for_each(|pin| pin.revoke());
            state.sets.forget_through(durable);
            state.undo.clear();
            state.synced.clear();
            (state.bulk_unsynced, state.room) = (false, 0);
            std::mem::take(&mut state.segments).into_keys().collect()
        };
        for id in gone {
            // A file that stays behind is removed at the next open.
            if let Err(error) = self.volume.remove(&id.to_string()) {
                tracing::warn!("{error}");
            }
            self.forget_index(id);
        }
    }
}
