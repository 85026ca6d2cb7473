//! Which sets are complete: the bookkeeping of parts, seals and the gapless run (rules L2, L3 and P3 of the protocol).
//!
//! A pure core: it is told where frames were appended and which parts and sets were closed, while sessions run and
//! when a journal is scanned alike, and says which sets count. Where records stand on disk is only carried along.

use std::collections::BTreeMap;

use proto::replication::SealSet;

use super::header::{PartClosed, SegmentId};
use super::shrink::Shrink;
use crate::rules::Rule;

/// Records that follow each other in a redo segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RedoRun {
    /// The segment.
    pub segment: SegmentId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

#[derive(Debug, Clone, Copy)]
struct FramePlace {
    run: RedoRun,
    sectors: u64,
    undo_bytes: u64,
    shrink: Shrink,
}

/// A part as far as it is here.
#[derive(Debug, Clone, Default)]
struct Part {
    frames: Vec<FramePlace>,
    is_closed: bool,
    is_durable: bool,
}

/// A set in the making.
#[derive(Debug, Clone, Default)]
struct Building {
    parts: BTreeMap<u32, Part>,
    seal: Option<SealSet>,
}

/// A set of the gapless run.
#[derive(Debug, Clone)]
pub struct CompleteSet {
    /// What the source said when it sealed it.
    pub seal: SealSet,
    /// Its frames, in the order of the parts.
    pub runs: Vec<RedoRun>,
    /// Bytes of them.
    pub stored_bytes: u64,
    /// How compressible its data is.
    pub shrink: Shrink,
    /// Most undo that applying it can need.
    pub undo_bytes: u64,
}

/// What came in, as [`Sets::add_frame`] sees it.
#[derive(Debug, Clone, Copy)]
pub struct NewFrame {
    /// Set number.
    pub number: u64,
    /// Part of the set.
    pub part: u32,
    /// Where it was appended.
    pub run: RedoRun,
    /// Sum of the sectors of its extents.
    pub sectors: u64,
    /// Most undo that applying it can need.
    pub undo_bytes: u64,
    /// How compressible its data is.
    pub shrink: Shrink,
}

/// The sets that are here, complete or not.
#[derive(Debug, Default)]
pub struct Sets {
    building: BTreeMap<(u64, u64), Building>,
    complete: BTreeMap<u64, CompleteSet>,
    head: u64,
}

impl Sets {
    /// No sets, and none before `head + 1` to come.
    #[must_use]
    pub fn starting_after(head: u64) -> Self {
        Self { head, ..Self::default() }
    }

    /// The last set of the gapless run.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Sets of the run that are still in redo, oldest first.
    pub fn complete(&self) -> &BTreeMap<u64, CompleteSet> {
        &self.complete
    }

    /// True while a set is in the making.
    #[must_use]
    pub fn is_building(&self) -> bool {
        !self.building.is_empty()
    }

    /// True while a set in the making has frames in this segment.
    #[must_use]
    pub fn is_building_in(&self, segment: SegmentId) -> bool {
        self.building.values().flat_map(Building::frames).any(|frame| frame.run.segment == segment)
    }

    /// Whether a part has all its frames, so that it need not be taken again.
    #[must_use]
    pub fn has_part(&self, phase: u64, number: u64, part: u32) -> bool {
        let building = self.building.get(&(phase, number));
        number <= self.head || building.and_then(|set| set.parts.get(&part)).is_some_and(|part| part.is_closed)
    }

    /// Whether the seal of a set is here.
    #[must_use]
    pub fn has_seal(&self, phase: u64, number: u64) -> bool {
        number <= self.head || self.building.get(&(phase, number)).is_some_and(|set| set.seal.is_some())
    }

    /// A frame was appended.
    pub fn add_frame(&mut self, phase: u64, frame: NewFrame) {
        let set = self.building.entry((phase, frame.number)).or_default();
        let NewFrame { run, sectors, undo_bytes, shrink, .. } = frame;
        let place = FramePlace { run, sectors, undo_bytes, shrink };
        set.parts.entry(frame.part).or_default().frames.push(place);
    }

