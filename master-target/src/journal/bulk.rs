//! Where generations begin and end: rotation, catching up, rollback, and starting history over.
//!
//! Each change is one durable replacement of the manifest, at a moment at which the segments and the disks already
//! agree with it (rules J3, J4, K5 and K6 of the review, L5).

use proto::ids::{Lineage, SetNumber};
use proto::replication::{PointKind, SealSet};
use proto::time::Timestamp;

use super::core::{Journal, lock};
use super::error::{JournalError, JournalResult};
use super::limits::GENERATIONS_MAX;
use super::manifest::{Generation, GenerationKind, Manifest};
use super::receive::RedoWriter;
use super::volume::Volume;
use crate::rules::Rule;

/// The open catching-up, as its writer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenBulk {
    /// Its generation.
    pub generation: u64,
    /// Content has to be saved before it is overwritten.
    pub keeps_undo: bool,
    /// The set that ends it.
    pub next_set: u64,
}

/// A rollback that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollback {
    /// The point that goes onto the disks.
    pub to: SetNumber,
    /// It is there, durably.
    pub is_done: bool,
}

impl<V: Volume> Journal<V> {
    /// Opens a bulk generation, or goes on with the open one (REVIEW K6). All sets have been applied (REVIEW K5).
    pub fn begin_bulk(&self, now: Timestamp) -> JournalResult<()> {
        let redo = lock(&self.redo);
        let mut undo = lock(&self.undo);
        self.check_running()?;
        {
            let mut state = self.state();
            state.now_us = state.now_us.max(now.0);
            if state.sets.is_building() {
                let what = "it begins a catching-up in the middle of a set".to_owned();
                return Err(JournalError::Protocol { what });
            }
            if let Some(bulk) = state.manifest.open_bulk() {
                let is_rollback = bulk.rollback_to.is_some();
                return if is_rollback {
                    Err(JournalError::State { what: "the group is failing back" })
                } else {
                    Ok(())
                };
            }
            if state.applied != state.durable || redo.is_dirty {
                return Err(JournalError::State { what: "sets are still to be applied" });
            }
        }
        // Durable before bulk data can reach a disk, or a replay would put old redo over it (rule J4).
        if Rule::MarkBeforeBulk.holds() {
            self.sync_undo(&mut undo)?;
        }
        let keeps_undo = !self.points().is_empty();
        let durable = self.state().durable;
        self.update_manifest(|manifest| {
            open_bulk(manifest, durable, now, Generation { keeps_undo, ..Default::default() });
        })
    }

    /// The open catching-up, about to be written: from now on the disks have to be synced before it can end.
    pub fn write_bulk(&self) -> JournalResult<OpenBulk> {
        self.check_running()?;
        let mut state = self.state();
        let bulk = state.manifest.open_bulk().filter(|_| !state.bulk_closing);
        let bulk = bulk.map(|bulk| OpenBulk { generation: bulk.id, keeps_undo: bulk.keeps_undo, next_set: bulk.first });
        let bulk = bulk.ok_or(JournalError::State { what: "no catching-up is open" })?;
        state.bulk_unsynced = true;
        Ok(bulk)
    }

    /// Ends the catching-up when its rest set is durable: one record seals that set and begins its generation. True
    /// where a sync of the disks has to come first. The caller holds redo, with nothing uncommitted.
    pub(super) fn close_bulk_if_ready(&self) -> JournalResult<bool> {
        let (number, now_us) = {
            let mut state = self.state();
            let Some(bulk) = state.manifest.open_bulk().filter(|bulk| bulk.rollback_to.is_none()) else {
                return Ok(false);
            };
            let number = bulk.first;
            let phase = state.manifest.phase_of(number);
            if !phase.is_some_and(|phase| state.sets.is_ready(phase, number) && state.sets.closes_bulk(phase, number)) {
                return Ok(false);
            }
            if state.bulk_unsynced {
                return Ok(true);
            }
            state.bulk_closing = true;
            (number, state.now_us)
        };
        let closed = self.update_manifest(|manifest| {
            let id = manifest.newest().id + 1;
            if let Some(bulk) = manifest.generations.last_mut() {
                bulk.closed = true;
            }
            manifest.generations.push(Generation { id, first: number, opened_us: now_us, ..Default::default() });
        });
        let mut state = self.state();
        state.bulk_closing = false;
        closed?;
        state.advance();
        state.durable = state.sets.head();
        Ok(false)
    }

