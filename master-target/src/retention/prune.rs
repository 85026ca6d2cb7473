//! The end of history: whole oldest generations go, by age or when the volume is full.
//!
//! Nothing newer depends on an older generation that is wholly applied, so nothing is rewritten. The point at which a
//! removed generation ended stays, as the start of the next one. Never removed: what is not applied durably (rule J6),
//! and the newest point (rule J7).
//!
//! Age is judged by two clocks, that of the target and that of the source, which gave the points their times: a point is
//! old when both say so ([`time_for_ages`]). A clock that jumps forward takes nothing away; one that jumps back only keeps
//! points longer.

use std::time::Duration;

use proto::time::Timestamp;

use crate::amount::amount;
use crate::journal::{
    Generation, Journal, JournalResult, Manifest, SegmentId, StartPoint, State, UndoWriter, Volume, lock,
};

/// Why a generation goes.
#[derive(Debug, Clone, Copy)]
enum Removed {
    ForAge,
    ForRoom { needed: u64 },
}

/// What time it is where points' ages are concerned: the earlier of both machines' clocks. That of the source is known by
/// its newest point, and by its heartbeats while it is connected; while it is not, age stands still.
#[must_use]
pub fn time_for_ages(now: Timestamp, newest_point: Option<Timestamp>, source: Option<Timestamp>) -> Timestamp {
    newest_point.max(source).map_or(now, |source| source.min(now))
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
                let mut state = self.state();
                // Age stands still while there is no newer point (rules J7 and J10).
                let stands_still = state.manifest.open_bulk().is_some();
                if stands_still || is_pinned(&state) || !is_older(&state, oldest_kept) {
                    return Ok(removed);
                }
                state.closed_through = state.manifest.generations.first().map(|oldest| oldest.id);
            }
            let done = self.remove_oldest(&mut undo, Removed::ForAge);
            self.state().closed_through = None;
            if !done? {
                return Ok(removed);
            }
            removed += 1;
        }
    }

    /// Removes the oldest generation since so many bytes are needed, a reader's claim on it notwithstanding. False where
    /// nothing may go.
    pub(crate) fn give_up_oldest(&self, undo: &mut UndoWriter, needed: u64) -> JournalResult<bool> {
        self.sync_undo(undo)?;
        let going: Vec<u64> = {
            let state = self.state();
            let Some((_, start)) = removable(&state) else { return Ok(false) };
            let kept_from = start.map_or_else(|| state.manifest.generations[1].first, |start| start.number);
            state.point_times().map(|(set, _)| set).filter(|set| *set < kept_from).collect()
        };
        if self.recovery_state().is_some() || !self.may_give_up(&going) {
            return Ok(false);
        }
        {
            let mut state = self.state();
            let oldest = state.manifest.generations.first().map_or(0, |generation| generation.id);
            for pin in state.pins.extract_if(.., |pin| pin.generation <= oldest) {
                tracing::warn!(generation = oldest, "a mount or restore ends: the volume is full, its point has to go");
                pin.revoke();
            }
            state.closed_through = Some(oldest);
        }
        let done = self.remove_oldest(undo, Removed::ForRoom { needed });
        self.state().closed_through = None;
        done
    }

    /// Whether points may go for want of room: none is pinned, none is so young that it is promised.
    pub(crate) fn may_give_up(&self, going: &[u64]) -> bool {
        let state = self.state();
        let promised = Timestamp(state.now_us).minus(self.options.keep_at_least);
        let is_promised = |time: Timestamp| !self.options.keep_at_least.is_zero() && time > promised;
        let is_kept = |set: u64, time| state.manifest.pinned.contains(&set) || is_promised(time);
        !state.point_times().any(|(set, time)| going.contains(&set) && is_kept(set, time))
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
        let own_undo: Vec<SegmentId> = {
            let state = self.state();
            state.segments.keys().filter(|id| !id.is_redo() && id.generation == oldest.id).copied().collect()
        };
        let before = self.points();
        self.forget_redo(last, &own_undo, |manifest| {
            manifest.generations.retain(|generation| generation.id != oldest.id);
            if let Some(next) = manifest.generations.first_mut() {
                next.start = start;
            }
        })?;
        self.state().undo.remove(&oldest.id);
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
        Ok(true)
    }

    /// Forgets the redo of sets up to `last`, in one manifest with `change`, then removes the files that nobody needs any more:
    /// redo segments of such sets alone, and the undo segments `undo_gone`.
    pub(super) fn forget_redo(
        &self,
        last: u64,
        undo_gone: &[SegmentId],
        change: impl FnOnce(&mut Manifest),
    ) -> JournalResult<()> {
        let (gone, marks) = {
            let state = self.state();
            let forgotten = last.max(state.manifest.forgotten);
            let current = state.segments.keys().rfind(|id| id.is_redo()).copied();
            let is_spent = |id: &SegmentId, highest| id.is_redo() && Some(*id) != current && highest <= forgotten;
            let redo = state.segments.iter().filter(|(id, info)| is_spent(id, info.highest)).map(|(id, _)| *id);
            let gone: Vec<SegmentId> = redo.chain(undo_gone.iter().copied()).collect();
            // The newest set may be among those that go: the source asks for its marks all the same.
            let newest_gone = state.sets.complete().range(..=last).next_back();
            (gone, newest_gone.map(|(_, set)| set.seal.marks))
        };
        self.update_manifest(|manifest| {
            change(manifest);
            manifest.forgotten = manifest.forgotten.max(last);
            manifest.forgotten_marks = marks.unwrap_or(manifest.forgotten_marks);
            let forgotten = manifest.forgotten;
            manifest.phases.retain(|range| range.last.is_none_or(|last| last > forgotten));
            manifest.segments.retain(|segment| !gone.contains(&segment.id()));
        })?;
        self.state().sets.forget_through(last);
        self.remove_files(gone);
        Ok(())
    }

    /// Removes segments that the manifest does not know any more.
    pub(super) fn remove_files(&self, gone: Vec<SegmentId>) {
        self.state().layout += 1;
        for id in gone {
            self.state().segments.remove(&id);
            // A file that stays behind is removed at the next open.
            if let Err(error) = self.volume.remove(&id.to_string()) {
                tracing::warn!("{error}");
            }
            self.forget_index(id);
        }
    }
}

