//! From a session into redo: phases, frames, parts, seals, and the group commit that may be acknowledged.
//!
//! One thread per group calls this. Appending is cheap; [`Journal::sync`] makes it durable, and only what that
//! returns may be acknowledged (rules L3, J8 and J15).

use prost::Message;
use proto::ids::{Counter, Phase, SetNumber};
use proto::limits::{DURABLE_PARTS_MAX, LABEL_BYTES_MAX, PARTS_PER_SET_MAX};
use proto::record::{Record, RecordKind};
use proto::replication::{Content, FrameHeader, PartEnd, SealSet};

use super::core::{Journal, lock};
use super::error::{JournalError, JournalResult, PhaseError};
use super::header::{PartClosed, SegmentId};
use super::limits::{
    BLOCK_BYTES, BLOCK_SECTORS, PENDING_SETS_MAX, SECTOR_BYTES, SEGMENT_EXTENTS_MAX, ZERO_RESERVE_BYTES_MAX,
};
use super::manifest::{Manifest, PhaseRange};
use super::segment::SegmentWriter;
use super::sets::{NewFrame, RedoRun};
use super::shrink::Shrink;
use super::volume::Volume;
use crate::rules::Rule;

/// The end of redo.
#[derive(Debug, Default)]
pub(super) struct RedoWriter {
    pub segment: Option<SegmentWriter>,
    /// Phase of the segment: each has frames of one only.
    pub phase: u64,
    pub next_index: u64,
    /// Extents of the segment.
    pub extents: u64,
    /// Something was appended since the last commit.
    pub is_dirty: bool,
}

/// What became of something received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is in the journal, and durable after the next sync.
    Stored,
    /// It was here already.
    Duplicate,
    /// It belongs to a phase that is over, and is dropped (rule L2).
    OtherPhase,
}

/// Answer to the opening of a phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseOpened {
    /// The last durable set; the next has the number after it.
    pub last_set: SetNumber,
    /// Parts of later sets that need not be sent again, as (set, part).
    pub durable_parts: Vec<(u64, u32)>,
    /// The next set has to end the catching-up.
    pub bulk_open: bool,
    /// False where nothing was ever replicated.
    pub has_history: bool,
}

/// What a sync made durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Durable {
    /// Parts that became durable, as (set, part).
    pub parts: Vec<(u64, u32)>,
    /// All sets up to this one are.
    pub last_set: u64,
    /// Counter of this acknowledgement (rule L1).
    pub counter: u64,
    /// The set that ends the catching-up is here and waits for a sync of the disks: call `Applier::sync_bulk`, then
    /// sync the journal again (REVIEW K6).
    pub needs_bulk_sync: bool,
}

impl<V: Volume> Journal<V> {
    /// A source opens or reopens a phase (rules L2 and L6). The session before it has ended entirely.
    pub fn open_phase(
        &self,
        phase: Phase,
        source_start: u64,
        source_instance: &[u8],
    ) -> Result<PhaseOpened, PhaseError> {
        self.check_source(phase, source_start, source_instance)?;
        // What the session before left is made durable, so that it is either listed here or comes again.
        self.sync()?;
        let mut redo = lock(&self.redo);
        let (open, durable) = {
            let mut state = self.state();
            state.sets.drop_open_parts();
            (state.open_phase(), state.durable)
        };
        if open != Some(phase.0) {
            if let Some(segment) = redo.segment.take() {
                self.close_segment(segment)?;
            }
            self.state().sets.drop_building();
        }
        self.update_manifest(|manifest| {
            (manifest.source_start, manifest.source_instance) = (source_start, source_instance.to_vec());
            if open != Some(phase.0) {
                if let Some(range) = manifest.phases.last_mut() {
                    range.last.get_or_insert(durable);
                }
                manifest.phases.retain(|range| range.last.is_some_and(|last| last >= range.first));
                manifest.phases.push(PhaseRange { phase: phase.0, first: durable + 1, last: None });
            }
        })?;
        let mut state = self.state();
        state.phase = Some(phase.0);
        state.is_damage_untold = true;
        let mut durable_parts = state.sets.durable_parts(phase.0);
        // Parts beyond the bound of the answer come again, and are known as duplicates.
        durable_parts.truncate(DURABLE_PARTS_MAX);
        drop(state);
        let (last_set, bulk_open, has_history) = (SetNumber(durable), self.bulk_open(), self.has_history());
        Ok(PhaseOpened { last_set, durable_parts, bulk_open, has_history })
    }

