//! Content from the journal: reads the record that a look-up names, and checks it before anything is taken from it.
//!
//! Frames by the CRCs of their extents, undo by that of each block. A place that does not hold what the look-up says is
//! damage, never content.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::frame::{DecodedFrame, Decoder};
use proto::ids::SetNumber;
use proto::replication::{Content, Extent};

use super::ReadError;
use super::lookup::{Found, Range, generation_of, with_lookup};
use crate::journal::index::Place;
use crate::journal::limits::{
    BLOCK_BYTES, BLOCK_SECTORS, LOOKUP_SECTORS_MAX, READER_FRAMES_MAX, READER_SAVED_MAX, SECTOR_BYTES,
};
use crate::journal::{Journal, JournalError, SegmentId, UndoHeader, UndoRun, Volume, read_record, read_undo};

/// The records that were used last, decoded.
#[derive(Default)]
pub(super) struct Contents {
    decoder: Decoder,
    frames: VecDeque<((SegmentId, u64), DecodedFrame)>,
    saved: VecDeque<((SegmentId, u64), Arc<SavedRecord>)>,
}

/// An undo record, without its content.
struct SavedRecord {
    /// Its runs that are not zero.
    runs: Vec<SavedRun>,
    /// Where its content begins in the file.
    content_at: u64,
}

struct SavedRun {
    run: UndoRun,
    /// Where its blocks begin in the content, in sectors, and how many these are.
    at: u64,
    sectors: u64,
}

impl Contents {
    /// Fills `buf` with a range that was found.
    pub fn fetch<V: Volume>(
        &mut self,
        journal: &Journal<V>,
        range: Range,
        found: Found,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        match found.place.at {
            Place::ZERO => {
                buf.fill(0);
                Ok(())
            }
            _ if found.segment.is_redo() => self.fetch_redo(journal, range, found, buf),
            _ => self.fetch_saved(journal, range, found, buf),
        }
    }

    /// Copies a part of a frame, which has to be of the set and of the sectors that the look-up says.
    fn fetch_redo<V: Volume>(
        &mut self,
        journal: &Journal<V>,
        range: Range,
        found: Found,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        let Found { segment, place } = found;
        let frame = self.frame(journal, segment, &place)?;
        let mut content_at = 0;
        let holds = |extent: &Extent| {
            let at = content_at;
            if extent.content() == Content::Data {
                content_at += u64::from(extent.sectors);
            }
            let skip = u64::from(place.at).checked_sub(at);
            extent.content() == Content::Data
                && extent.disk == range.disk
                && skip.is_some_and(|skip| {
                    extent.sector + skip == range.sector && skip + range.sectors <= u64::from(extent.sectors)
                })
        };
        let is_right = frame.header.number == place.set && frame.header.extents.iter().any(holds);
        let from = u64::from(place.at) * SECTOR_BYTES;
        let part = frame.raw.get(from as usize..from as usize + buf.len()).filter(|_| is_right);
        let damaged = || damaged_at(journal, segment, place.offset, "the frame is not what its index says");
        buf.copy_from_slice(part.ok_or_else(damaged)?);
        Ok(())
    }

    /// The decoded payload of a frame, from the last few that were used where it is among them.
    fn frame<V: Volume>(
        &mut self,
        journal: &Journal<V>,
        segment: SegmentId,
        place: &Place,
    ) -> Result<DecodedFrame, ReadError> {
        let key = (segment, place.offset);
        if let Some(at) = self.frames.iter().position(|(known, _)| *known == key)
            && let Some((_, frame)) = self.frames.remove(at)
        {
            self.frames.push_back((key, frame.clone()));
            return Ok(frame);
        }
        let volume = journal.volume();
        let record = read_record(volume, segment, place.offset, u64::from(place.len))?;
        let decoded = self.decoder.decode(&record);
        let (file, offset) = (|| volume.describe(&segment.to_string()), place.offset);
        let frame = decoded.map_err(|source| ReadError::Frame { file: file(), offset, source })?;
        if self.frames.len() >= READER_FRAMES_MAX {
            self.frames.pop_front();
        }
        self.frames.push_back((key, frame.clone()));
        Ok(frame)
    }

    /// Reads the blocks that a range touches, checks each against the CRC it was saved with, and copies the range.
    fn fetch_saved<V: Volume>(
        &mut self,
        journal: &Journal<V>,
        range: Range,
        found: Found,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        let Found { segment, place } = found;
        let record = self.saved(journal, segment, &place)?;
        let damaged = |offset: u64, what| damaged_at(journal, segment, offset, what);
        let saved = record.run_at(place.at).ok_or_else(|| damaged(place.offset, "it has less undo"))?;
        let (run, skip) = (&saved.run, u64::from(place.at) - saved.at);
        if run.disk != range.disk || run.block * BLOCK_SECTORS + skip != range.sector {
            return Err(damaged(place.offset, "the undo is not what its index says"));
        }
        let (first, end) = (skip / BLOCK_SECTORS, (skip + range.sectors).div_ceil(BLOCK_SECTORS));
        let from = first * BLOCK_BYTES;
        let bytes = (end * BLOCK_BYTES).min(saved.sectors * SECTOR_BYTES).saturating_sub(from);
        let at = record.content_at + saved.at * SECTOR_BYTES + from;
        let mut blocks = vec![0; bytes as usize];
        journal.volume().read_at(&segment.to_string(), at, &mut blocks).map_err(JournalError::from)?;
        if run.damaged {
            let on_disk = (range.sector - skip) * SECTOR_BYTES + from;
            let what = format!("the target had rotted before this block was saved, at offset {on_disk} of its disk");
            return Err(damaged_at(journal, segment, at, &what));
        }
        for (index, block) in (0..).zip(blocks.chunks(BLOCK_BYTES as usize)) {
            if run.crcs.get((first + index) as usize) != Some(&blockio::crc32(block)) {
                return Err(damaged(
                    at + index * BLOCK_BYTES,
                    "a saved block does not have the content that was saved",
                ));
            }
        }
        let part = (skip * SECTOR_BYTES - from) as usize;
        let part = blocks.get(part..part + buf.len());
        buf.copy_from_slice(part.ok_or_else(|| damaged(at, "the undo ends early"))?);
        Ok(())
    }

