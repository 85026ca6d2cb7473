//! The one writer of a group's disks.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use proto::frame::{DecodedFrame, Decoder};
use proto::ids::{Counter, SetNumber};

use super::content::{Fresh, Merged};
use super::disks::GroupDisks;
use super::error::ApplyError;
use super::pace::{self, Pace};
use super::round::{Place, write_disk};
use crate::journal::limits::{BATCH_BYTES_MAX, DISK_IO_BYTES_MAX, PIECE_BYTES_MAX, SECTOR_BYTES};
use crate::journal::{Journal, JournalError, RedoRun, Volume, read_record, record_len};
use crate::recover::{PointReader, Ranges};

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

/// Writes sets and bulk content to the disks of a group, with undo.
pub struct Applier<V, D> {
    pub(super) journal: Arc<Journal<V>>,
    pub(super) disks: D,
    decoder: Decoder,
    pace: Pace,
    is_settled: bool,
    is_broken: bool,
}

impl<V: Volume, D: GroupDisks> Applier<V, D> {
    /// The writer of these disks. Before its first step it syncs them: what an earlier process wrote is relied upon
    /// from then on (rule J8).
    pub fn over(journal: Arc<Journal<V>>, disks: D) -> Self {
        Self { journal, disks, decoder: Decoder::new(), pace: Pace::Full, is_settled: false, is_broken: false }
    }

    /// The disks.
    pub fn disks(&mut self) -> &mut D {
        &mut self.disks
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
            applier.disks.sync()?;
            if applier.journal.bulk_open() { Ok(applier.journal.mark_bulk()?) } else { Ok(applier.journal.counter()) }
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
            let mut merged = Merged::default();
            merged.insert(disk, sector, sectors, Fresh::Data(data));
            // Without undo the generation is not asked for.
            let place = Place { generation: 0, disk, disk_bytes, keeps_undo: false };
            for fresh in merged.disks.iter().filter(|fresh| !fresh.is_empty()) {
                write_disk(&applier.journal, &mut applier.disks, place, fresh)?;
            }
            Ok(())
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
        self.is_broken = matches!(done, Err(ApplyError::Disk(_) | ApplyError::Frame { .. }));
        done
    }

    fn settle(&mut self) -> Result<(), ApplyError> {
        self.disks.sync()?;
        if self.journal.bulk_open() {
            self.journal.mark_bulk()?;
        }
        self.is_settled = true;
        Ok(())
    }

    fn next_batch_applied(&mut self) -> Result<Progress, ApplyError> {
        let Some(mut batch) = self.next_batch() else { return Ok(Progress::Idle) };
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
        self.disks.sync()?;
        let set = SetNumber(batch.sets.last().map_or(0, |(number, _)| *number));
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
        let last = generation.last.unwrap_or(u64::MAX).min(state.durable);
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
        for (number, runs) in &batch.sets {
            for run in runs {
                let mut offset = run.offset;
                while offset < run.offset + run.len {
                    let (frame, len) = self.frame(*number, run, offset)?;
                    offset += len;
                    merged.add(&frame);
                    if merged.bytes >= PIECE_BYTES_MAX {
                        written += self.write(batch.generation, keeps_undo, std::mem::take(&mut merged))?;
                    }
                }
            }
        }
        Ok(written + self.write(batch.generation, keeps_undo, merged)?)
    }

    /// A frame of redo, decoded and checked against its capture once more (P6).
    fn frame(&mut self, set: u64, run: &RedoRun, offset: u64) -> Result<(DecodedFrame, u64), ApplyError> {
        let volume = self.journal.volume();
        let len = record_len(volume, run.segment, offset)?;
        let record = read_record(volume, run.segment, offset, len)?;
        let file = || volume.describe(&run.segment.to_string());
        let decoded = self.decoder.decode(&record);
        let frame = decoded.map_err(|source| ApplyError::Frame { set, file: file(), offset, source })?;
        Ok((frame, len))
    }

    fn write_bulk(&mut self, merged: Merged) -> Result<u64, ApplyError> {
        if merged.is_empty() {
            return Ok(0);
        }
        self.pace = Pace::Full;
        let bulk = self.journal.write_bulk()?;
        self.write(bulk.generation, bulk.keeps_undo, merged)
    }

    fn write_rollback(&mut self, merged: Merged, is_spoilt: bool) -> Result<u64, ApplyError> {
        if !is_spoilt {
            return self.write_bulk(merged);
        }
        self.pace = Pace::Full;
        let bulk = self.journal.write_bulk()?;
        self.write(bulk.generation, false, merged)
    }

    fn write(&mut self, generation: u64, keeps_undo: bool, merged: Merged) -> Result<u64, ApplyError> {
        let mut written = 0;
        self.disks.set_depth(match self.pace {
            Pace::Gentle => pace::depth(self.journal.unapplied_bytes()),
            Pace::Full => pace::DEPTH_MAX,
        });
        for (disk, fresh) in merged.disks.iter().enumerate().filter(|(_, fresh)| !fresh.is_empty()) {
            let disk = u32::try_from(disk).unwrap_or(u32::MAX);
            let disk_bytes = self.journal.disk_bytes(disk)?;
            let place = Place { generation, disk, disk_bytes, keeps_undo };
            written += write_disk(&self.journal, &mut self.disks, place, fresh)?;
        }
        Ok(written)
    }
}

impl<V, D> std::fmt::Debug for Applier<V, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier").field("is_broken", &self.is_broken).finish_non_exhaustive()
    }
}
