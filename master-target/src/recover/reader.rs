//! Reads a recovery point as it was, while sets go on being received and applied.
//!
//! A look-up that ends at the disk checks afterwards whether undo has appeared meanwhile (rule J2). The files of the
//! point are pinned for as long as the reader lives; if the retention volume needs their room, the reader ends with an
//! error sooner than to give wrong content (rule J12).

use std::collections::VecDeque;
use std::sync::Arc;

use blockio::{IoError, Run};
use bytes::Bytes;
use proto::frame::{Decoder, FrameError};
use proto::ids::SetNumber;

use super::point_content::{PointContent, SavedRun, Source, generation_of};
use crate::apply::{ApplyError, GroupDisks};
use crate::journal::limits::{BLOCK_BYTES, BLOCK_SECTORS, DISK_IO_BYTES_MAX, READER_FRAMES_MAX, SECTOR_BYTES};
use crate::journal::{Journal, JournalError, Pin, SegmentId, Verdict, Volume, read_record};
use crate::retention::PointInfo;
use crate::rules::Rule;

/// Why a point can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The point is not in the journal.
    #[error("recovery point {0} is not in the journal any more: choose one of `master-target points`")]
    Gone(SetNumber),
    /// It was given up for room while it was read.
    #[error("recovery point {0} was given up because the retention volume is full: make room and choose a newer point")]
    GivenUp(SetNumber),
    /// A range that is not on the disk, or not of whole sectors.
    #[error("{len} bytes at offset {offset} of disk {disk} can't be read: {what}")]
    Range {
        /// Index of the disk.
        disk: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] IoError),
    /// The disk does not hold what was written there.
    #[error(
        "disk {disk} of the target does not hold at offset {offset} what was written there, and the point needs it: choose \
         another point, or run `process-server verify --repair` and repeat the command"
    )]
    Rotten {
        /// Name of the disk.
        disk: String,
        /// First byte of the block.
        offset: u64,
    },
    /// A frame of the journal does not hold what was captured.
    #[error("content of the point is damaged: {source} ({file} at offset {offset}): choose another point")]
    Frame {
        /// The segment.
        file: String,
        /// Bytes from its beginning.
        offset: u64,
        /// What is wrong.
        source: FrameError,
    },
}

impl From<ReadError> for ApplyError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Journal(error) => Self::Journal(error),
            ReadError::Disk(error) => Self::Disk(error),
            error => Self::Point(error.to_string()),
        }
    }
}

/// A point of a group, for reading.
pub struct PointReader<V: Volume, D> {
    journal: Arc<Journal<V>>,
    disks: D,
    set: SetNumber,
    content: PointContent,
    pin: Arc<Pin>,
    decoder: Decoder,
    frames: VecDeque<((SegmentId, u64), Bytes)>,
}

impl<V: Volume, D: GroupDisks> PointReader<V, D> {
    /// Finds the content of a point: takes time with the length of history since then.
    pub fn over(journal: Arc<Journal<V>>, disks: D, point: &PointInfo) -> Result<Self, ReadError> {
        let set = point.set;
        let (generation, pin) = {
            let mut state = journal.state();
            let generation = generation_of(&state, set.0).ok_or(ReadError::Gone(set))?;
            let pin = Arc::new(Pin::on(generation, set.0));
            if Rule::ReadersPin.holds() {
                state.pins.push(pin.clone());
            }
            (generation, pin)
        };
        let built = PointContent::build(&journal, generation, set.0);
        let content = built.inspect_err(|_| journal.unpin(&pin))?;
        Ok(Self { journal, disks, set, content, pin, decoder: Decoder::new(), frames: VecDeque::new() })
    }

    /// The set after which the point stands.
    pub fn set(&self) -> SetNumber {
        self.set
    }

    /// Reads whole sectors of a disk as they were.
    pub fn read(&mut self, disk: u32, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let mut at = 0;
        while at < buf.len() {
            let end = buf.len().min(at + DISK_IO_BYTES_MAX as usize);
            self.read_part(disk, offset + at as u64, &mut buf[at..end])?;
            at = end;
        }
        Ok(())
    }

