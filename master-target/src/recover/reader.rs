//! Reads a recovery point as it was, while sets go on being received and applied.
//!
//! A look-up that ends at the disk checks afterwards whether undo has appeared meanwhile (rule J2). The files of the
//! point are pinned for as long as the reader lives; if the retention volume needs their room, the reader ends with an
//! error sooner than to give wrong content (rule J12).

use std::sync::{Arc, Mutex};

use blockio::{ExtentMap, IoError, Run};
use bytes::Bytes;
use proto::frame::FrameError;
use proto::ids::SetNumber;

use super::contents::Contents;
use super::lookup::{Found, Lookup, LookupError, Range, generation_of};
use crate::apply::{ApplyError, GroupDisks};
use crate::journal::index::{IndexFault, Place, SegmentIndex};
use crate::journal::limits::{BLOCK_BYTES, BLOCK_SECTORS, DISK_IO_BYTES_MAX, LOOKUP_SECTORS_MAX, SECTOR_BYTES};
use crate::journal::{Journal, JournalError, Pin, Verdict, Volume, lock};
use crate::retention::PointInfo;
use crate::rules::Rule;

/// Bytes looked up and read at a time: several reads of a disk at once.
const READ_BYTES_MAX: usize = 4 * DISK_IO_BYTES_MAX as usize;

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
    shared: Arc<Shared<V>>,
    disks: D,
    contents: Contents,
}

/// What all readers of a point have in common.
struct Shared<V: Volume> {
    journal: Arc<Journal<V>>,
    set: SetNumber,
    generation: u64,
    lookup: Mutex<Arc<Lookup>>,
    pin: Arc<Pin>,
}

/// Why a range was not read.
enum Missed {
    Index(Arc<SegmentIndex>, IndexFault),
    Failed(ReadError),
}

impl<E: Into<ReadError>> From<E> for Missed {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn missed(error: LookupError) -> Missed {
    match error {
        LookupError::Index { index, fault } => Missed::Index(index, fault),
        LookupError::Journal(error) => error.into(),
    }
}

impl<V: Volume, D: GroupDisks> PointReader<V, D> {
    /// Finds the content of a point. What it takes does not grow with the journal, but with the segments that have no
    /// index yet.
    pub fn over(journal: Arc<Journal<V>>, disks: D, point: &PointInfo) -> Result<Self, ReadError> {
        let set = point.set;
        let (generation, pin) = loop {
            let mut state = journal.state();
            let generation = generation_of(&state, set.0).ok_or(ReadError::Gone(set))?;
            if state.closed_through.is_some_and(|newest| generation <= newest) {
                drop(state);
                // Held by who prunes or merges, until it is done: only then is it known what is left to read (rule J12).
                drop(lock(&journal.undo));
                continue;
            }
            let pin = Arc::new(Pin::on(generation, set.0));
            if Rule::ReadersPin.holds() {
                state.pins.push(pin.clone());
            }
            break (generation, pin);
        };
        let found = Lookup::of(&journal, generation, set.0);
        let lookup = Mutex::new(Arc::new(found.inspect_err(|_| journal.unpin(&pin))?));
        Ok(Self::of_shared(Arc::new(Shared { journal, set, generation, lookup, pin }), disks))
    }

    fn of_shared(shared: Arc<Shared<V>>, disks: D) -> Self {
        Self { shared, disks, contents: Contents::default() }
    }

    /// Another reader of the same point, for another thread.
    pub fn fork(&self, disks: D) -> Self {
        Self::of_shared(self.shared.clone(), disks)
    }

    /// The set after which the point stands.
    pub fn set(&self) -> SetNumber {
        self.shared.set
    }

    /// Its claim on the journal, revoked once the point was given up for room: every read fails from then on.
    pub fn pin(&self) -> Arc<Pin> {
        self.shared.pin.clone()
    }

    /// Reads whole sectors of a disk as they were.
    pub fn read(&mut self, disk: u32, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let mut at = 0;
        while at < buf.len() {
            let end = buf.len().min(at + READ_BYTES_MAX);
            self.read_part(disk, offset + at as u64, &mut buf[at..end])?;
            at = end;
        }
        Ok(())
    }