    /// A part ends. Its frames are the last ones of it that were appended: those before were sent in a connection that
    /// was lost. The text says what is wrong with a part whose frames are not those announced.
    pub fn close_part(&mut self, phase: u64, closed: &PartClosed) -> Result<(), String> {
        let set = self.building.entry((phase, closed.number)).or_default();
        let part = set.parts.entry(closed.part).or_default();
        if part.is_closed {
            return Ok(());
        }
        let name = || format!("part {} of set {}", closed.part, closed.number);
        let Some(stale) = part.frames.len().checked_sub(closed.frames as usize) else {
            return Err(format!("{} ends with {} frames of {}", name(), part.frames.len(), closed.frames));
        };
        let sectors: u64 = part.frames[stale..].iter().map(|frame| frame.sectors).sum();
        if sectors != closed.sectors {
            return Err(format!("{} has {sectors} sectors instead of {}", name(), closed.sectors));
        }
        part.frames.drain(..stale);
        part.is_closed = true;
        Ok(())
    }

    /// A set was sealed.
    pub fn seal(&mut self, seal: SealSet) {
        self.building.entry((seal.phase, seal.number)).or_default().seal.get_or_insert(seal);
    }

    /// What is wrong with a set of which everything has come, if anything.
    pub fn check(&self, phase: u64, number: u64) -> Result<(), String> {
        let Some(set) = self.building.get(&(phase, number)) else { return Ok(()) };
        let Some(seal) = &set.seal else { return Ok(()) };
        if let Some(part) = set.parts.keys().find(|part| **part >= seal.parts) {
            return Err(format!("set {number} has a part {part} although it was sealed with {} parts", seal.parts));
        }
        if set.has_all_parts() && set.sectors() != seal.sectors {
            return Err(format!("set {number} has {} sectors instead of {}", set.sectors(), seal.sectors));
        }
        Ok(())
    }

    /// Whether a set that is not in the run yet has all its content.
    #[must_use]
    pub fn is_ready(&self, phase: u64, number: u64) -> bool {
        self.building.get(&(phase, number)).is_some_and(Building::is_complete)
    }

    /// Whether a set in the making ends the catching-up.
    #[must_use]
    pub fn closes_bulk(&self, phase: u64, number: u64) -> bool {
        let set = self.building.get(&(phase, number));
        set.and_then(|set| set.seal.as_ref()).is_some_and(|seal| seal.closes_bulk)
    }

    /// Extends the run by the complete sets that follow it without a gap, up to `limit`, each in its phase.
    pub fn advance(&mut self, limit: u64, phase_of: impl Fn(u64) -> Option<u64>) {
        while self.head < limit {
            let number = self.head + 1;
            let Some(phase) = phase_of(number) else { return };
            if !self.is_ready(phase, number) {
                return;
            }
            let set = self.building.remove(&(phase, number)).and_then(Building::finish);
            self.complete.extend(set.map(|set| (number, set)));
            self.head = number;
        }
    }

    /// Everything that was appended so far is durable: gives the parts that became so.
    pub fn set_durable(&mut self) -> Vec<(u64, u32)> {
        let mut parts = Vec::new();
        for ((_, number), set) in &mut self.building {
            for (index, part) in &mut set.parts {
                if part.is_closed && !part.is_durable {
                    part.is_durable = true;
                    parts.push((*number, *index));
                }
            }
        }
        parts
    }

    /// Parts of sets after the run that need not be sent again.
    #[must_use]
    pub fn durable_parts(&self, phase: u64) -> Vec<(u64, u32)> {
        let of_phase = self.building.range((phase, 0)..=(phase, u64::MAX));
        of_phase
            .flat_map(|((_, number), set)| {
                set.parts.iter().filter(|(_, part)| part.is_durable).map(|(part, _)| (*number, *part))
            })
            .collect()
    }

    /// A session has ended: parts that were not closed are forgotten, since they come again from the beginning.
    pub fn drop_open_parts(&mut self) {
        for set in self.building.values_mut() {
            set.parts.retain(|_, part| part.is_closed);
        }
        self.building.retain(|_, set| set.seal.is_some() || !set.parts.is_empty());
    }

    /// A phase is over: what it left unfinished never counts (rule L2).
    pub fn drop_building(&mut self) {
        self.building.clear();
    }