    fn read_part(&mut self, disk: u32, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let (sector, sectors) = self.check_range(disk, offset, buf.len() as u64)?;
        let gaps = self.map(disk).gaps(sector, sectors);
        if !gaps.is_empty() {
            let size = self.journal.disk_bytes(disk)?;
            let ranges = whole_blocks(&gaps, size);
            let read = self.disks.read(disk, &ranges)?;
            for ((at, len), bytes) in ranges.iter().zip(&read) {
                let (from, to) = ((*at).max(offset), (at + *len as u64).min(offset + buf.len() as u64));
                buf[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
            }
            let suspects = self.suspects(disk, &ranges, &read)?;
            // Apply publishes undo before it writes: if new content was read above, its undo is found now.
            if Rule::UndoIsReadAgain.holds() {
                self.content.refresh(&self.journal)?;
            }
            self.check_suspects(disk, (sector, sectors), suspects)?;
        }
        let found: Vec<(u64, u64, Source)> = self.map(disk).clipped(sector, sectors).collect();
        for (at, len, source) in found {
            let at = (at * SECTOR_BYTES - offset) as usize;
            self.fetch(&source, &mut buf[at..at + (len * SECTOR_BYTES) as usize])?;
        }
        self.check_pin()
    }

    /// Blocks, of those that were read, that don't look like what was written there.
    fn suspects(&self, disk: u32, ranges: &[(u64, usize)], read: &[Bytes]) -> Result<Vec<u64>, ReadError> {
        let mut suspects = Vec::new();
        for ((at, _), bytes) in ranges.iter().zip(read) {
            let blocks = bytes.chunks(BLOCK_BYTES as usize);
            let sums = self.journal.sums(disk, at / BLOCK_BYTES, blocks.len() as u64)?;
            let judged = (at / BLOCK_BYTES..).zip(sums.into_iter().zip(blocks));
            let judged = judged.filter(|_| Rule::SumsAreAsked.holds());
            suspects
                .extend(judged.filter(|(_, (sum, content))| sum.judge(content) == Verdict::Damaged).map(|(b, _)| b));
        }
        Ok(suspects)
    }

    /// Refuses content that ends at the disk (rule J1) where the disk has rotted (J11). Apply may have been writing the
    /// block while it was read, so it is judged again while nobody does.
    fn check_suspects(&mut self, disk: u32, wanted: (u64, u64), suspects: Vec<u64>) -> Result<(), ReadError> {
        let size = self.journal.disk_bytes(disk)?;
        for block in suspects {
            let (sector, end) = (block * BLOCK_SECTORS, (block + 1) * BLOCK_SECTORS);
            let (from, to) = (sector.max(wanted.0), end.min(wanted.0 + wanted.1));
            if from >= to || self.map(disk).gaps(from, to - from).is_empty() {
                continue;
            }
            let offset = block * BLOCK_BYTES;
            let Self { disks, content, journal, .. } = self;
            let verdict = journal.judge_at_rest(disk, block, || {
                let read = disks.read(disk, &[(offset, (size - offset).min(BLOCK_BYTES) as usize)])?;
                // It may have been overwritten before the tables were locked: then its old content is in the undo.
                content.refresh(journal)?;
                let is_wanted = !content.disks[disk as usize].gaps(from, to - from).is_empty();
                Ok::<_, ReadError>(read.into_iter().next().filter(|_| is_wanted).map(|bytes| bytes.to_vec()))
            })?;
            if verdict == Verdict::Damaged {
                return Err(ReadError::Rotten { disk: self.journal.disk_name(disk), offset });
            }
        }
        Ok(())
    }

    /// Which parts of a range may hold something other than zeroes. The last run may end before the range does.
    pub fn allocated(&mut self, disk: u32, offset: u64, len: u64) -> Result<Vec<Run>, ReadError> {
        let (sector, sectors) = self.check_range(disk, offset, len)?;
        let mut runs = Vec::new();
        let mut told = sector + sectors;
        for (at, len) in self.map(disk).gaps(sector, sectors) {
            let known = self.disks.allocated(disk, at * SECTOR_BYTES, len * SECTOR_BYTES)?;
            let end = known.last().map_or(at, |run| (run.offset + run.len) / SECTOR_BYTES).min(at + len);
            runs.extend(
                known.into_iter().map(|run| (run.offset / SECTOR_BYTES, run.len.div_ceil(SECTOR_BYTES), run.is_data)),
            );
            if end < at + len {
                told = end;
                break;
            }
        }
        self.content.refresh(&self.journal)?;
        for (at, len, source) in self.map(disk).clipped(sector, told - sector) {
            runs.push((at, len, !matches!(source, Source::Zero)));
        }
        self.check_pin()?;
        Ok(merged_runs(runs, sector, told))
    }

    /// Ranges whose content is in the journal, as (disk, first sector, sectors): all others are on the disks as they
    /// were at the point.
    pub fn held_ranges(&self) -> Vec<(u32, u64, u64)> {
        let mut ranges: Vec<(u32, u64, u64)> = Vec::new();
        for (disk, map) in (0..).zip(&self.content.disks) {
            for (sector, sectors, _) in map.iter() {
                match ranges.last_mut() {
                    Some((of, at, len)) if *of == disk && *at + *len == sector => *len += sectors,
                    _ => ranges.push((disk, sector, sectors)),
                }
            }
        }
        ranges
    }

    fn map(&self, disk: u32) -> &blockio::ExtentMap<Source> {
        &self.content.disks[disk as usize]
    }

    fn check_range(&self, disk: u32, offset: u64, len: u64) -> Result<(u64, u64), ReadError> {
        let refused = |what| ReadError::Range { disk, offset, len, what };
        let size = self.journal.disk_bytes(disk).map_err(|_| refused("there is no such disk"))?;
        if !offset.is_multiple_of(SECTOR_BYTES) || !len.is_multiple_of(SECTOR_BYTES) {
            return Err(refused("it is not made of whole sectors"));
        }
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(refused("it ends beyond the disk"));
        }
        Ok((offset / SECTOR_BYTES, len / SECTOR_BYTES))
    }

