//! One round of apply: up to 16 MiB of blocks of one disk are read where they have to be, saved, and written.
//!
//! All writes are whole 4 KiB blocks (the last of a disk may be short), so no two of them meet in one block and a disk
//! with 4 KiB sectors needs no reading of its own.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};

use blockio::{ExtentMap, is_zero};
use bytes::Bytes;

use super::content::Fresh;
use super::disks::GroupDisks;
use super::error::ApplyError;
use super::sums::{Damage, Unkept, inspect};
use crate::journal::limits::{BLOCK_BYTES, BLOCK_SECTORS, DISK_IO_BYTES_MAX, ROUND_BLOCKS_MAX, SECTOR_BYTES};
use crate::journal::{Journal, Sum, UndoBlock, Volume};
use crate::rules::Rule;

/// Blocks of one read or write.
const RUN_BLOCKS_MAX: u64 = DISK_IO_BYTES_MAX / BLOCK_BYTES;

/// Where a round writes.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub generation: u64,
    pub disk: u32,
    pub disk_bytes: u64,
    pub keeps_undo: bool,
    /// The sets that the content is of.
    pub sets: RangeInclusive<u64>,
}

/// What became of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    Write,
    Zero,
}

/// Blocks next to each other that get new content.
struct Run {
    block: u64,
    blocks: u64,
    /// Blocks that are read: those to be saved, and those of which a part stays.
    reads: Vec<Range<u64>>,
    unsaved: Vec<(u64, u64)>,
}

/// Splits new content into rounds and does them. Gives the bytes that were written. Their sums are kept when the disks
/// were synced.
pub(super) fn write_disk<V: Volume>(
    journal: &Journal<V>,
    disks: &mut impl GroupDisks,
    unkept: &mut Unkept,
    place: &Place,
    fresh: &ExtentMap<Fresh>,
) -> Result<u64, ApplyError> {
    let mut written = 0;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut in_round = 0;
    let missing = journal.open_damages(place.disk);
    for (block, blocks) in touched(disks, place.disk, fresh, &missing)? {
        let (mut at, end) = (block, block + blocks);
        while at < end {
            let count = (end - at).min(RUN_BLOCKS_MAX).min(ROUND_BLOCKS_MAX as u64 - in_round);
            runs.push((at, count));
            in_round += count;
            at += count;
            if in_round == ROUND_BLOCKS_MAX as u64 {
                written += round(journal, disks, unkept, place, fresh, &std::mem::take(&mut runs))?;
                in_round = 0;
            }
        }
    }
    if !runs.is_empty() {
        written += round(journal, disks, unkept, place, fresh, &runs)?;
    }
    Ok(written)
}

/// Runs of blocks that get new content, in order and apart. Zeroes over a known hole are none (rule S15), but where
/// the disk is damaged: there it has to be seen that they came.
fn touched(
    disks: &mut impl GroupDisks,
    disk: u32,
    fresh: &ExtentMap<Fresh>,
    missing: &[(u64, u64)],
) -> Result<Vec<(u64, u64)>, ApplyError> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut add = |from: u64, to: u64| {
        let (first, end) = (from / BLOCK_BYTES, to.div_ceil(BLOCK_BYTES));
        match runs.last_mut() {
            Some((block, blocks)) if first <= *block + *blocks => *blocks = (*blocks).max(end - *block),
            _ => runs.push((first, end - first)),
        }
    };
    for (sector, sectors, content) in fresh.iter() {
        let (mut at, end) = (sector * SECTOR_BYTES, (sector + sectors) * SECTOR_BYTES);
        let is_missing =
            |(block, blocks): &(u64, u64)| block * BLOCK_BYTES < end && (block + blocks) * BLOCK_BYTES > at;
        if !matches!(content, Fresh::Zero) || missing.iter().any(is_missing) {
            add(at, end);
            continue;
        }
        while at < end {
            let known = disks.allocated(disk, at, end - at)?;
            for run in &known {
                let (from, to) = (run.offset.max(at), (run.offset + run.len).min(end));
                if run.is_data && from < to {
                    add(from, to);
                }
            }
            let told = known.last().map_or(at, |run| run.offset + run.len);
            if told <= at {
                // The disk can't tell: all of it may be data.
                add(at, end);
                break;
            }
            at = told;
        }
    }
    Ok(runs)
}