    /// The counter for the answer to an opening (rule L1). The answer acknowledges whatever was found, so it has a counter
    /// of its own; but a source that knows of a higher one than there ever was here was told so by a target that is no
    /// more: it must see that, and a new counter could just make up for it.
    ///
    /// What was lost may be on the disks. So nothing of before says what a sector holds after it, and a generation begins
    /// (rule J16): else a sector that the source then finds to be the same, and does not send, is looked for in the redo
    /// of its generation, which has what it held before.
    pub fn greet(&self, known: Counter) -> JournalResult<Counter> {
        let mut redo = lock(&self.redo);
        let is_behind = known > self.counter();
        if is_behind {
            if Rule::LossEndsGeneration.holds() {
                self.end_generation_after_loss(&mut redo)?;
            }
            return Ok(self.counter());
        }
        {
            let mut state = self.state();
            state.is_greeted = true;
            state.counter_given += 1;
            state.counter = state.counter_given;
        }
        self.update_manifest(|_| {})?;
        Ok(self.counter())
    }

    /// What a source is told that has to begin a new phase before anything of it is taken.
    pub fn introduction(&self) -> PhaseOpened {
        let (last_set, bulk_open, has_history) = (self.last_durable_set(), self.bulk_open(), self.has_history());
        PhaseOpened { last_set, durable_parts: Vec::new(), bulk_open, has_history }
    }

    fn check_source(&self, phase: Phase, start: u64, instance: &[u8]) -> Result<(), PhaseError> {
        let state = self.state();
        let manifest = &state.manifest;
        let known = manifest.source_start;
        let is_copy = start == known && !manifest.source_instance.is_empty() && instance != manifest.source_instance;
        if start < known || is_copy {
            return Err(PhaseError::Clone { given: start, known });
        }
        let newest = manifest.phases.last();
        match newest.filter(|range| phase.0 < range.phase || (phase.0 == range.phase && range.last.is_some())) {
            Some(range) => Err(PhaseError::Over { given: phase.0, known: range.phase }),
            None => Ok(()),
        }
    }

    /// A frame of an ordered set, as it was received and checked.
    pub fn append_frame(&self, phase: Phase, number: u64, record: &Record) -> JournalResult<Accepted> {
        let header: FrameHeader = record.header_as().map_err(|error| protocol(error.to_string()))?;
        if record.kind != RecordKind::Frame || header.number != number {
            return Err(protocol(format!("a frame of set {} was sent as one of set {number}", header.number)));
        }
        let mut redo = lock(&self.redo);
        if let Some(known) = self.known(phase, number, Some(header.part))? {
            return Ok(known);
        }
        let (sectors, undo_bytes) = measure(&self.state().manifest, &header).map_err(protocol)?;
        let bytes = record.encoded();
        self.make_room(&mut redo, bytes.len() as u64, undo_bytes)?;
        let (segment, offset) = self.append_redo(&mut redo, phase.0, number, bytes)?;
        let run = RedoRun { segment, offset, len: bytes.len() as u64 };
        redo.extents += header.extents.len() as u64;
        let shrink = Shrink::of(&header, record.payload.len() as u64);
        let frame = NewFrame { number, part: header.part, run, sectors, undo_bytes, shrink };
        self.state().sets.add_frame(phase.0, frame);
        Ok(Accepted::Stored)
    }

