//! The one writer of a group's disks.

use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::frame::{DecodedFrame, Decoder};
use proto::ids::{Counter, SetNumber};
use proto::replication::FrameHeader;

use super::content::{Fresh, Merged};
use super::disks::GroupDisks;
use super::error::ApplyError;
use super::pace::{self, Pace};
use super::round::{Place, write_disk};
use super::sums::Unkept;
use crate::journal::limits::{BATCH_BYTES_MAX, BLOCK_BYTES, DISK_IO_BYTES_MAX, PIECE_BYTES_MAX, SECTOR_BYTES};
use crate::journal::{Journal, JournalError, RedoRun, Volume, read_header, read_record};
use crate::recover::{PointReader, Ranges};
use crate::rules::Rule;

/// What [`Applier::apply_next`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Sets are on the disks, durably.
    Applied {
        /// The last of them.
        set: SetNumber,
        /// Bytes written to the disks.
        bytes: u64,
    },
    /// There was nothing to do.
    Idle,
}

/// What became of [`Applier::put_point`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The point is on the disks, durably.
    Done,
    /// It was broken off: the disks are a mixture until a point is put.
    BrokenOff,
}

/// Whole sets of one generation.
#[derive(Debug)]
struct Batch {
    generation: u64,
    sets: Vec<(u64, Vec<RedoRun>)>,
}

impl Batch {
    fn first(&self) -> u64 {
        self.sets.first().map_or(0, |(number, _)| *number)
    }

    fn last(&self) -> u64 {
        self.sets.last().map_or(0, |(number, _)| *number)
    }
}

/// What stands at a place of redo.
enum Found {
    Frame(DecodedFrame),
    /// Of the frame only the header is right.
    Lost(FrameHeader),
}

/// Writes sets and bulk content to the disks of a group, with undo.
pub struct Applier<V, D> {
    pub(super) journal: Arc<Journal<V>>,
    pub(super) disks: D,
    decoder: Decoder,
    pub(super) unkept: Unkept,
    pace: Pace,
    is_settled: bool,
    is_broken: bool,
}

impl<V: Volume, D: GroupDisks> Applier<V, D> {
    /// The writer of these disks. Before its first step it syncs them: what an earlier process wrote is relied upon
    /// from then on (rule J8).
    pub fn over(journal: Arc<Journal<V>>, disks: D) -> Self {
        Self {
            journal,
            disks,
            decoder: Decoder::new(),
            unkept: Unkept::default(),
            pace: Pace::Full,
            is_settled: false,
            is_broken: false,
        }
    }

    /// The disks.
    pub fn disks(&mut self) -> &mut D {
        &mut self.disks
    }

    /// Whether it can go on: nothing is written after a failure of the disks or the journal (rule J13).
    ///
    /// # Errors
    /// What the failure was, as far as it is known: both have to be opened anew.
    pub fn check(&self) -> Result<(), ApplyError> {
        if self.is_broken {
            return Err(ApplyError::Stopped);
        }
        Ok(self.journal.check_running()?)
    }

    /// Brings the next durable sets onto the disks: undo, writes, sync, mark. Gently, for nobody waits for it.
    pub fn apply_next(&mut self) -> Result<Progress, ApplyError> {
        self.pace = Pace::Gentle;
        self.guarded(Self::next_batch_applied)
    }

    /// The same when somebody waits.
    pub fn apply_next_at_once(&mut self) -> Result<Progress, ApplyError> {
        self.pace = Pace::Full;
        self.guarded(Self::next_batch_applied)
    }

    /// Applies everything that is durable and makes the mark so too.
    pub fn apply_all_and_sync(&mut self) -> Result<(), ApplyError> {
        while self.apply_next_at_once()? != Progress::Idle {}
        Ok(self.journal.sync_marks()?)
    }

    /// Writes content of a catching-up. It is not durable before [`Applier::sync_bulk`]. Gives the bytes written.
    pub fn apply_bulk(&mut self, frames: &[DecodedFrame]) -> Result<u64, ApplyError> {
        self.guarded(|applier| {
            let mut merged = Merged::default();
            let mut written = 0;
            for frame in frames {
                merged.add(frame);
                if merged.bytes >= PIECE_BYTES_MAX {
                    written += applier.write_bulk(std::mem::take(&mut merged))?;
                }
            }
            Ok(written + applier.write_bulk(merged)?)
        })
    }

