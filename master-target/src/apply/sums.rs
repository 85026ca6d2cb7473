//! Block sums on the writing side: what was read is judged, what was written is remembered until the disks are synced.
//!
//! Rule J11 (`journal::sums`): forgotten before a write, kept after the sync. What is found damaged here is logged once
//! for each place, recorded with the points that it may spoil, and, where its content was not overwritten
//! whole, asked of the source again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;

use super::round::Place;
use crate::journal::limits::{BLOCK_BYTES, UNKEPT_SUMS_MAX};
use crate::journal::{Journal, JournalResult, Sum, Verdict, Volume};
use crate::rules::Rule;

/// Sums of what was written since the disks were last synced.
#[derive(Debug, Default)]
pub(super) struct Unkept {
    sums: BTreeMap<(u32, u64), Sum>,
}

impl Unkept {
    /// A block was written, or was seen to hold this.
    pub fn put(&mut self, disk: u32, block: u64, sum: Sum) {
        self.sums.insert((disk, block), sum);
    }

    /// A block is not right any more, whatever was written to it.
    pub fn remove(&mut self, disk: u32, block: u64) {
        self.sums.remove(&(disk, block));
    }

    /// Whether the disks have to be synced before more is written.
    pub fn is_full(&self) -> bool {
        self.sums.len() >= UNKEPT_SUMS_MAX
    }

    /// The disks were synced.
    pub fn keep<V: Volume>(&mut self, journal: &Journal<V>) -> JournalResult<()> {
        let sums: Vec<((u32, u64), Sum)> = std::mem::take(&mut self.sums).into_iter().collect();
        for of_disk in sums.chunk_by(|a, b| a.0.0 == b.0.0) {
            let of_blocks: Vec<(u64, Sum)> = of_disk.iter().map(|((_, block), sum)| (*block, *sum)).collect();
            journal.keep_sums(of_disk[0].0.0, &of_blocks)?;
        }
        Ok(())
    }
}

/// What the sums say of blocks that were read.
#[derive(Debug, Default)]
pub(super) struct Inspected {
    /// They do not hold what they should.
    pub rotten: BTreeSet<u64>,
    /// Those of them of which nobody knew.
    pub news: Vec<u64>,
    /// Nothing is known of them.
    pub unknown: BTreeSet<u64>,
}

/// Judges whole blocks that were read, the last of a disk being short.
pub(super) fn inspect<'a, V: Volume>(
    journal: &Journal<V>,
    place: &Place,
    reads: impl Iterator<Item = (&'a Range<u64>, &'a Bytes)>,
) -> JournalResult<Inspected> {
    let mut found = Inspected::default();
    for (blocks, bytes) in reads {
        let sums = journal.sums(place.disk, blocks.start, blocks.end - blocks.start)?;
        for ((block, sum), content) in blocks.clone().zip(sums).zip(bytes.chunks(BLOCK_BYTES as usize)) {
            match sum.judge(content) {
                Verdict::Damaged if !Rule::SumsAreAsked.holds() => {}
                Verdict::Right => {}
                Verdict::Unknown => drop(found.unknown.insert(block)),
                Verdict::Damaged => {
                    found.rotten.insert(block);
                    if sum != Sum::DAMAGED {
                        found.news.push(block);
                    }
                }
            }
        }
    }
    Ok(found)
}

/// What a round makes of blocks that are not right.
#[derive(Debug, Default)]
pub(super) struct Damage {
    /// They were saved as undo, and are overwritten whole.
    pub saved: Vec<u64>,
    /// A part of them is not overwritten.
    pub left: Vec<u64>,
    /// Their new content is lost, the old is there and saved.
    pub lost: Vec<u64>,
    /// What was not known before.
    pub news: Vec<u64>,
}

impl Damage {
    /// Records it durably: after the old content was saved, before anything is written.
    pub fn record<V: Volume>(&self, journal: &Journal<V>, place: &Place) -> JournalResult<()> {
        let disk = place.disk;
        if let Some(first) = self.news.first() {
            let name = journal.disk_name(disk);
            let (offset, blocks) = (first * BLOCK_BYTES, self.news.len());
            tracing::error!(
                group = journal.group(),
                disk = name,
                offset,
                blocks,
                "a target does not hold what was written to it: points that need the old content of these blocks are \
                 damaged; check the disk, then run `process-server verify --repair`"
            );
        }
        // The ranges first: a crash before the sums are durable is followed by the same finding.
        // What was known has its range, which says since when.
        let is_news = |block: &u64| self.news.binary_search(block).is_ok();
        let news_of = |blocks: &[u64]| blocks.iter().copied().filter(is_news).collect::<Vec<u64>>();
        journal.note_damage(disk, &news_of(&self.saved), 0, Some(*place.sets.end()))?;
        journal.note_damage(disk, &news_of(&self.left), 0, None)?;
        journal.note_damage(disk, &self.lost, *place.sets.start(), None)?;
        for blocks in [&self.left, &self.lost] {
            if !blocks.is_empty() {
                journal.condemn(disk, blocks)?;
            }
        }
        Ok(())
    }
}