    fn check_pin(&self) -> Result<(), ReadError> {
        if self.pin.is_revoked() { Err(ReadError::GivenUp(self.set)) } else { Ok(()) }
    }

    fn fetch(&mut self, source: &Source, buf: &mut [u8]) -> Result<(), ReadError> {
        let fetched = match source {
            Source::Zero => {
                buf.fill(0);
                Ok(())
            }
            Source::Undo { run, skip } => fetch_saved(self.journal.volume(), run, *skip, buf).map_err(Into::into),
            Source::Redo { segment, offset, len, raw_at } => self.frame(*segment, *offset, *len).and_then(|raw| {
                let part = raw.get(*raw_at as usize..*raw_at as usize + buf.len());
                let damaged = || JournalError::Damaged {
                    file: self.journal.volume().describe(&segment.to_string()),
                    offset: *offset,
                    what: "the frame is shorter than its extents".to_owned(),
                };
                buf.copy_from_slice(part.ok_or_else(damaged)?);
                Ok(())
            }),
        };
        // A file that was given up is missing: say that, not how it showed.
        self.check_pin()?;
        fetched
    }

    /// The decoded payload of a frame, from the last few that were used where it is among them.
    fn frame(&mut self, segment: SegmentId, offset: u64, len: u64) -> Result<Bytes, ReadError> {
        if let Some(at) = self.frames.iter().position(|(key, _)| *key == (segment, offset)) {
            let hit = self.frames.remove(at);
            let raw = hit.map(|(_, raw)| raw).unwrap_or_default();
            self.frames.push_back(((segment, offset), raw.clone()));
            return Ok(raw);
        }
        let volume = self.journal.volume();
        let record = read_record(volume, segment, offset, len)?;
        let decoded = self.decoder.decode(&record);
        let file = || volume.describe(&segment.to_string());
        let raw = decoded.map_err(|source| ReadError::Frame { file: file(), offset, source })?.raw;
        if self.frames.len() >= READER_FRAMES_MAX {
            self.frames.pop_front();
        }
        self.frames.push_back(((segment, offset), raw.clone()));
        Ok(raw)
    }
}