fn is_pinned(state: &State) -> bool {
    let oldest = state.manifest.generations.first().map_or(0, |generation| generation.id);
    state.pins.iter().any(|pin| pin.generation <= oldest)
}

/// The oldest generation, if it may go, and the point that stays at the start of the next one.
fn removable(state: &State) -> Option<(Generation, Option<StartPoint>)> {
    let [oldest, next, ..] = &state.manifest.generations[..] else { return None };
    let is_applied = oldest.is_bulk() || oldest.last.is_some_and(|last| last <= state.applied_durable);
    if !oldest.is_closed() || !is_applied {
        return None;
    }
    let is_thinned = oldest.last.is_some_and(|last| last <= state.manifest.forgotten);
    let start = match next.start.clone() {
        Some(start) => Some(start),
        None if oldest.is_bulk() || is_thinned => None,
        None => end_point(state, oldest),
    };
    // The newest point is in a later generation, or stays at the start of one: or there is none at all.
    let stays = start.is_some() || state.point_times().last().is_none_or(|(newest, _)| is_after(newest, oldest, next));
    // A pinned point needs its generation, unless it stays at the start of the next.
    let first_kept = start.as_ref().map_or(next.first, |start| start.number);
    let is_wanted = state.manifest.pinned.first().is_some_and(|set| *set < first_kept);
    (stays && !is_wanted).then(|| (oldest.clone(), start))
}

/// Whether a point needs nothing of `oldest`.
fn is_after(point: u64, oldest: &Generation, next: &Generation) -> bool {
    point >= next.first && oldest.last.is_none_or(|last| point > last)
}

/// The point with which a stream generation ends.
pub(super) fn end_point(state: &State, generation: &Generation) -> Option<StartPoint> {
    let last = generation.last?;
    if last < generation.first {
        return generation.start.clone();
    }
    state.point_of_set(last).map(|point| point.to_start())
}

/// Whether no point that only the oldest generation holds is as young as `oldest_kept`.
fn is_older(state: &State, oldest_kept: Timestamp) -> bool {
    let [_, next, ..] = &state.manifest.generations[..] else { return false };
    state.point_times().take_while(|(number, _)| *number < next.first).all(|(_, time)| time < oldest_kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_clock_that_jumps_forward_makes_no_point_old() {
        let (now, newest) = (Timestamp(1 << 50), Timestamp((1 << 50) - 2_000_000));
        let heard = Some(now);
        assert_eq!(time_for_ages(now, Some(newest), heard), now);
        assert_eq!(time_for_ages(now.plus(HOUR * 48), Some(newest), heard), now, "the target's");
        assert_eq!(time_for_ages(now, Some(newest), Some(now.plus(HOUR * 48))), now, "the source's");
        assert_eq!(time_for_ages(now, Some(now.plus(HOUR * 48)), heard), now, "the source's, before a point");
    }

    #[test]
    fn a_clock_that_jumps_back_and_a_source_that_is_away_only_keep_points_longer() {
        let (now, newest) = (Timestamp(1 << 50), Timestamp((1 << 50) - 2_000_000));
        assert!(time_for_ages(now.minus(HOUR * 5), Some(newest), Some(now)) < newest);
        assert_eq!(time_for_ages(now.plus(HOUR * 99), Some(newest), None), newest, "away");
        assert_eq!(time_for_ages(now, None, None), now, "there is nothing to be old");
    }
}