    /// Makes what was written while catching up durable, and gives the counter of its acknowledgement.
    pub fn sync_bulk(&mut self) -> Result<Counter, ApplyError> {
        self.guarded(|applier| {
            let catching_up = applier.journal.state().manifest.open_bulk().map(|bulk| bulk.first);
            applier.sync_disks(catching_up)?;
            if catching_up.is_some() { Ok(applier.journal.mark_bulk()?) } else { Ok(applier.journal.counter()) }
        })
    }

    /// Reads the disks as they are, one range of sectors after the other.
    pub fn read_disks(&mut self, ranges: &[(u32, u64, u32)]) -> Result<Vec<u8>, ApplyError> {
        for (disk, sector, sectors) in ranges {
            self.journal.check_sectors(*disk, *sector, u64::from(*sectors))?;
        }
        self.guarded(|applier| {
            let mut content = Vec::new();
            for of_disk in ranges.chunk_by(|a, b| a.0 == b.0) {
                let places: Vec<(u64, usize)> = of_disk
                    .iter()
                    .map(|(_, sector, sectors)| (sector * SECTOR_BYTES, *sectors as usize * SECTOR_BYTES as usize))
                    .collect();
                let read = applier.disks.read(of_disk[0].0, &places)?;
                read.iter().for_each(|bytes| content.extend_from_slice(bytes));
            }
            Ok(content)
        })
    }

    /// Writes one block over damage, without undo: what is overwritten was never the guest's (rule J11). Everything
    /// durable is applied. It is not durable before [`Applier::sync_bulk`].
    pub fn repair(&mut self, disk: u32, sector: u64, data: Bytes, crc: u32) -> Result<(), ApplyError> {
        let sectors = data.len() as u64 / SECTOR_BYTES;
        self.journal.check_sectors(disk, sector, sectors)?;
        if blockio::crc32(&data) != crc {
            let what = format!("a repair of disk {disk}, sector {sector} does not match its checksum");
            return Err(JournalError::Protocol { what }.into());
        }
        let disk_bytes = self.journal.disk_bytes(disk)?;
        self.guarded(|applier| {
            applier.journal.end_generation_that_saved(disk, sector * SECTOR_BYTES / BLOCK_BYTES)?;
            let mut merged = Merged::default();
            merged.insert(disk, sector, sectors, Fresh::Data(data));
            // Without undo the generation is not asked for.
            let set = applier.journal.applied_set().0;
            let place = Place { generation: 0, disk, disk_bytes, keeps_undo: false, sets: set..=set };
            let generation = applier.journal.state().manifest.newest().id;
            let place = match Rule::RepairSavesNothing.holds() {
                true => place,
                false => Place { generation, keeps_undo: true, ..place },
            };
            for fresh in merged.disks.iter().filter(|fresh| !fresh.is_empty()) {
                write_disk(&applier.journal, &mut applier.disks, &mut applier.unkept, &place, fresh)?;
            }
            Ok(())
        })
    }

    /// The disks are about to be handed to somebody else: what they hold from then on is nothing that was written here,
    /// and must not be taken for rot (rule J11).
    pub fn forget_sums(&mut self) -> Result<(), ApplyError> {
        self.guarded(|applier| {
            applier.unkept = Unkept::default();
            Ok(applier.journal.forget_all_sums()?)
        })
    }

