//! Reads a whole journal and checks every record and all content of it, while sets go on being received and applied.
//!
//! One reader, in the order of the files; it writes nothing and decides nothing. What was appended after it began, and
//! what is removed meanwhile, is left out. A damaged header hides where the next record begins: it is found by its
//! magic and its CRC, so that one bad byte does not hide what follows.

use std::ops::{ControlFlow, Range};

use proto::frame::Decoder;
use proto::limits::RECORD_PREFIX_BYTES;
use proto::record::{MAGIC, Record, RecordKind};

use super::core::{Journal, lock};
use super::error::{JournalError, JournalResult};
use super::header::{SegmentId, UndoHeader};
use super::limits::BLOCK_BYTES;
use super::manifest::{MANIFEST, Manifest};
use super::segment::{Reader, read_record};
use super::state::State;
use super::volume::Volume;

/// Bytes that are searched for the next record at a time.
const SEARCH_BYTES: u64 = 64 << 10;
/// Damaged places that are listed; a volume that is wholly rotten needs no more.
const DAMAGES_MAX: usize = 1000;

/// A place of a journal that does not hold what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: String,
    /// Bytes from its beginning.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
    /// Points of which it may spoil a part, oldest first.
    pub points: Vec<u64>,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Files.
    pub files: u64,
    /// Records that are right.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is not right.
    pub damages: Vec<Damage>,
}

/// What is wrong with a record, and its length where that is known.
type Wrong = (String, Option<u64>);

impl<V: Volume> Journal<V> {
    /// Reads everything that is durable; blocks. `progress` is told the bytes read and those there are, and ends the
    /// work with a break; then there is no result.
    pub fn scrub(&self, mut progress: impl FnMut(u64, u64) -> ControlFlow<()>) -> JournalResult<Option<Scrubbed>> {
        let segments = self.durable_segments();
        let total: u64 = segments.iter().map(|(_, bytes)| bytes).sum();
        let mut scrubbed = Scrubbed::default();
        self.scrub_manifest(&mut scrubbed);
        let mut damages = Vec::new();
        let files = self.scrub_sums(|file, offset, what| {
            // No point needs them: what they would have said of the disks is not known.
            if damages.len() < DAMAGES_MAX {
                damages.push(Damage { file, offset, what, points: Vec::new() });
            }
        })?;
        scrubbed.files += files;
        scrubbed.damages.append(&mut damages);
        let mut decoder = Decoder::new();
        for (id, end) in segments {
            let before = scrubbed.bytes;
            let mut offset = 0;
            let end_there = self.end_of(id, end, &mut scrubbed);
            while offset < end_there {
                let next = match self.check_record(id, offset, end_there, &mut decoder) {
                    Ok(len) => {
                        scrubbed.records += 1;
                        offset + len
                    }
                    // Removed meanwhile, since its points are too old or room was needed.
                    Err(_) if !self.state().segments.contains_key(&id) => break,
                    Err((what, len)) => {
                        let next = len.map_or_else(|| self.next_record(id, offset + 1, end_there), |len| offset + len);
                        self.damaged(id, offset..next, what, &mut scrubbed);
                        next
                    }
                };
                scrubbed.bytes += next - offset;
                offset = next;
                if progress(scrubbed.bytes, total).is_break() || scrubbed.damages.len() >= DAMAGES_MAX {
                    return Ok(Some(scrubbed).filter(|scrubbed| scrubbed.damages.len() >= DAMAGES_MAX));
                }
            }
            scrubbed.files += u64::from(scrubbed.bytes > before);
        }
        Ok(Some(scrubbed))
    }

    /// All segments with the bytes that are durable now.
    fn durable_segments(&self) -> Vec<(SegmentId, u64)> {
        let redo = lock(&self.redo).segment.as_ref().map(|open| (open.id(), open.synced()));
        let undo = lock(&self.undo).segment.as_ref().map(|open| (open.id(), open.synced()));
        let state = self.state();
        let is_open = |id: &SegmentId| [redo, undo].into_iter().flatten().find(|(open, _)| open == id);
        state.segments.iter().map(|(id, info)| is_open(id).unwrap_or((*id, info.bytes))).collect()
    }

    fn scrub_manifest(&self, scrubbed: &mut Scrubbed) {
        let _order = lock(&self.manifest_io);
        let what = match Manifest::load(&self.volume) {
            Ok(Some(_)) => {
                scrubbed.files += 1;
                return;
            }
            Ok(None) => "the file is missing".to_owned(),
            Err(JournalError::Damaged { what, .. }) => what,
            Err(error) => error.to_string(),
        };
        let points = self.state().point_times().map(|(point, _)| point).collect();
        let file = self.volume.describe(MANIFEST);
        scrubbed.damages.push(Damage { file, offset: 0, what, points });
    }