    /// Keeps only what is in the making in `phase` after the run.
    pub fn keep_building_of(&mut self, phase: Option<u64>) {
        let head = self.head;
        self.building.retain(|(of, number), _| Some(*of) == phase && *number > head);
    }

    /// Forgets sets up to `last`, whose redo is going to be removed.
    pub fn forget_through(&mut self, last: u64) {
        self.complete = self.complete.split_off(&(last + 1));
    }

    /// Most undo that sets after `applied` can need.
    #[must_use]
    pub fn undo_bytes_after(&self, applied: u64) -> u64 {
        let complete: u64 = self.complete.range(applied + 1..).map(|(_, set)| set.undo_bytes).sum();
        complete + self.building.values().map(Building::undo_bytes).sum::<u64>()
    }
}

impl Building {
    fn has_all_parts(&self) -> bool {
        let Some(seal) = &self.seal else { return false };
        // Parts beyond the count fail `check`, so as many closed ones as announced are all of them.
        self.parts.len() == seal.parts as usize && self.parts.values().all(|part| part.is_closed)
    }

    fn is_complete(&self) -> bool {
        let Some(seal) = &self.seal else { return false };
        if !Rule::SetsAreWhole.holds() {
            return true;
        }
        self.has_all_parts() && self.parts.keys().all(|part| *part < seal.parts) && self.sectors() == seal.sectors
    }

    fn frames(&self) -> impl Iterator<Item = &FramePlace> {
        self.parts.values().flat_map(|part| &part.frames)
    }

    fn sectors(&self) -> u64 {
        self.frames().map(|frame| frame.sectors).sum()
    }

    fn undo_bytes(&self) -> u64 {
        self.frames().map(|frame| frame.undo_bytes).sum()
    }