    /// Puts a point onto the disks, for a rollback that was begun (rule L5). Only blocks that differ are written, those of
    /// `spoilt` without undo: what stands there was never the guest's, and no point may read it (REVIEW J6). `progress`
    /// is told the bytes looked at, and what may have to be in all; where it breaks off, the rollback stays begun.
    pub fn put_point(
        &mut self,
        reader: &mut PointReader<V, D>,
        spoilt: &Ranges,
        mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Put, ApplyError> {
        let ranges = reader.held_ranges()?;
        let total: u64 = ranges.iter().map(|(_, _, sectors)| sectors * SECTOR_BYTES).sum();
        let mut done = 0;
        for (disk, sector, sectors) in ranges {
            for (sector, sectors, is_spoilt) in spoilt.split(disk, sector, sectors) {
                let (mut at, end) = (sector * SECTOR_BYTES, (sector + sectors) * SECTOR_BYTES);
                while at < end {
                    let len = (end - at).min(DISK_IO_BYTES_MAX);
                    let mut bytes = vec![0; len as usize];
                    reader.read(disk, at, &mut bytes)?;
                    let mut merged = Merged::default();
                    merged.insert(disk, at / SECTOR_BYTES, len / SECTOR_BYTES, Fresh::Data(bytes.into()));
                    self.guarded(|applier| applier.write_rollback(merged, is_spoilt))?;
                    at += len;
                    done += len;
                    if progress(done, total).is_break() {
                        return Ok(Put::BrokenOff);
                    }
                }
            }
        }
        self.sync_bulk()?;
        self.journal.finish_rollback()?;
        Ok(Put::Done)
    }

    /// Does one step, after a failure of which nothing is known of the disks any more.
    pub(super) fn guarded<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, ApplyError>,
    ) -> Result<T, ApplyError> {
        if self.is_broken {
            return Err(ApplyError::Stopped);
        }
        let settled = if self.is_settled { Ok(()) } else { self.settle() };
        let done = settled.and_then(|()| step(self));
        self.is_broken = matches!(done, Err(ApplyError::Disk(_)));
        done
    }

    fn settle(&mut self) -> Result<(), ApplyError> {
        if Rule::DisksAreSynced.holds() {
            self.disks.sync()?;
        }
        if self.journal.bulk_open() {
            self.journal.mark_bulk()?;
        }
        self.is_settled = true;
        Ok(())
    }

    fn next_batch_applied(&mut self) -> Result<Progress, ApplyError> {
        let Some(mut batch) = self.next_batch() else { return Ok(Progress::Idle) };
        self.journal.begin_batch(batch.generation)?;
        let bytes = match self.write_sets(&batch, true) {
            Err(ApplyError::Journal(JournalError::Full { needed, free })) => {
                // Its own redo keeps the set a true point; all before it go where they may (REVIEW J8).
                batch.sets.truncate(1);
                if !self.journal.restart_history(SetNumber(batch.sets[0].0))? {
                    return Err(JournalError::Full { needed, free }.into());
                }
                self.write_sets(&batch, false)?
            }
            done => done?,
        };
        let set = SetNumber(batch.last());
        if Rule::DiskBeforeMark.holds() {
            self.sync_disks(Some(set.0))?;
        }
        self.journal.mark_applied(batch.generation, set)?;
        for run in batch.sets.iter().flat_map(|(_, runs)| runs) {
            self.journal.volume().uncache(&run.segment.to_string(), run.offset, run.len);
        }
        Ok(Progress::Applied { set, bytes })
    }

    /// The next sets: at least one, all of one generation (rule J3), within the bound.
    fn next_batch(&self) -> Option<Batch> {
        let state = self.journal.state();
        let first = state.applied + 1;
        if first > state.durable {
            return None;
        }
        let generation = state.manifest.generation_of(first)?;
        let last = match Rule::BatchOfOneGeneration.holds() {
            true => generation.last.unwrap_or(u64::MAX).min(state.durable),
            false => state.durable,
        };
        let mut batch = Batch { generation: generation.id, sets: Vec::new() };
        let mut bytes = 0;
        for (number, set) in state.sets.complete().range(first..=last) {
            bytes += set.stored_bytes;
            if bytes > BATCH_BYTES_MAX && !batch.sets.is_empty() {
                break;
            }
            batch.sets.push((*number, set.runs.clone()));
        }
        Some(batch).filter(|batch| !batch.sets.is_empty())
    }

    fn write_sets(&mut self, batch: &Batch, keeps_undo: bool) -> Result<u64, ApplyError> {
        let mut merged = Merged::default();
        let mut written = 0;
        let sets = (batch.generation, keeps_undo, batch.first()..=batch.last());
        for (number, runs) in &batch.sets {
            for run in runs {
                let mut offset = run.offset;
                while offset < run.offset + run.len {
                    let (frame, len) = self.frame(*number, run, offset)?;
                    offset += len;
                    match frame {
                        Found::Frame(frame) => merged.add(&frame),
                        Found::Lost(header) => merged.add_lost(&header),
                    }
                    if merged.bytes >= PIECE_BYTES_MAX {
                        written += self.write(sets.clone(), std::mem::take(&mut merged))?;
                    }
                }
            }
        }
        Ok(written + self.write(sets, merged)?)
    }