    fn read_part(&mut self, disk: u32, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let range = self.check_range(disk, offset, buf.len() as u64)?;
        self.with_lookup(|reader, lookup, applied| {
            let version = reader.shared.journal.state().undo_version;
            let mut found = lookup.find(&reader.shared.journal, range, applied).map_err(missed)?;
            let gaps = found.gaps(range.sector, range.sectors);
            if !gaps.is_empty() {
                let ranges = whole_blocks(&gaps, reader.shared.journal.disk_bytes(disk)?);
                let read = reader.disks.read(disk, &ranges)?;
                for ((at, len), bytes) in ranges.iter().zip(&read) {
                    let (from, to) = ((*at).max(offset), (at + *len as u64).min(offset + buf.len() as u64));
                    buf[(from - offset) as usize..(to - offset) as usize]
                        .copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
                }
                let suspects = reader.suspects(disk, &ranges, &read)?;
                // Apply publishes undo before it writes: if new content was read above, its undo is found now (rule J2).
                if reader.shared.journal.state().undo_version != version && Rule::UndoIsReadAgain.holds() {
                    lookup.fill_undo(&reader.shared.journal, range, &mut found).map_err(missed)?;
                }
                reader.check_suspects(range, suspects, lookup, &mut found)?;
            }
            for (sector, sectors, found) in found.iter() {
                let at = (sector * SECTOR_BYTES - offset) as usize;
                let part = &mut buf[at..at + (sectors * SECTOR_BYTES) as usize];
                reader.contents.fetch(&reader.shared.journal, Range { disk, sector, sectors }, *found, part)?;
            }
            Ok(())
        })
    }

    /// Blocks, of those that were read, that don't look like what was written there.
    fn suspects(&self, disk: u32, ranges: &[(u64, usize)], read: &[Bytes]) -> Result<Vec<u64>, ReadError> {
        let mut suspects = Vec::new();
        for ((at, _), bytes) in ranges.iter().zip(read) {
            let blocks = bytes.chunks(BLOCK_BYTES as usize);
            let sums = self.shared.journal.sums(disk, at / BLOCK_BYTES, blocks.len() as u64)?;
            let judged = (at / BLOCK_BYTES..).zip(sums.into_iter().zip(blocks));
            let judged = judged.filter(|_| Rule::SumsAreAsked.holds());
            suspects
                .extend(judged.filter(|(_, (sum, content))| sum.judge(content) == Verdict::Damaged).map(|(b, _)| b));
        }
        Ok(suspects)
    }

    /// Refuses content that ends at the disk (rule J1) where the disk has rotted (J11). Apply may have been writing the
    /// block while it was read, so it is judged again while nobody does.
    fn check_suspects(
        &mut self,
        range: Range,
        suspects: Vec<u64>,
        lookup: &Lookup,
        found: &mut ExtentMap<Found>,
    ) -> Result<(), Missed> {
        let Self { shared, disks, .. } = self;
        let journal = &shared.journal;
        let size = journal.disk_bytes(range.disk)?;
        for block in suspects {
            let (sector, end) = (block * BLOCK_SECTORS, (block + 1) * BLOCK_SECTORS);
            let (from, to) = (sector.max(range.sector), end.min(range.sector + range.sectors));
            if from >= to || found.gaps(from, to - from).is_empty() {
                continue;
            }
            let offset = block * BLOCK_BYTES;
            let verdict = journal.judge_at_rest(range.disk, block, || {
                let read = disks.read(range.disk, &[(offset, (size - offset).min(BLOCK_BYTES) as usize)])?;
                // It may have been overwritten before the tables were locked: then its old content is in the undo.
                lookup.fill_undo(journal, range, found).map_err(missed)?;
                let is_wanted = !found.gaps(from, to - from).is_empty();
                Ok::<_, Missed>(read.into_iter().next().filter(|_| is_wanted).map(|bytes| bytes.to_vec()))
            })?;
            if verdict == Verdict::Damaged {
                return Err(ReadError::Rotten { disk: journal.disk_name(range.disk), offset }.into());
            }
        }
        Ok(())
    }