    /// Where the file ends, of the bytes that it must have.
    fn end_of(&self, id: SegmentId, end: u64, scrubbed: &mut Scrubbed) -> u64 {
        let found = self.volume.len(&id.to_string());
        if !self.state().segments.contains_key(&id) {
            return 0;
        }
        match found {
            Ok(bytes) if bytes >= end => end,
            Ok(bytes) => {
                self.damaged(id, bytes..end, format!("the file ends here, but {end} bytes were synced"), scrubbed);
                bytes
            }
            Err(error) => {
                self.damaged(id, 0..end, error.to_string(), scrubbed);
                0
            }
        }
    }

    /// Checks the record at `offset` and gives its length.
    fn check_record(&self, id: SegmentId, offset: u64, end: u64, decoder: &mut Decoder) -> Result<u64, Wrong> {
        let name = id.to_string();
        let head = Reader::new(&self.volume, &name, end).record(offset, false);
        let head = head.map_err(|error| (error.to_string(), None))?.map_err(|what| (what, None))?;
        let wrong = |what: String| (what, Some(head.len));
        let record = read_record(&self.volume, id, offset, head.len).map_err(|error| match error {
            JournalError::Damaged { what, .. } => wrong(what),
            error => wrong(error.to_string()),
        })?;
        match record.kind {
            RecordKind::Frame => drop(decoder.decode(&record).map_err(|error| wrong(error.to_string()))?),
            RecordKind::Undo => check_blocks(&record).map_err(wrong)?,
            _ => {}
        }
        Ok(head.len)
    }

    /// Where the next record with a right header begins; the end where there is none.
    fn next_record(&self, id: SegmentId, from: u64, end: u64) -> u64 {
        let name = id.to_string();
        let mut at = from;
        while at + RECORD_PREFIX_BYTES as u64 <= end {
            let mut window = vec![0; (end - at).min(SEARCH_BYTES) as usize];
            if self.volume.read_at(&name, at, &mut window).is_err() {
                return end;
            }
            let Some(found) = window.windows(4).position(|four| four == MAGIC.to_le_bytes()) else {
                // Its first bytes may be the last ones of this window.
                at += window.len() as u64 - 3;
                continue;
            };
            at += found as u64;
            if matches!(Reader::new(&self.volume, &name, end).record(at, false), Ok(Ok(_))) {
                return at;
            }
            at += 1;
        }
        end
    }

    fn damaged(&self, id: SegmentId, place: Range<u64>, what: String, scrubbed: &mut Scrubbed) {
        let points = {
            let state = self.state();
            if id.is_redo() { spoiled_by_redo(&state, id, &place) } else { spoiled_by_undo(&state, id) }
        };
        let file = self.volume.describe(&id.to_string());
        scrubbed.damages.push(Damage { file, offset: place.start, what, points });
    }
}

/// Every saved block has the content that was saved.
fn check_blocks(record: &Record) -> Result<(), String> {
    let header: UndoHeader = record.header_as().map_err(|error| error.to_string())?;
    let crcs: Vec<u32> = header.runs.into_iter().flat_map(|run| run.crcs).collect();
    let blocks: Vec<&[u8]> = record.payload.chunks(BLOCK_BYTES as usize).collect();
    // The last block of a disk may be short, and then the blocks after it stand at odd places: readers check those.
    if blocks.len() == crcs.len() && record.payload.len() as u64 == crcs.len() as u64 * BLOCK_BYTES {
        let bad = blocks.iter().zip(&crcs).position(|(block, crc)| blockio::crc32(block) != *crc);
        if let Some(bad) = bad {
            return Err(format!("saved block {bad} of the record does not have the content that was saved"));
        }
    }
    Ok(())
}

/// Points that read redo of the damaged place: those of its generation from its first set on. Redo that is not applied
/// yet is part of every later point. A record beside the frames is needed when the journal is opened again: then all
/// points from there on depend on it.
fn spoiled_by_redo(state: &State, id: SegmentId, place: &Range<u64>) -> Vec<u64> {
    let touches = |set: u64, beyond: bool| {
        let runs = state.set(set).map_or(&[][..], |set| &set.runs[..]);
        runs.iter()
            .any(|run| run.segment == id && run.offset + run.len > place.start && (beyond || run.offset < place.end))
    };
    let find = |beyond| state.sets.complete().keys().copied().find(|set| touches(*set, beyond));
    let (first, last) = match (find(false), find(true)) {
        (Some(set), _) if set <= state.applied => {
            (set, state.manifest.generation_of(set).and_then(|generation| generation.last).unwrap_or(u64::MAX))
        }
        (Some(set), _) | (None, Some(set)) => (set, u64::MAX),
        (None, None) => (state.segments.get(&id).map_or(u64::MAX, |info| info.highest), u64::MAX),
    };
    state.point_times().map(|(point, _)| point).filter(|point| (first..=last).contains(point)).collect()
}

/// Points that may read undo of the generation: those of it and of all before it.
fn spoiled_by_undo(state: &State, id: SegmentId) -> Vec<u64> {
    let first_after = state.manifest.generations.iter().find(|generation| generation.id > id.generation);
    let first_after = first_after.map_or(u64::MAX, |generation| generation.first);
    state.point_times().map(|(point, _)| point).take_while(|point| *point < first_after).collect()
}