    /// Begins the next generation where the newest is old or large enough (rules J3 and J10). It begins with what is not
    /// durable yet, parts of which may have arrived: redo is of no generation, and nothing of it is applied so early.
    pub fn rotate_if_due(&self, now: Timestamp) -> JournalResult<bool> {
        let _redo = lock(&self.redo);
        let durable = {
            let mut state = self.state();
            state.now_us = state.now_us.max(now.0);
            let newest = state.manifest.newest();
            if newest.is_bulk() || state.durable < newest.first {
                return Ok(false);
            }
            let age = now.since(Timestamp(newest.opened_us));
            let redo: u64 = state.sets.complete().range(newest.first..).map(|(_, set)| set.stored_bytes).sum();
            let runs: u64 = state.sets.complete().range(newest.first..).map(|(_, set)| set.runs.len() as u64).sum();
            let undo: u64 =
                state.segments.iter().filter(|(id, _)| id.generation == newest.id).map(|(_, s)| s.bytes).sum();
            let records = runs + state.undo.get(&newest.id).map_or(0, |records| records.len() as u64);
            let is_due = age >= self.options.generation_age
                || redo + undo >= self.options.generation_bytes
                || records >= self.options.generation_records;
            if !is_due {
                return Ok(false);
            }
            state.durable
        };
        self.update_manifest(|manifest| manifest.begin_generation(durable, now.0))?;
        Ok(true)
    }

    /// Ends a generation with each point up to `head` that bears a label or is application-consistent. Comes before these sets
    /// are durable for anybody, so that nothing of a later set is applied to the generation that ends.
    pub(super) fn end_generations_at_marked_points(&self, head: u64) -> JournalResult<()> {
        if !self.options.marked_points_end_generations {
            return Ok(());
        }
        let (marked, now_us) = {
            let state = self.state();
            let newest = state.manifest.newest();
            if newest.is_bulk() || state.manifest.generations.len() >= GENERATIONS_MAX {
                return Ok(());
            }
            let from = (state.durable + 1).max(newest.first);
            let fresh = state.sets.complete().range(from..).take_while(|(number, _)| **number <= head);
            let is_marked = |seal: &SealSet| !seal.label.is_empty() || seal.kind() == PointKind::App;
            let marked = fresh.filter(|(_, set)| set.seal.is_point && is_marked(&set.seal));
            (marked.map(|(number, _)| *number).collect::<Vec<u64>>(), state.now_us)
        };
        if marked.is_empty() {
            return Ok(());
        }
        self.update_manifest(|manifest| marked.into_iter().for_each(|last| manifest.begin_generation(last, now_us)))
    }

    /// Ends the newest generation with what is durable, and forgets what is in the making: the source begins a new phase. A
    /// catching-up that is open has no redo that could say anything, and a generation without sets neither.
    pub(super) fn end_generation_after_loss(&self, redo: &mut RedoWriter) -> JournalResult<()> {
        if let Some(segment) = redo.segment.take() {
            self.close_segment(segment)?;
        }
        redo.is_dirty = false;
        let (durable, now_us) = {
            let mut state = self.state();
            state.phase = None;
            state.sets.drop_building();
            let newest = state.manifest.newest();
            if newest.is_bulk() || newest.first > state.durable {
                return Ok(());
            }
            (state.durable, state.now_us)
        };
        self.update_manifest(|manifest| manifest.begin_generation(durable, now_us))
    }