fn round<V: Volume>(
    journal: &Journal<V>,
    disks: &mut impl GroupDisks,
    unkept: &mut Unkept,
    place: &Place,
    fresh: &ExtentMap<Fresh>,
    runs: &[(u64, u64)],
) -> Result<u64, ApplyError> {
    let runs = plan(journal, place, fresh, runs)?;
    let old = read_old(disks, place, &runs)?;
    let inspected = inspect(journal, place, runs.iter().flat_map(|run| &run.reads).zip(&old))?;
    let mut old = old.into_iter();
    let (mut undo, mut writes, mut zeroes) = (Vec::new(), Vec::new(), Vec::new());
    let mut damage = Damage::default();
    let (mut written, mut sums) = (Vec::new(), Vec::new());
    for run in &runs {
        let old: Vec<(Range<u64>, Bytes)> = run.reads.iter().cloned().zip(&mut old).collect();
        let buffer = compose(disks, place, fresh, run, &old);
        let mut fates = fates(place, fresh, run);
        let lost = lost(fresh, run);
        save(place, run, &old, &buffer, (&inspected.rotten, &lost), &mut fates, &mut undo);
        split(place, run, &buffer, &fates, &mut writes, &mut zeroes);
        sort_damage(place, fresh, run, (&inspected.rotten, &lost), &mut damage);
        for (block, fate) in (run.block..).zip(&fates) {
            let is_seen = *fate == Fate::Keep && inspected.unknown.contains(&block);
            if *fate != Fate::Keep {
                written.push(block);
            }
            if *fate != Fate::Keep || is_seen {
                let bytes = bytes_of(place, &(block..block + 1));
                let from = (bytes.start - run.block * BLOCK_BYTES) as usize;
                sums.push((block, Sum::of(&buffer[from..from + (bytes.end - bytes.start) as usize])));
            }
        }
    }
    if !undo.is_empty() {
        journal.save_undo(place.generation, &undo)?;
    }
    damage.news = inspected.news;
    damage.record(journal, place)?;
    journal.forget_sums(place.disk, &written)?;
    let bytes =
        writes.iter().map(|(_, data)| data.len() as u64).sum::<u64>() + zeroes.iter().map(|(_, len)| len).sum::<u64>();
    if !writes.is_empty() {
        disks.write(place.disk, writes)?;
    }
    if !zeroes.is_empty() {
        disks.zero(place.disk, &zeroes)?;
    }
    sums.into_iter().for_each(|(block, sum)| unkept.put(place.disk, block, sum));
    if !Rule::SumsWaitForSync.holds() {
        unkept.keep(journal)?;
    }
    damage.left.iter().chain(&damage.lost).for_each(|block| unkept.remove(place.disk, *block));
    Ok(bytes)
}

/// Blocks of a run of whose new content a part is lost.
fn lost(fresh: &ExtentMap<Fresh>, run: &Run) -> BTreeSet<u64> {
    let end = run.block + run.blocks;
    let overlapping = fresh.overlapping(run.block * BLOCK_SECTORS, run.blocks * BLOCK_SECTORS);
    let lost = overlapping.filter(|(_, _, content)| matches!(content, Fresh::Lost));
    lost.flat_map(|(at, len, _)| at / BLOCK_SECTORS..(at + len).div_ceil(BLOCK_SECTORS))
        .filter(|block| (run.block..end).contains(block))
        .collect()
}

/// What becomes of the blocks of a run that are not right.
fn sort_damage(
    place: &Place,
    fresh: &ExtentMap<Fresh>,
    run: &Run,
    (rotten, lost): (&BTreeSet<u64>, &BTreeSet<u64>),
    damage: &mut Damage,
) {
    damage.lost.extend(lost);
    for block in rotten.range(run.block..run.block + run.blocks) {
        let bytes = bytes_of(place, &(*block..block + 1));
        let sectors = (bytes.end - bytes.start) / SECTOR_BYTES;
        let is_whole = fresh.gaps(bytes.start / SECTOR_BYTES, sectors).is_empty();
        if (!is_whole || lost.contains(block)) && Rule::RotStaysKnown.holds() {
            damage.left.push(*block);
        } else {
            damage.saved.push(*block);
        }
    }
}

/// Bytes of blocks, the short end of the disk heeded.
fn bytes_of(place: &Place, blocks: &Range<u64>) -> Range<u64> {
    blocks.start * BLOCK_BYTES..(blocks.end * BLOCK_BYTES).min(place.disk_bytes)
}

fn plan<V: Volume>(
    journal: &Journal<V>,
    place: &Place,
    fresh: &ExtentMap<Fresh>,
    runs: &[(u64, u64)],
) -> Result<Vec<Run>, ApplyError> {
    let mut planned = Vec::with_capacity(runs.len());
    for &(block, blocks) in runs {
        let unsaved =
            if place.keeps_undo { journal.unsaved(place.generation, place.disk, block, blocks)? } else { Vec::new() };
        let mut reads: Vec<Range<u64>> = unsaved.iter().map(|(first, count)| *first..first + count).collect();
        let all = bytes_of(place, &(block..block + blocks));
        let (from, to) = (all.start / SECTOR_BYTES, all.end / SECTOR_BYTES);
        let lost = fresh.overlapping(from, to - from).filter(|(_, _, content)| matches!(content, Fresh::Lost));
        let lost = lost.map(|(at, len, _)| (at.max(from), (at + len).min(to) - at.max(from)));
        for (sector, sectors) in fresh.gaps(from, to - from).into_iter().chain(lost) {
            reads.push(sector / BLOCK_SECTORS..(sector + sectors).div_ceil(BLOCK_SECTORS));
        }
        planned.push(Run { block, blocks, reads: joined(reads), unsaved });
    }
    Ok(planned)
}