    /// A part of an ordered set ends.
    pub fn end_part(&self, phase: Phase, number: u64, part: u32, end: PartEnd) -> JournalResult<Accepted> {
        let mut redo = lock(&self.redo);
        if let Some(known) = self.known(phase, number, Some(part))? {
            return Ok(known);
        }
        let closed = PartClosed { frames: end.frames, sectors: end.sectors, number, part };
        {
            let mut state = self.state();
            state.sets.close_part(phase.0, &closed).map_err(protocol)?;
            state.sets.check(phase.0, number).map_err(protocol)?;
        }
        let record = Record::encode(RecordKind::PartEnd, &closed, &[]);
        self.append_redo(&mut redo, phase.0, number, &record)?;
        Ok(Accepted::Stored)
    }

    /// A set was sealed: it counts when all its parts and all sets before it are here.
    pub fn seal(&self, seal: SealSet) -> JournalResult<Accepted> {
        let mut redo = lock(&self.redo);
        let (phase, number) = (seal.phase, seal.number);
        if let Some(known) = self.known(Phase(phase), number, None)? {
            return Ok(known);
        }
        check_seal(&seal)?;
        let record = Record::encode(RecordKind::Seal, &seal, &[]);
        {
            let mut state = self.state();
            let bulk = state.manifest.open_bulk();
            if bulk.is_some_and(|bulk| bulk.rollback_to.is_some()) {
                return Err(JournalError::State { what: "the group is failing back" });
            }
            if seal.closes_bulk != bulk.is_some_and(|bulk| bulk.first == number) {
                let what =
                    if seal.closes_bulk { "ends a catching-up that is not open" } else { "must end the catching-up" };
                return Err(protocol(format!("set {number} {what}")));
            }
            state.sets.seal(seal);
            state.sets.check(phase, number).map_err(protocol)?;
        }
        self.append_redo(&mut redo, phase, number, &record)?;
        Ok(Accepted::Stored)
    }

    /// Sectors of a frame of redo; a frame that is not of these disks is damage.
    pub(crate) fn measure(&self, header: &FrameHeader) -> JournalResult<(u64, u64)> {
        measure(&self.state().manifest, header).map_err(protocol)
    }

    /// Group commit: makes everything appended durable. Only what this returns may be acknowledged.
    pub fn sync(&self) -> JournalResult<Durable> {
        let mut redo = lock(&self.redo);
        self.check_running()?;
        let mut parts = Vec::new();
        if redo.is_dirty {
            let counter = self.commit(&mut redo)?;
            let head = {
                let mut state = self.state();
                parts = state.sets.set_durable();
                state.counter = state.counter.max(counter);
                state.advance();
                state.sets.head()
            };
            self.end_generations_at_marked_points(head)?;
            self.state().durable = head;
        }
        let needs_bulk_sync = self.close_bulk_if_ready()?;
        let state = self.state();
        Ok(Durable { parts, last_set: state.durable, counter: state.counter, needs_bulk_sync })
    }

    /// Writes the commit record and syncs the segment.
    fn commit(&self, redo: &mut RedoWriter) -> JournalResult<u64> {
        let Some(segment) = &mut redo.segment else {
            redo.is_dirty = false;
            return Ok(0);
        };
        let header = self.next_commit(segment.id(), segment.synced());
        let record = Record::encode(RecordKind::Phase, &header, &[]);
        let written = segment.append(&self.volume, &record).and_then(|_| match Rule::RedoBeforeAnswer.holds() {
            true => segment.sync(&self.volume),
            false => segment.flush(&self.volume),
        });
        written.map_err(|error| self.stop(error))?;
        {
            let mut state = self.state();
            state.segments.entry(segment.id()).or_default().bytes = segment.len();
            state.synced.insert(segment.id(), segment.synced());
        }
        redo.is_dirty = false;
        if (segment.len() >= self.options.segment_bytes || redo.extents >= SEGMENT_EXTENTS_MAX)
            && let Some(full) = redo.segment.take()
        {
            self.close_segment(full)?;
        }
        Ok(header.counter)
    }