    /// A block is about to be mended without undo: where the newest generation saved what it held, points to come would read
    /// that and not the disk. So a generation begins first (rule J11). All that is durable is applied.
    pub fn end_generation_that_saved(&self, disk: u32, block: u64) -> JournalResult<()> {
        let mut redo = lock(&self.redo);
        let (newest, durable, now_us) = {
            let state = self.state();
            let newest = state.manifest.newest();
            let is_full = state.manifest.generations.len() >= GENERATIONS_MAX;
            if newest.is_bulk() || newest.first > state.durable || is_full {
                return Ok(());
            }
            (newest.id, state.durable, state.now_us)
        };
        if !self.unsaved(newest, disk, block, 1)?.is_empty() || !Rule::RepairBeginsGeneration.holds() {
            return Ok(());
        }
        self.begin_after_durable(&mut redo, durable, now_us)
    }

    /// Begins to put a point onto the disks (rule L5), or chooses another one for a rollback that was begun. Sessions
    /// have ended and all sets are applied, unless a catching-up is open. The new lineage is durable before the first
    /// write, and the state that is left stays a point.
    pub fn begin_rollback(&self, to: SetNumber, lineage: Lineage, now: Timestamp) -> JournalResult<()> {
        // A session that was locked out may have left something that nobody waits for any more.
        if lock(&self.redo).is_dirty {
            self.sync()?;
        }
        let mut redo = lock(&self.redo);
        let mut undo = lock(&self.undo);
        self.check_running()?;
        if !self.lists(to) {
            return Err(JournalError::State { what: "the point is not in the journal" });
        }
        if redo.is_dirty {
            return Err(JournalError::State { what: "the journal is not synced" });
        }
        let rollback_undo_bytes = self.undo_bytes_of_rollback(to)?;
        if let Some(segment) = redo.segment.take() {
            self.close_segment(segment)?;
        }
        {
            let mut state = self.state();
            if state.manifest.open_bulk().is_none() && state.applied != state.durable {
                return Err(JournalError::State { what: "sets are still to be applied" });
            }
            state.phase = None;
            state.sets.drop_building();
        }
        self.sync_undo(&mut undo)?;
        drop(undo);
        self.check_room(rollback_undo_bytes)?;
        let durable = self.state().durable;
        self.update_manifest(|manifest| {
            manifest.lineage = lineage.to_vec();
            if let Some(range) = manifest.phases.last_mut() {
                range.last.get_or_insert(durable);
            }
            if manifest.open_bulk().is_none() {
                open_bulk(
                    manifest,
                    durable,
                    now,
                    Generation { keeps_undo: Rule::RollbackSaves.holds(), ..Default::default() },
                );
            }
            if let Some(bulk) = manifest.generations.last_mut() {
                (bulk.rollback_to, bulk.rollback_done) = (Some(to.0), false);
            }
        })
    }

    /// The rollback is on the disks, which were synced and marked.
    pub fn finish_rollback(&self) -> JournalResult<()> {
        {
            let state = self.state();
            if state.bulk_unsynced || state.manifest.open_bulk().is_none_or(|bulk| bulk.rollback_to.is_none()) {
                return Err(JournalError::State { what: "no rollback is on the disks" });
            }
        }
        self.update_manifest(|manifest| {
            if let Some(bulk) = manifest.generations.last_mut() {
                bulk.rollback_done = true;
            }
        })
    }

    /// The rollback that was begun, if one was.
    pub fn rollback(&self) -> Option<Rollback> {
        let state = self.state();
        let bulk = state.manifest.open_bulk()?;
        Some(Rollback { to: SetNumber(bulk.rollback_to?), is_done: bulk.rollback_done })
    }
}

/// Ends the newest stream generation with `durable` and puts an open bulk generation behind it. Generations that were
/// begun for sets that never came go, and leave the point at their start to the bulk.
fn open_bulk(manifest: &mut Manifest, durable: u64, now: Timestamp, template: Generation) {
    let id = manifest.newest().id + 1;
    let mut start = None;
    while let Some(unused) = manifest.generations.pop_if(|newest| !newest.is_bulk() && newest.first > durable) {
        start = unused.start;
    }
    if let Some(newest) = manifest.generations.last_mut()
        && !newest.is_bulk()
    {
        newest.last = Some(durable);
    }
    let kind = i32::from(GenerationKind::Bulk);
    manifest.generations.push(Generation { id, kind, first: durable + 1, start, opened_us: now.0, ..template });
}