    /// Does something with the look-up. Again, where an index could not be used (there is one less then), or where what
    /// was not applied when it was looked up is applied and gone, or segments
    /// went while it was read: each time there are fewer.
    fn with_lookup<T>(
        &mut self,
        mut work: impl FnMut(&mut Self, &Lookup, u64) -> Result<T, Missed>,
    ) -> Result<T, ReadError> {
        let shared = self.shared.clone();
        loop {
            let lookup = lock(&shared.lookup).clone();
            let (applied, layout) = {
                let state = shared.journal.state();
                (state.applied, state.layout)
            };
            let done = work(self, &lookup, applied);
            // A file that was given up is missing: say that, not how it showed.
            if shared.pin.is_revoked() {
                return Err(ReadError::GivenUp(shared.set));
            }
            match done {
                Ok(done) => return Ok(done),
                Err(Missed::Index(index, fault)) => {
                    shared.journal.drop_index(&index, &fault);
                    let anew = Lookup::of(&shared.journal, shared.generation, shared.set.0)?;
                    *lock(&shared.lookup) = Arc::new(anew);
                }
                Err(Missed::Failed(error)) => {
                    let state = shared.journal.state();
                    let is_stale = state.layout != layout || (lookup.may_lag(applied) && state.applied > applied);
                    if !is_stale {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Which parts of a range may hold something other than zeroes. The last run may end before the range does.
    pub fn allocated(&mut self, disk: u32, offset: u64, len: u64) -> Result<Vec<Run>, ReadError> {
        let all = self.check_range(disk, offset, len)?;
        let range = Range { sectors: all.sectors.min(LOOKUP_SECTORS_MAX), ..all };
        self.with_lookup(|reader, lookup, applied| {
            let mut found = lookup.find(&reader.shared.journal, range, applied).map_err(missed)?;
            let mut runs = Vec::new();
            let mut told = range.sector + range.sectors;
            for (at, len) in found.gaps(range.sector, range.sectors) {
                let known = reader.disks.allocated(disk, at * SECTOR_BYTES, len * SECTOR_BYTES)?;
                let end = known.last().map_or(at, |run| (run.offset + run.len) / SECTOR_BYTES).min(at + len);
                runs.extend(
                    known
                        .into_iter()
                        .map(|run| (run.offset / SECTOR_BYTES, run.len.div_ceil(SECTOR_BYTES), run.is_data)),
                );
                if end < at + len {
                    told = end;
                    break;
                }
            }
            lookup.fill_undo(&reader.shared.journal, range, &mut found).map_err(missed)?;
            for (at, len, found) in found.clipped(range.sector, told - range.sector) {
                runs.push((at, len, found.place.at != Place::ZERO));
            }
            Ok(merged_runs(runs, range.sector, told))
        })
    }

    /// Ranges whose content is in the journal, as (disk, first sector, sectors): all others are on the disks as they
    /// were at the point.
    pub fn held_ranges(&mut self) -> Result<Vec<(u32, u64, u64)>, ReadError> {
        self.with_lookup(|reader, lookup, _| {
            let held = lookup.held(&reader.shared.journal, reader.shared.set.0).map_err(missed)?;
            Ok(held.into_iter().map(|range| (range.disk, range.sector, range.sectors)).collect())
        })
    }

    /// Whether the journal holds all of a range, so that nothing of it is read from the disk.
    pub fn holds(&mut self, disk: u32, sector: u64, sectors: u64) -> Result<bool, ReadError> {
        let end = sector + sectors;
        let mut at = sector;
        while at < end {
            let range = Range { disk, sector: at, sectors: LOOKUP_SECTORS_MAX.min(end - at) };
            let has_gaps = self.with_lookup(|reader, lookup, applied| {
                let found = lookup.find(&reader.shared.journal, range, applied).map_err(missed)?;
                Ok(!found.gaps(range.sector, range.sectors).is_empty())
            })?;
            if has_gaps {
                return Ok(false);
            }
            at += range.sectors;
        }
        Ok(true)
    }

    fn check_range(&self, disk: u32, offset: u64, len: u64) -> Result<Range, ReadError> {
        let refused = |what| ReadError::Range { disk, offset, len, what };
        let size = self.shared.journal.disk_bytes(disk).map_err(|_| refused("there is no such disk"))?;
        if !self.shared.journal.state().manifest.has_disk(disk, self.shared.set.0) {
            return Err(refused("the disk was not in the group at this point"));
        }
        if !offset.is_multiple_of(SECTOR_BYTES) || !len.is_multiple_of(SECTOR_BYTES) {
            return Err(refused("it is not made of whole sectors"));
        }
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(refused("it ends beyond the disk"));
        }
        Ok(Range { disk, sector: offset / SECTOR_BYTES, sectors: len / SECTOR_BYTES })
    }
}

impl<V: Volume> Drop for Shared<V> {
    fn drop(&mut self) {
        self.journal.unpin(&self.pin);
    }
}

impl<V: Volume, D> std::fmt::Debug for PointReader<V, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PointReader").field("set", &self.shared.set).finish_non_exhaustive()
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

/// Later runs win over earlier ones; neighbours of a kind are joined.
fn merged_runs(runs: Vec<(u64, u64, bool)>, sector: u64, end: u64) -> Vec<Run> {
    #[derive(Clone)]
    struct IsData(bool);
    impl blockio::Slice for IsData {
        fn slice(&self, _from: u64, _len: u64) -> Self {
            self.clone()
        }
    }
    let mut map = ExtentMap::new();
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