    /// Makes everything written durable, and keeps its sums. `since` says with which set damaged blocks became right.
    fn sync_disks(&mut self, since: Option<u64>) -> Result<(), ApplyError> {
        self.disks.sync()?;
        self.unkept.keep(&self.journal)?;
        if self.journal.is_damage_open() { Ok(self.journal.note_healed(since)?) } else { Ok(()) }
    }

    /// A frame of redo, decoded and checked against its capture once more (P6), and its length. Where only its header is
    /// right, its content is lost here: the source has dropped it, and has to send what it has there now (REVIEW J14).
    fn frame(&mut self, set: u64, run: &RedoRun, offset: u64) -> Result<(Found, u64), ApplyError> {
        let volume = self.journal.volume();
        let head = read_header(volume, run.segment, offset, run.offset + run.len)?;
        let file = volume.describe(&run.segment.to_string());
        let what = match read_record(volume, run.segment, offset, head.len) {
            Ok(record) => match self.decoder.decode(&record) {
                Ok(frame) => return Ok((Found::Frame(frame), head.len)),
                Err(error) => error.to_string(),
            },
            Err(JournalError::Damaged { what, .. }) => what,
            Err(error) => return Err(error.into()),
        };
        let header = FrameHeader::decode(&head.header[..]);
        let header =
            header.map_err(|error| JournalError::Damaged { file: file.clone(), offset, what: error.to_string() })?;
        let (sectors, _) = self.journal.measure(&header)?;
        tracing::error!(
            group = self.journal.group(),
            set,
            file,
            offset,
            what,
            sectors,
            "a frame of the journal is damaged: its points are, until the source has sent its blocks again; check the \
             disk of the retention volume"
        );
        Ok((Found::Lost(header), head.len))
    }

    fn write_bulk(&mut self, merged: Merged) -> Result<u64, ApplyError> {
        if merged.is_empty() {
            return Ok(0);
        }
        self.pace = Pace::Full;
        let bulk = self.journal.write_bulk()?;
        self.write((bulk.generation, bulk.keeps_undo, bulk.next_set..=bulk.next_set), merged)
    }

    fn write_rollback(&mut self, merged: Merged, is_spoilt: bool) -> Result<u64, ApplyError> {
        if !is_spoilt {
            return self.write_bulk(merged);
        }
        self.pace = Pace::Full;
        let bulk = self.journal.write_bulk()?;
        self.write((bulk.generation, false, bulk.next_set..=bulk.next_set), merged)
    }

    fn write(
        &mut self,
        (generation, keeps_undo, sets): (u64, bool, RangeInclusive<u64>),
        merged: Merged,
    ) -> Result<u64, ApplyError> {
        let mut written = 0;
        self.disks.set_depth(match self.pace {
            Pace::Gentle => pace::depth(self.journal.unapplied_bytes()),
            Pace::Full => pace::DEPTH_MAX,
        });
        for (disk, fresh) in merged.disks.iter().enumerate().filter(|(_, fresh)| !fresh.is_empty()) {
            let disk = u32::try_from(disk).unwrap_or(u32::MAX);
            let disk_bytes = self.journal.disk_bytes(disk)?;
            let (is_gone, is_new) = {
                let state = self.journal.state();
                (state.manifest.is_gone(disk), state.manifest.is_new_in(disk, generation))
            };
            // It was let go: nobody reads it as it was, and somebody else may have it.
            if is_gone {
                continue;
            }
            // A disk that no point has yet has nothing that is worth saving.
            let keeps_undo = keeps_undo && !is_new;
            let place = Place { generation, disk, disk_bytes, keeps_undo, sets: sets.clone() };
            written += write_disk(&self.journal, &mut self.disks, &mut self.unkept, &place, fresh)?;
            if self.unkept.is_full() {
                self.disks.sync()?;
                self.unkept.keep(&self.journal)?;
            }
        }
        Ok(written)
    }
}

impl<V, D> std::fmt::Debug for Applier<V, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier").field("is_broken", &self.is_broken).finish_non_exhaustive()
    }
}
