//! Comparison by digest: which units of the source's disks these disks hold as well.
//!
//! A unit that is the same need not be sent, so "same" is an acknowledgement (rule L4): everything durable is applied
//! before the disks are read, and the answer may be given only with a counter that [`Applier::durable_counter`] returned
//! afterwards. Holes are known to be zero and not read. What can't be read differs: the source sends it, and the write
//! shows what the disk is worth.

use blockio::IoError;
use proto::digest::{self, Differs, UNIT_BYTES};
use proto::ids::Counter;
use proto::replication::CompareRun;

use super::applier::{Applier, Progress};
use super::disks::GroupDisks;
use super::error::ApplyError;
use super::pace::DEPTH_MAX;
use crate::journal::limits::{BLOCK_BYTES, DISK_IO_BYTES_MAX, SECTOR_BYTES};
use crate::journal::{JournalError, Sum, Volume};
use crate::rules::Rule;

/// Content that is in memory at a time, bytes: enough reads to keep a disk busy at depth.
const BATCH_BYTES_MAX: u64 = 16 << 20;
/// Units of one read.
const PIECE_UNITS_MAX: usize = DISK_IO_BYTES_MAX as usize / UNIT_BYTES;

const _: () = assert!(PIECE_UNITS_MAX > 0 && DISK_IO_BYTES_MAX <= BATCH_BYTES_MAX);

/// A whole block that was read.
struct SeenBlock {
    disk: u32,
    block: u64,
    sum: Sum,
    is_same: bool,
}

/// What a comparison has read.
#[derive(Default)]
struct Seen {
    blocks: Vec<SeenBlock>,
}

impl Seen {
    /// Takes in a unit. A run that does not begin with a block has none that counts.
    fn unit(&mut self, disk: u32, offset: u64, content: &[u8], is_same: bool) {
        if !offset.is_multiple_of(BLOCK_BYTES) {
            return;
        }
        // The last block of a disk is short as well: what is no block has another sum, and is left out.
        let whole = (offset / BLOCK_BYTES..).zip(content.chunks_exact(BLOCK_BYTES as usize));
        self.blocks.extend(whole.map(|(block, bytes)| SeenBlock { disk, block, sum: Sum::of(bytes), is_same }));
    }
}

/// Neighbouring units of a run that are read at once.
#[derive(Clone, Copy)]
struct Piece<'a> {
    /// Which of the questions it is a part of.
    question: usize,
    run: &'a CompareRun,
    /// Number of the run's first unit among those of its question.
    base: usize,
    /// First unit, counted in the run.
    unit: usize,
    units: usize,
}

impl<V: Volume, D: GroupDisks> Applier<V, D> {
    /// Applies everything durable and tells which units differ from the disks. Units that do not may be acknowledged once
    /// [`Applier::durable_counter`] has given a counter. A range that is not on the disks is the source's mistake.
    pub fn compare(&mut self, runs: &[CompareRun]) -> Result<Differs, ApplyError> {
        Ok(self.compare_all(&[runs])?.remove(0))
    }

    /// Refuses ranges that are not on the disks.
    pub fn check_runs(&self, runs: &[CompareRun]) -> Result<(), JournalError> {
        runs.iter().try_for_each(|run| self.journal.check_sectors(run.disk, run.sector, u64::from(run.sectors)))
    }

    /// Answers several questions as [`Applier::compare`] does one, with the disks busy from the first read to the last.
    pub fn compare_all(&mut self, questions: &[&[CompareRun]]) -> Result<Vec<Differs>, ApplyError> {
        questions.iter().try_for_each(|runs| self.check_runs(runs))?;
        while self.apply_next_at_once()? != Progress::Idle {}
        self.guarded(|applier| {
            applier.disks.set_depth(DEPTH_MAX);
            let mut seen = Seen::default();
            let differs = compare(&mut applier.disks, questions, &mut seen);
            // They came in the order in which they were read.
            seen.blocks.sort_unstable_by_key(|seen| (seen.disk, seen.block));
            applier.learn(&seen)?;
            Ok(differs)
        })
    }

    /// Takes what a comparison has seen into the tables of block sums: what is the same is right; what differs and is not
    /// what was written has rotted.
    fn learn(&mut self, seen: &Seen) -> Result<(), ApplyError> {
        let mut rotten = Vec::new();
        for run in seen.blocks.chunk_by(|a, b| a.disk == b.disk && a.block + 1 == b.block) {
            let sums = self.journal.sums(run[0].disk, run[0].block, run.len() as u64)?;
            for (block, known) in run.iter().zip(sums) {
                match (known, block.is_same) {
                    (known, _) if known == block.sum => {}
                    // The sum is of an image of the retention volume, which came back without the disks.
                    (known, true) if known != Sum::DAMAGED && !self.unkept.is_full() => {
                        self.unkept.put(block.disk, block.block, block.sum);
                    }
                    (Sum::UNKNOWN | Sum::DAMAGED, _) | (_, true) => {}
                    (_, false) => rotten.push(block),
                }
            }
        }
        if let Some(first) = rotten.first() {
            tracing::warn!(
                group = self.journal.group(),
                disk = self.journal.disk_name(first.disk),
                offset = first.block * BLOCK_BYTES,
                blocks = rotten.len(),
                "a target does not hold what was written to it, as its block sums tell: check the disk"
            );
        }
        Ok(())
    }

    /// Makes everything that is on the disks durable, where it is not yet, and gives the counter of an acknowledgement.
    pub fn durable_counter(&mut self) -> Result<Counter, ApplyError> {
        // Sets are synced as they are applied: only what a catching-up wrote can be left.
        if self.journal.needs_bulk_sync() && Rule::SameIsDurable.holds() {
            return self.sync_bulk();
        }
        self.guarded(|applier| Ok(applier.journal.counter()))
    }
}

