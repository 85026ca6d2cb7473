//! Room on the volume: what is accepted has room for its redo and its worst undo, and what gives way where there is none
//! (rule J10).
//!
//! With [`WhenFull::DropOldest`], in this order: the oldest closed generations; the current one, once all of it is applied
//! and its end is a point; then history restarts, which is decided when a set finds no room for its undo. With
//! [`WhenFull::Pause`] nothing gives way. Either way what is refused was not written, and is taken when there is room.
//!
//! Invariant: the newest point goes only when a newer one stays (rule J7).

use proto::ids::SetNumber;

use super::core::{Journal, lock};
use super::error::{JournalError, JournalResult};
use super::header::SegmentId;
use super::receive::RedoWriter;
use super::undo::UndoWriter;
use super::volume::Volume;
use crate::rules::Rule;

/// What gives way when the retention volume is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// The oldest points, so that replication goes on.
    #[default]
    DropOldest,
    /// Nothing: no more sets are taken until there is room.
    Pause,
}

impl<V: Volume> Journal<V> {
    /// Makes sure of room for a frame, for its worst undo and for that of everything accepted; gives up old history
    /// where it must and may.
    pub(super) fn make_room(&self, redo: &mut RedoWriter, frame_bytes: u64, undo_bytes: u64) -> JournalResult<()> {
        let bytes = frame_bytes + undo_bytes;
        {
            let mut state = self.state();
            if state.room >= bytes {
                state.room -= bytes;
                return Ok(());
            }
        }
        loop {
            let free = self.free_bytes()?;
            let needed = {
                let mut state = self.state();
                let promised = state.sets.undo_bytes_after(state.applied);
                let (promised, bytes) = if Rule::UndoHasRoom.holds() { (promised, bytes) } else { (0, frame_bytes) };
                let needed = bytes.saturating_add(promised).saturating_add(self.options.reserve_bytes);
                if let Some(left) = free.checked_sub(needed) {
                    // Measured again after a sixteenth of what is left, 16 MiB at most: other groups write here too.
                    state.room = (left / 16).min(16 << 20);
                    return Ok(());
                }
                state.room = 0;
                needed
            };
            if self.give_way(redo, needed)? {
                continue;
            }
            // Sooner than that replication stops, history restarts: the set is applied without undo where there is no
            // room for it then.
            let without_undo = frame_bytes.saturating_add(self.options.reserve_bytes);
            return if self.may_drop() && !self.bulk_open() && free >= without_undo {
                Ok(())
            } else {
                Err(JournalError::Full { needed, free })
            };
        }
    }

    /// Makes sure of room for undo, which was promised when its set was accepted: half of the reserve may be used.
    pub(crate) fn make_room_for_undo(&self, bytes: u64, undo: &mut UndoWriter) -> JournalResult<()> {
        loop {
            let free = self.free_bytes()?;
            let needed = bytes.saturating_add(self.options.reserve_bytes / 2);
            if free >= needed {
                return Ok(());
            }
            if !(self.may_drop() && self.give_up_oldest(undo, needed)?) {
                return Err(JournalError::Full { needed, free });
            }
        }
    }

    /// Whether so many bytes of undo could be written, before something that can't be left half done is begun.
    pub(crate) fn check_room(&self, bytes: u64) -> JournalResult<()> {
        let free = self.free_for_undo()?;
        if free >= bytes { Ok(()) } else { Err(JournalError::Full { needed: bytes, free }) }
    }

    /// Bytes of undo that could be written: half of the reserve may be used for it.
    pub(crate) fn free_for_undo(&self) -> JournalResult<u64> {
        Ok(self.free_bytes()?.saturating_sub(self.options.reserve_bytes / 2))
    }

    /// Whether so many bytes are free, after everything was given up that may be.
    pub fn find_room(&self, bytes: u64) -> JournalResult<bool> {
        let mut redo = lock(&self.redo);
        self.check_running()?;
        loop {
            if self.free_bytes()? >= bytes {
                return Ok(true);
            }
            if !self.give_way(&mut redo, bytes)? {
                return Ok(false);
            }
        }
    }