/// The same blocks as ranges that are ordered and apart.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

fn read_old(disks: &mut impl GroupDisks, place: &Place, runs: &[Run]) -> Result<Vec<Bytes>, ApplyError> {
    let ranges: Vec<(u64, usize)> = runs
        .iter()
        .flat_map(|run| &run.reads)
        .map(|blocks| bytes_of(place, blocks))
        .map(|bytes| (bytes.start, (bytes.end - bytes.start) as usize))
        .collect();
    if ranges.is_empty() { Ok(Vec::new()) } else { Ok(disks.read(place.disk, &ranges)?) }
}

/// The content of a run after the round.
fn compose(
    disks: &mut impl GroupDisks,
    place: &Place,
    fresh: &ExtentMap<Fresh>,
    run: &Run,
    old: &[(Range<u64>, Bytes)],
) -> Bytes {
    let all = bytes_of(place, &(run.block..run.block + run.blocks));
    let mut buffer = disks.buffer((all.end - all.start) as usize);
    for (blocks, bytes) in old {
        let at = (bytes_of(place, blocks).start - all.start) as usize;
        buffer[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let (sector, end) = (all.start / SECTOR_BYTES, all.end / SECTOR_BYTES);
    for (at, len, content) in fresh.clipped(sector, end - sector) {
        let at = (at * SECTOR_BYTES - all.start) as usize;
        let target = &mut buffer[at..at + (len * SECTOR_BYTES) as usize];
        match content {
            Fresh::Data(bytes) => target.copy_from_slice(&bytes),
            Fresh::Zero => target.fill(0),
            Fresh::Lost => {}
        }
    }
    buffer.freeze()
}

/// A block that a zero range covers whole becomes a hole again; all others are written.
fn fates(place: &Place, fresh: &ExtentMap<Fresh>, run: &Run) -> Vec<Fate> {
    let mut fates = vec![Fate::Write; run.blocks as usize];
    let all = bytes_of(place, &(run.block..run.block + run.blocks));
    let (sector, end) = (all.start / SECTOR_BYTES, all.end / SECTOR_BYTES);
    for (at, len, content) in fresh.overlapping(sector, end - sector) {
        if matches!(content, Fresh::Zero) {
            let first = at.div_ceil(BLOCK_SECTORS).max(run.block);
            let is_end = (at + len) * SECTOR_BYTES >= place.disk_bytes;
            let last = if is_end { run.block + run.blocks } else { (at + len) / BLOCK_SECTORS };
            for block in first..last.min(run.block + run.blocks) {
                fates[(block - run.block) as usize] = Fate::Zero;
            }
        }
    }
    fates
}

/// Takes what has to be saved first; a block that would not change is neither saved nor written.
fn save(
    place: &Place,
    run: &Run,
    old: &[(Range<u64>, Bytes)],
    buffer: &Bytes,
    (rotten, lost): (&BTreeSet<u64>, &BTreeSet<u64>),
    fates: &mut [Fate],
    undo: &mut Vec<UndoBlock>,
) {
    let start = run.block * BLOCK_BYTES;
    for block in run.unsaved.iter().flat_map(|(first, count)| *first..first + count) {
        let Some((blocks, bytes)) = old.iter().find(|(blocks, _)| blocks.contains(&block)) else { continue };
        let extent = bytes_of(place, &(block..block + 1));
        let from = (extent.start - blocks.start * BLOCK_BYTES) as usize;
        let before = bytes.slice(from..from + (extent.end - extent.start) as usize);
        let is_damaged = rotten.contains(&block);
        // What stays where new content is lost was right until then.
        let must_save = is_damaged || lost.contains(&block) && Rule::LostIsSaved.holds();
        if !must_save && before == buffer[(extent.start - start) as usize..(extent.end - start) as usize] {
            fates[(block - run.block) as usize] = Fate::Keep;
            continue;
        }
        let content = if is_zero(&before) && !is_damaged { None } else { Some(before) };
        undo.push(UndoBlock { disk: place.disk, block, content, is_damaged });
    }
}

fn split(
    place: &Place,
    run: &Run,
    buffer: &Bytes,
    fates: &[Fate],
    writes: &mut Vec<(u64, Bytes)>,
    zeroes: &mut Vec<(u64, u64)>,
) {
    let start = run.block * BLOCK_BYTES;
    let mut block = run.block;
    for same in fates.chunk_by(PartialEq::eq) {
        let bytes = bytes_of(place, &(block..block + same.len() as u64));
        block += same.len() as u64;
        match same[0] {
            Fate::Keep => {}
            Fate::Write => {
                writes.push((bytes.start, buffer.slice((bytes.start - start) as usize..(bytes.end - start) as usize)));
            }
            Fate::Zero => zeroes.push((bytes.start, bytes.end - bytes.start)),
        }
    }
}