    fn finish(self) -> Option<CompleteSet> {
        let mut runs: Vec<RedoRun> = Vec::new();
        for FramePlace { run, .. } in self.frames() {
            match runs.last_mut() {
                Some(last) if last.segment == run.segment && last.offset + last.len == run.offset => {
                    last.len += run.len
                }
                _ => runs.push(*run),
            }
        }
        let stored_bytes = runs.iter().map(|run| run.len).sum();
        let undo_bytes = self.undo_bytes();
        let shrink = self.frames().map(|frame| frame.shrink).sum();
        Some(CompleteSet { runs, stored_bytes, undo_bytes, shrink, seal: self.seal? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASE: u64 = 5;

    fn frame(number: u64, part: u32, offset: u64) -> NewFrame {
        let run = RedoRun { segment: SegmentId::redo(1), offset, len: 10 };
        NewFrame {
            number,
            part,
            run,
            sectors: 8,
            undo_bytes: 4096,
            shrink: Shrink { raw_bytes: 4096, packed_bytes: 1024 },
        }
    }

    fn end(number: u64, part: u32, frames: u32) -> PartClosed {
        PartClosed { frames, sectors: u64::from(frames) * 8, number, part }
    }

    fn seal(number: u64, parts: u32, sectors: u64) -> SealSet {
        SealSet { phase: PHASE, number, parent: number - 1, parts, sectors, is_point: true, ..Default::default() }
    }

    fn whole(sets: &mut Sets, number: u64) {
        sets.add_frame(PHASE, frame(number, 0, number * 100));
        sets.close_part(PHASE, &end(number, 0, 1)).unwrap();
        sets.seal(seal(number, 1, 8));
    }

    fn advance(sets: &mut Sets) -> u64 {
        sets.advance(u64::MAX, |_| Some(PHASE));
        sets.head()
    }

    #[test]
    fn sets_count_only_without_a_gap() {
        let mut sets = Sets::default();
        whole(&mut sets, 2);
        assert_eq!(advance(&mut sets), 0, "set 1 is missing");
        whole(&mut sets, 1);
        assert_eq!(advance(&mut sets), 2);
        assert!(!sets.is_building());
    }

    #[test]
    fn a_set_needs_its_seal_and_each_of_its_parts() {
        let mut sets = Sets::default();
        sets.add_frame(PHASE, frame(1, 0, 0));
        sets.seal(seal(1, 2, 16));
        assert_eq!(advance(&mut sets), 0);
        sets.close_part(PHASE, &end(1, 0, 1)).unwrap();
        assert_eq!(advance(&mut sets), 0, "part 1 is missing");
        sets.add_frame(PHASE, frame(1, 1, 10));
        sets.close_part(PHASE, &end(1, 1, 1)).unwrap();
        assert_eq!(advance(&mut sets), 1);
        let runs = &sets.complete()[&1].runs;
        assert_eq!(runs, &[RedoRun { segment: SegmentId::redo(1), offset: 0, len: 20 }], "neighbours are one run");
    }

    #[test]
    fn an_empty_set_is_complete_with_its_seal() {
        let mut sets = Sets::default();
        sets.seal(seal(1, 0, 0));
        assert_eq!(advance(&mut sets), 1);
    }

    #[test]
    fn a_part_sent_again_counts_only_its_last_frames() {
        let mut sets = Sets::default();
        sets.add_frame(PHASE, frame(1, 0, 0));
        sets.add_frame(PHASE, frame(1, 0, 50));
        sets.close_part(PHASE, &end(1, 0, 1)).unwrap();
        sets.seal(seal(1, 1, 8));
        assert_eq!(advance(&mut sets), 1);
        assert_eq!(sets.complete()[&1].runs[0].offset, 50);
        assert_eq!(sets.complete()[&1].shrink, Shrink { raw_bytes: 4096, packed_bytes: 1024 });
    }

    #[test]
    fn parts_and_sets_that_are_not_what_was_announced_are_refused() {
        let mut sets = Sets::default();
        sets.add_frame(PHASE, frame(1, 0, 0));
        assert!(sets.close_part(PHASE, &end(1, 0, 2)).is_err(), "a frame is missing");
        let wrong = PartClosed { sectors: 9, ..end(1, 0, 1) };
        assert!(sets.close_part(PHASE, &wrong).is_err(), "sectors are missing");
        sets.close_part(PHASE, &end(1, 0, 1)).unwrap();
        sets.seal(seal(1, 1, 9));
        assert!(sets.check(PHASE, 1).is_err());
        assert_eq!(advance(&mut sets), 0);
        sets.add_frame(PHASE, frame(2, 3, 0));
        sets.seal(seal(2, 3, 8));
        assert!(sets.check(PHASE, 2).is_err(), "part 3 of 3");
    }

    #[test]
    fn an_old_partial_set_does_not_mix_with_one_of_the_same_number_in_a_new_phase() {
        let mut sets = Sets::default();
        sets.add_frame(PHASE, frame(1, 0, 0));
        sets.close_part(PHASE, &end(1, 0, 1)).unwrap();
        sets.seal(SealSet { phase: PHASE + 1, ..seal(1, 1, 8) });
        sets.advance(u64::MAX, |_| Some(PHASE + 1));
        assert_eq!(sets.head(), 0);
        sets.keep_building_of(Some(PHASE + 1));
        assert!(!sets.has_part(PHASE, 1, 0));
    }

    #[test]
    fn parts_become_durable_once_and_survive_a_lost_session_only_if_closed() {
        let mut sets = Sets::default();
        sets.add_frame(PHASE, frame(1, 0, 0));
        sets.close_part(PHASE, &end(1, 0, 1)).unwrap();
        sets.add_frame(PHASE, frame(1, 1, 10));
        assert_eq!(sets.set_durable(), [(1, 0)]);
        assert!(sets.set_durable().is_empty());
        sets.drop_open_parts();
        assert_eq!(sets.durable_parts(PHASE), [(1, 0)]);
        assert!(sets.has_part(PHASE, 1, 0) && !sets.has_part(PHASE, 1, 1));
    }

    #[test]
    fn the_undo_of_everything_not_applied_is_counted() {
        let mut sets = Sets::default();
        whole(&mut sets, 1);
        whole(&mut sets, 2);
        advance(&mut sets);
        sets.add_frame(PHASE, frame(3, 0, 0));
        assert_eq!(sets.undo_bytes_after(1), 2 * 4096);
    }

    #[test]
    fn the_run_stops_at_its_limit() {
        let mut sets = Sets::default();
        whole(&mut sets, 1);
        whole(&mut sets, 2);
        sets.advance(1, |_| Some(PHASE));
        assert_eq!(sets.head(), 1);
        assert!(sets.is_ready(PHASE, 2));
    }
}