    /// What to answer at once: something of another phase, or that is here already.
    fn known(&self, phase: Phase, number: u64, part: Option<u32>) -> JournalResult<Option<Accepted>> {
        self.check_running()?;
        let state = self.state();
        if state.phase != Some(phase.0) {
            return Ok(Some(Accepted::OtherPhase));
        }
        let is_here = match part {
            Some(part) => state.sets.has_part(phase.0, number, part),
            None => state.sets.has_seal(phase.0, number),
        };
        if !is_here && number > state.sets.head().saturating_add(PENDING_SETS_MAX as u64) {
            return Err(protocol(format!("set {number} is too far ahead of set {}", state.sets.head())));
        }
        Ok(is_here.then_some(Accepted::Duplicate))
    }

    fn append_redo(
        &self,
        redo: &mut RedoWriter,
        phase: u64,
        number: u64,
        record: &[u8],
    ) -> JournalResult<(SegmentId, u64)> {
        if redo.phase != phase
            && let Some(segment) = redo.segment.take()
        {
            self.close_segment(segment)?;
        }
        let segment = match &mut redo.segment {
            Some(segment) => segment,
            none => {
                let id = SegmentId::redo(redo.next_index);
                redo.next_index += 1;
                redo.phase = phase;
                redo.extents = 0;
                none.insert(self.create_segment(id, phase)?)
            }
        };
        let offset = segment.append(&self.volume, record).map_err(|error| self.stop(error))?;
        redo.is_dirty = true;
        let mut state = self.state();
        let info = state.segments.entry(segment.id()).or_default();
        info.bytes = segment.len();
        info.highest = info.highest.max(number);
        Ok((segment.id(), offset))
    }
}

/// Sectors of a frame, and the most undo that it can need; the text names an extent that is not on the disks.
pub(super) fn measure(manifest: &Manifest, header: &FrameHeader) -> Result<(u64, u64), String> {
    let (mut sectors, mut undo_bytes) = (0, 0);
    for extent in &header.extents {
        let count = u64::from(extent.sectors);
        if !manifest.has_sectors(extent.disk, extent.sector, count) {
            let (disk, sector) = (extent.disk, extent.sector);
            return Err(format!("{count} sectors at sector {sector} are not on disk {disk} of the group"));
        }
        let first = extent.sector / BLOCK_SECTORS;
        let bytes = ((extent.sector + count).div_ceil(BLOCK_SECTORS) - first) * (BLOCK_BYTES + 8);
        sectors += count;
        undo_bytes += match extent.content() {
            Content::Data => bytes,
            Content::Zero => bytes.min(ZERO_RESERVE_BYTES_MAX),
            Content::Unreadable => 0,
        };
    }
    Ok((sectors, undo_bytes))
}

fn protocol(what: String) -> JournalError {
    JournalError::Protocol { what }
}

fn check_seal(seal: &SealSet) -> JournalResult<()> {
    let number = seal.number;
    if seal.parent.checked_add(1) != Some(number) {
        return Err(protocol(format!("set {number} names set {} as the one before it", seal.parent)));
    }
    if seal.parts > PARTS_PER_SET_MAX {
        return Err(protocol(format!("set {number} has {} parts, {PARTS_PER_SET_MAX} are allowed", seal.parts)));
    }
    if seal.label.len() > LABEL_BYTES_MAX {
        let bytes = seal.label.len();
        return Err(protocol(format!("the label of set {number} has {bytes} bytes, {LABEL_BYTES_MAX} are allowed")));
    }
    if seal.encoded_len() as u64 > SECTOR_BYTES * 4 {
        return Err(protocol(format!("the seal of set {number} is too long")));
    }
    Ok(())
}
