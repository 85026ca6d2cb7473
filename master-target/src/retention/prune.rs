//! The end of history: whole oldest generations go, by age or when the volume is full.
//!
//! Nothing newer depends on an older generation that is wholly applied, so nothing is rewritten. The point at which a
//! removed generation ended stays, as the start of the next one. Never removed: what is not applied durably (rule J6),
//! and the newest point (rule J7).

use std::time::Duration;

use proto::time::Timestamp;

use crate::amount::amount;
use crate::journal::{Generation, Journal, JournalResult, SegmentId, StartPoint, State, UndoWriter, Volume, lock};
use crate::rules::Rule;

/// Why a generation goes.
#[derive(Debug, Clone, Copy)]
enum Removed {
    ForAge,
    ForRoom { needed: u64 },
}

impl<V: Volume> Journal<V> {
    /// Removes the generations whose points are all older than `retention`. Gives how many.
    pub fn prune(&self, now: Timestamp, retention: Duration) -> JournalResult<usize> {
        let mut undo = lock(&self.undo);
        self.sync_undo(&mut undo)?;
        let oldest_kept = now.minus(retention);
        let mut removed = 0;
        loop {
            {
                let state = self.state();
                // Age stands still while there is no newer point (rules J7 and J10).
                let stands_still = state.manifest.open_bulk().is_some();
                if stands_still || is_pinned(&state) || !is_older(&state, oldest_kept) {
                    return Ok(removed);
                }
            }
            if !self.remove_oldest(&mut undo, Removed::ForAge)? {
                return Ok(removed);
            }
            removed += 1;
        }
    }

    /// Removes the oldest generation since so many bytes are needed, a reader's claim on it notwithstanding. False where
    /// nothing may go.
    pub(crate) fn give_up_oldest(&self, undo: &mut UndoWriter, needed: u64) -> JournalResult<bool> {
        self.sync_undo(undo)?;
        if !self.is_removable() {
            return Ok(false);
        }
        {
            let mut state = self.state();
            let oldest = state.manifest.generations.first().map_or(0, |generation| generation.id);
            for pin in state.pins.extract_if(.., |pin| pin.generation <= oldest) {
                tracing::warn!(generation = oldest, "a mount or restore ends: the volume is full, its point has to go");
                pin.revoke();
            }
        }
        self.remove_oldest(undo, Removed::ForRoom { needed })
    }

    fn is_removable(&self) -> bool {
        self.recovery_state().is_none() && removable(&self.state()).is_some()
    }

    fn remove_oldest(&self, undo: &mut UndoWriter, removed: Removed) -> JournalResult<bool> {
        if !self.is_removable() {
            return Ok(false);
        }
        let Some((oldest, start)) = removable(&self.state()) else { return Ok(false) };
        let last = oldest.last.unwrap_or(0);
        if undo.generation == oldest.id {
            // Its marks are durable and go into the manifest; nothing else of it is needed.
            undo.generation = 0;
            undo.segment = None;
        }
        let gone: Vec<SegmentId> = {
            let state = self.state();
            let forgotten = last.max(state.manifest.forgotten);
            let current = state.segments.keys().rfind(|id| id.is_redo()).copied();
            let segments = state.segments.iter();
            segments
                .filter(|(id, info)| match id.is_redo() {
                    true => Some(**id) != current && info.highest <= forgotten,
                    false => id.generation == oldest.id,
                })
                .map(|(id, _)| *id)
                .collect()
        };
        let (before, marks) = {
            let state = self.state();
            // The newest set may be among those that go: the source asks for its marks all the same.
            let newest_gone = state.sets.complete().range(..=last).next_back();
            (state.points(), newest_gone.map(|(_, set)| set.seal.marks))
        };
        self.update_manifest(|manifest| {
            manifest.generations.retain(|generation| generation.id != oldest.id);
            if let Some(next) = manifest.generations.first_mut() {
                next.start = start;
            }
            manifest.forgotten = manifest.forgotten.max(last);
            manifest.forgotten_marks = marks.unwrap_or(manifest.forgotten_marks);
            let forgotten = manifest.forgotten;
            manifest.phases.retain(|range| range.last.is_none_or(|last| last > forgotten));
            manifest.segments.retain(|segment| !gone.contains(&segment.id()));
        })?;
        let kept = self.state().points();
        let gone_points: Vec<u64> = before
            .iter()
            .map(|point| point.set.0)
            .filter(|set| !kept.iter().any(|other| other.set.0 == *set))
            .collect();
        match removed {
            Removed::ForRoom { needed } => {
                self.say_dropped(&gone_points, &format!("retention volume full, {} needed", amount(needed)));
            }
            Removed::ForAge => {
                if let (Some(first), points) = (gone_points.first(), gone_points.len()) {
                    let group = &self.options.group;
                    tracing::info!(
                        group,
                        points,
                        first,
                        through_set = last,
                        "points were removed: they are older than the retention"
                    );
                }
            }
        }
        {
            let mut state = self.state();
            state.sets.forget_through(last);
            state.undo.remove(&oldest.id);
            gone.iter().for_each(|id| {
                state.segments.remove(id);
            });
        }
        for id in gone {
            // A file that stays behind is removed at the next open.
            if let Err(error) = self.volume.remove(&id.to_string()) {
                tracing::warn!("{error}");
            }
        }
        Ok(true)
    }
}

fn is_pinned(state: &State) -> bool {
    let oldest = state.manifest.generations.first().map_or(0, |generation| generation.id);
    state.pins.iter().any(|pin| pin.generation <= oldest)
}

/// The oldest generation, if it may go, and the point that stays at the start of the next one.
fn removable(state: &State) -> Option<(Generation, Option<StartPoint>)> {
    let [oldest, next, ..] = &state.manifest.generations[..] else { return None };
    let is_applied = oldest.is_bulk()
        || oldest.last.is_some_and(|last| last <= state.applied_durable)
        || !Rule::RemovesBelowMark.holds();
    if !oldest.is_closed() || !is_applied {
        return None;
    }
    let start = if oldest.is_bulk() { None } else { end_point(state, oldest) };
    // The newest point is in a later generation, or stays at the start of one: or there is none at all.
    let stays = start.is_some() || state.point_times().last().is_none_or(|(newest, _)| is_after(newest, oldest, next));
    (stays || !Rule::NewestStays.holds()).then(|| (oldest.clone(), start))
}

/// Whether a point needs nothing of `oldest`.
fn is_after(point: u64, oldest: &Generation, next: &Generation) -> bool {
    point >= next.first && oldest.last.is_none_or(|last| point > last)
}

/// The point with which a stream generation ends.
fn end_point(state: &State, generation: &Generation) -> Option<StartPoint> {
    let last = generation.last?;
    if last < generation.first {
        return state.start_point().map(|point| point.to_start());
    }
    let point = state.point_of_set(last).map(|point| point.to_start());
    if Rule::StartIsPoint.holds() {
        return point;
    }
    point.or_else(|| Some(StartPoint { number: last, ..StartPoint::default() }))
}

/// Whether no point that only the oldest generation holds is as young as `oldest_kept`.
fn is_older(state: &State, oldest_kept: Timestamp) -> bool {
    let [_, next, ..] = &state.manifest.generations[..] else { return false };
    state.point_times().take_while(|(number, _)| *number < next.first).all(|(_, time)| time < oldest_kept)
}