impl<V: Volume, D> Drop for PointReader<V, D> {
    fn drop(&mut self) {
        self.journal.unpin(&self.pin);
    }
}

impl<V: Volume, D> std::fmt::Debug for PointReader<V, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PointReader").field("set", &self.set).finish_non_exhaustive()
    }
}

/// Ranges of sectors, in order, as ranges of whole blocks in bytes, none longer than a disk takes at a time.
fn whole_blocks(sectors: &[(u64, u64)], size: u64) -> Vec<(u64, usize)> {
    let mut ranges: Vec<(u64, u64)> = Vec::with_capacity(sectors.len());
    for (sector, count) in sectors {
        let from = sector / BLOCK_SECTORS * BLOCK_BYTES;
        let to = ((sector + count).div_ceil(BLOCK_SECTORS) * BLOCK_BYTES).min(size);
        match ranges.last_mut() {
            Some((_, end)) if from <= *end => *end = to,
            _ => ranges.push((from, to)),
        }
    }
    let pieces = ranges.into_iter().flat_map(|(from, to)| {
        (from..to).step_by(DISK_IO_BYTES_MAX as usize).map(move |at| (at, (to - at).min(DISK_IO_BYTES_MAX) as usize))
    });
    pieces.collect()
}

/// Reads the blocks that a range touches, checks each against the CRC it was saved with, and copies the range.
fn fetch_saved(volume: &impl Volume, run: &SavedRun, skip: u64, buf: &mut [u8]) -> Result<(), JournalError> {
    let (first, end) = (skip / BLOCK_SECTORS, (skip * SECTOR_BYTES + buf.len() as u64).div_ceil(BLOCK_BYTES));
    let from = first * BLOCK_BYTES;
    let bytes = (end * BLOCK_BYTES).min(run.bytes).saturating_sub(from);
    let name = run.segment.to_string();
    let damaged = |at: u64| JournalError::Damaged {
        file: volume.describe(&name),
        offset: run.offset + at,
        what: if run.is_damaged {
            format!("the target had rotted before this block was saved, at offset {} of its disk", run.disk_offset + at)
        } else {
            "a saved block does not have the content that was saved".to_owned()
        },
    };
    let mut blocks = vec![0; bytes as usize];
    volume.read_at(&name, run.offset + from, &mut blocks)?;
    for (index, block) in (first..).zip(blocks.chunks(BLOCK_BYTES as usize)) {
        if run.crcs.get(index as usize) != Some(&blockio::crc32(block)) {
            return Err(damaged(index * BLOCK_BYTES));
        }
    }
    let at = (skip * SECTOR_BYTES - from) as usize;
    buf.copy_from_slice(blocks.get(at..at + buf.len()).ok_or_else(|| damaged(from))?);
    Ok(())
}

/// Later runs win over earlier ones; neighbours of a kind are joined.
fn merged_runs(runs: Vec<(u64, u64, bool)>, sector: u64, end: u64) -> Vec<Run> {
    #[derive(Clone)]
    struct IsData(bool);
    impl blockio::Slice for IsData {
        fn slice(&self, _from: u64, _len: u64) -> Self {
            self.clone()
        }
    }
    let mut map = blockio::ExtentMap::new();
    for (at, len, is_data) in runs.into_iter().filter(|(_, len, _)| *len > 0) {
        map.insert(at, len, IsData(is_data));
    }
    let mut merged: Vec<Run> = Vec::new();
    for (at, len, IsData(is_data)) in map.clipped(sector, end - sector) {
        let (offset, bytes) = (at * SECTOR_BYTES, len * SECTOR_BYTES);
        match merged.last_mut() {
            Some(last) if last.is_data == is_data && last.offset + last.len == offset => last.len += bytes,
            _ => merged.push(Run { offset, len: bytes, is_data }),
        }
    }
    merged
}