fn compare(disks: &mut impl GroupDisks, questions: &[&[CompareRun]], seen: &mut Seen) -> Vec<Differs> {
    let mut differs: Vec<Differs> = questions.iter().map(|runs| Differs::none(digest::units_of(runs))).collect();
    let mut batch: Vec<Piece<'_>> = Vec::new();
    let mut batch_bytes = 0;
    for (question, runs) in questions.iter().enumerate() {
        let mut base = 0;
        for run in *runs {
            let may_hold_data = units_with_data(disks, run);
            let mut unit = 0;
            for same in may_hold_data.chunk_by(|a, b| a == b) {
                let end = unit + same.len();
                while unit < end && !same[0] {
                    judge(run, base, unit, digest::ZERO, &mut differs[question]);
                    unit += 1;
                }
                while unit < end {
                    let piece = Piece { question, run, base, unit, units: (end - unit).min(PIECE_UNITS_MAX) };
                    let bytes = piece.range().1 as u64;
                    if batch_bytes + bytes > BATCH_BYTES_MAX {
                        read_and_judge(disks, &std::mem::take(&mut batch), &mut differs, seen);
                        batch_bytes = 0;
                    }
                    batch.push(piece);
                    batch_bytes += bytes;
                    unit += piece.units;
                }
            }
            base += may_hold_data.len();
        }
    }
    read_and_judge(disks, &batch, &mut differs, seen);
    differs
}

/// For each unit of a run, whether it has to be read: one without any data is a hole, and zero.
fn units_with_data(disks: &mut impl GroupDisks, run: &CompareRun) -> Vec<bool> {
    let start = run.sector * SECTOR_BYTES;
    let end = start + u64::from(run.sectors) * SECTOR_BYTES;
    let mut found = vec![false; digest::units(run.sectors)];
    let mut mark = |from: u64, to: u64| {
        let unit = |at: u64| (at - start) / UNIT_BYTES as u64;
        found[unit(from) as usize..=unit(to - 1) as usize].fill(true);
    };
    let mut at = start;
    while at < end {
        // A disk that can't tell, or fails to, is read.
        let known = disks.allocated(run.disk, at, end - at).unwrap_or_default();
        let told = known.last().map_or(at, |last| (last.offset + last.len).min(end));
        if told <= at {
            mark(at, end);
            break;
        }
        for data in known.iter().filter(|known| known.is_data) {
            let (from, to) = (data.offset.max(at), (data.offset + data.len).min(end));
            if from < to {
                mark(from, to);
            }
        }
        at = told;
    }
    found
}

fn judge(run: &CompareRun, base: usize, unit: usize, found: digest::Digest, differs: &mut Differs) {
    if digest::of_run_unit(run, unit) != found {
        differs.set(base + unit);
    }
}

impl Piece<'_> {
    /// Offset and length on its disk, bytes; the last unit of a run may be short.
    fn range(&self) -> (u64, usize) {
        let offset = self.unit as u64 * UNIT_BYTES as u64;
        let left = u64::from(self.run.sectors) * SECTOR_BYTES - offset;
        let len = left.min(self.units as u64 * UNIT_BYTES as u64);
        (self.run.sector * SECTOR_BYTES + offset, len as usize)
    }

    fn judge(&self, content: &[u8], differs: &mut [Differs], seen: &mut Seen) {
        let differs = &mut differs[self.question];
        for (index, unit) in content.chunks(UNIT_BYTES).enumerate() {
            judge(self.run, self.base, self.unit + index, digest::of_unit(unit), differs);
            let is_same = !differs.contains(self.base + self.unit + index);
            seen.unit(self.run.disk, self.range().0 + (index * UNIT_BYTES) as u64, unit, is_same);
        }
    }
}

fn read_and_judge(disks: &mut impl GroupDisks, pieces: &[Piece<'_>], differs: &mut [Differs], seen: &mut Seen) {
    for of_disk in pieces.chunk_by(|a, b| a.run.disk == b.run.disk) {
        let disk = of_disk[0].run.disk;
        let ranges: Vec<(u64, usize)> = of_disk.iter().map(Piece::range).collect();
        // What has been read is digested while the rest is being read.
        let mut is_judged = vec![false; of_disk.len()];
        let read = disks.read_each(disk, &ranges, &mut |index, content| {
            of_disk[index].judge(content, differs, seen);
            is_judged[index] = true;
        });
        if let Err(error) = read {
            let others = of_disk.iter().zip(is_judged).filter(|(_, is_judged)| !is_judged);
            let others: Vec<Piece<'_>> = others.map(|(piece, _)| *piece).collect();
            read_one_by_one(disks, &others, &error, differs, seen);
        }
    }
}

/// Finds the units that can't be read: one of a batch fails all of it.
fn read_one_by_one(
    disks: &mut impl GroupDisks,
    pieces: &[Piece<'_>],
    error: &IoError,
    differs: &mut [Differs],
    seen: &mut Seen,
) {
    let mut unreadable = 0;
    for piece in pieces {
        for unit in (piece.unit..piece.unit + piece.units).map(|unit| Piece { unit, units: 1, ..*piece }) {
            match disks.read(piece.run.disk, &[unit.range()]).ok().and_then(|mut contents| contents.pop()) {
                Some(content) => unit.judge(&content, differs, seen),
                None => {
                    differs[unit.question].set(unit.base + unit.unit);
                    unreadable += 1;
                }
            }
        }
    }
    tracing::warn!(
        units = unreadable, %error,
        "a target can't be read in some places: they count as different and the source sends them; check the disk"
    );
}