    /// Whether what was found is undo of what had rotted.
    fn is_damaged<V: Volume>(&mut self, journal: &Journal<V>, found: Found) -> Result<bool, ReadError> {
        if found.segment.is_redo() || found.place.at == Place::ZERO {
            return Ok(false);
        }
        let record = self.saved(journal, found.segment, &found.place)?;
        Ok(record.run_at(found.place.at).is_some_and(|saved| saved.run.damaged))
    }

    /// The header of an undo record, from the last few that were used where it is among them.
    fn saved<V: Volume>(
        &mut self,
        journal: &Journal<V>,
        segment: SegmentId,
        place: &Place,
    ) -> Result<Arc<SavedRecord>, ReadError> {
        let key = (segment, place.offset);
        if let Some((_, record)) = self.saved.iter().find(|(known, _)| *known == key) {
            return Ok(record.clone());
        }
        let sizes: Vec<u64> = journal.state().manifest.disks.iter().map(|disk| disk.size).collect();
        let len = u64::from(place.len);
        let (header, payload_len) = read_undo(journal.volume(), segment, (place.offset, len), &sizes)?;
        let content_at = place.offset + len - u64::from(payload_len);
        let record = Arc::new(SavedRecord::of(header, content_at, &sizes));
        if self.saved.len() >= READER_SAVED_MAX {
            self.saved.pop_front();
        }
        self.saved.push_back((key, record.clone()));
        Ok(record)
    }
}

impl<V: Volume> Journal<V> {
    /// What of a point is known to be lost, as text: saved blocks that had rotted before they were saved. Reads no
    /// content; what rots unseen is found when it is read.
    pub(crate) fn known_damage_of(&self, to: SetNumber) -> Result<Option<String>, ReadError> {
        let (generation, damages, applied, sizes) = {
            let state = self.state();
            let sizes: Vec<u64> = state.manifest.disks.iter().map(|disk| disk.size / SECTOR_BYTES).collect();
            let mut damages = state.manifest.damages.clone();
            damages.retain(|range| state.manifest.has_disk(range.disk, to.0));
            (generation_of(&state, to.0), damages, state.applied, sizes)
        };
        let generation = generation.ok_or(ReadError::Gone(to))?;
        let mut contents = Contents::default();
        for range in damages {
            let end = sizes.get(range.disk as usize).copied().unwrap_or(0);
            let (mut sector, end) =
                (range.block * BLOCK_SECTORS, end.min((range.block + range.blocks) * BLOCK_SECTORS));
            while sector < end {
                let part = Range { disk: range.disk, sector, sectors: LOOKUP_SECTORS_MAX.min(end - sector) };
                let found =
                    with_lookup::<V, _, ReadError>(self, generation, to.0, |lookup| lookup.find(self, part, applied))?;
                for (at, _, found) in found.iter() {
                    if contents.is_damaged(self, *found)? {
                        let disk = self.disk_name(range.disk);
                        return Ok(Some(format!("disk {disk} at offset {}", at * SECTOR_BYTES)));
                    }
                }
                sector += part.sectors;
            }
        }
        Ok(None)
    }
}

fn damaged_at<V: Volume>(journal: &Journal<V>, segment: SegmentId, offset: u64, what: &str) -> ReadError {
    let file = journal.volume().describe(&segment.to_string());
    JournalError::Damaged { file, offset, what: what.to_owned() }.into()
}

impl SavedRecord {
    fn of(header: UndoHeader, content_at: u64, sizes: &[u64]) -> Self {
        let mut at = 0;
        let mut place = |run: UndoRun| {
            let size = sizes.get(run.disk as usize).copied().unwrap_or(0);
            let from = run.block * BLOCK_BYTES;
            let bytes = (from + u64::from(run.blocks) * BLOCK_BYTES).min(size).saturating_sub(from);
            let placed = SavedRun { run, at, sectors: bytes / SECTOR_BYTES };
            at += placed.sectors;
            placed
        };
        let runs = header.runs.into_iter().filter(|run| !run.zero).map(&mut place).collect();
        Self { runs, content_at }
    }

    /// The run whose blocks are found at so many sectors of the content.
    fn run_at(&self, at: u32) -> Option<&SavedRun> {
        self.runs.iter().find(|run| (run.at..run.at + run.sectors).contains(&u64::from(at)))
    }
}