    /// Bytes that may still be written: of the volume, and of what the group may take of it.
    pub(crate) fn free_bytes(&self) -> JournalResult<u64> {
        let free = self.volume.free_bytes()?;
        let allowed = self.options.size_max.map_or(u64::MAX, |most| most.saturating_sub(self.stored_bytes()));
        Ok(free.min(allowed))
    }

    /// Whether points may be given up for room at all.
    fn may_drop(&self) -> bool {
        self.options.when_full == WhenFull::DropOldest && self.recovery_state().is_none()
    }

    /// Gives up what comes first of what may go. False where nothing may.
    fn give_way(&self, redo: &mut RedoWriter, needed: u64) -> JournalResult<bool> {
        if !self.may_drop() {
            return Ok(false);
        }
        let mut undo = lock(&self.undo);
        if self.give_up_oldest(&mut undo, needed)? {
            return Ok(true);
        }
        Ok(self.end_current(redo, &mut undo)? && self.give_up_oldest(&mut undo, needed)?)
    }

    /// Ends the current generation early, so that it can be given up: all its sets are applied, durably, and the last is
    /// a point. Sets that are in the making belong to the next one.
    fn end_current(&self, redo: &mut RedoWriter, undo: &mut UndoWriter) -> JournalResult<bool> {
        self.sync_undo(undo)?;
        let (durable, now_us) = {
            let state = self.state();
            let newest = state.manifest.newest();
            let is_over = state.manifest.generations.len() == 1
                && !newest.is_bulk()
                && state.durable >= newest.first
                && state.applied_durable == state.durable
                && state.point_of_set(state.durable).is_some();
            if !is_over {
                return Ok(false);
            }
            (state.durable, state.now_us)
        };
        self.begin_after_durable(redo, durable, now_us)?;
        Ok(true)
    }

    /// Begins a generation right after what is durable. Sets that are in the making belong to it; the segment goes with the
    /// sets before them, so what comes stands in another one.
    pub(super) fn begin_after_durable(&self, redo: &mut RedoWriter, durable: u64, now_us: u64) -> JournalResult<()> {
        if let Some(segment) = redo.segment.take() {
            self.close_segment(segment)?;
            let id = SegmentId::redo(redo.next_index);
            redo.next_index += 1;
            redo.segment = Some(self.create_segment(id, redo.phase)?);
        }
        self.update_manifest(|manifest| manifest.begin_generation(durable, now_us))
    }

    /// Gives up every point below this set where its undo can't be kept: it is the next one to be applied. False where
    /// that would leave no point at all, or nothing may be given up (rule J7).
    pub fn restart_history(&self, number: SetNumber) -> JournalResult<bool> {
        let mut undo = lock(&self.undo);
        let points = {
            let state = self.state();
            let given_up: Vec<u64> = state.point_times().map(|(point, _)| point).collect();
            let stays = given_up.last().is_none_or(|newest| *newest >= number.0);
            if !stays {
                return Ok(false);
            }
            given_up.into_iter().filter(|point| *point < number.0).collect::<Vec<_>>()
        };
        if !self.may_drop() || !self.may_give_up(&points) {
            return Ok(false);
        }
        self.update_manifest(|manifest| manifest.floor = manifest.floor.max(number.0))?;
        self.say_dropped(&points, "retention volume full, history restarts");
        {
            let mut state = self.state();
            state.pins.extract_if(.., |pin| pin.set < number.0).for_each(|pin| pin.revoke());
        }
        while self.give_up_oldest(&mut undo, 0)? {}
        Ok(true)
    }

    /// One line for the points that go for want of room.
    pub(crate) fn say_dropped(&self, points: &[u64], reason: &str) {
        if let (Some(first), Some(last)) = (points.first(), points.last()) {
            tracing::warn!("points {first}..{last} of group {} dropped: {reason}", self.options.group);
        }
    }
}
