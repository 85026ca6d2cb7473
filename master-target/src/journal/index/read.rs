//! Finds places in an index file, a few pages per look-up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::Entry;
use super::cache::PageCache;
use super::format::{Head, Identity, Page, index_name, parse_head};
use crate::journal::core::lock;
use crate::journal::header::SegmentId;
use crate::journal::limits::INDEX_PAGE_BYTES;
use crate::journal::volume::{Volume, VolumeError};

/// Why an index can't be used. Its segment is read instead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexFault {
    /// It can't be read.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// It does not hold what was written, or is of something else.
    #[error("{file}: {what}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong.
        what: String,
    },
}

/// The index of a segment, for reading.
#[derive(Debug)]
pub(crate) struct SegmentIndex {
    head: Head,
    file: u64,
    is_bad: AtomicBool,
}

impl SegmentIndex {
    /// Opens an index, which has to be of exactly this. Reads one page.
    pub fn open(volume: &impl Volume, cache: &Mutex<PageCache>, identity: &Identity) -> Result<Self, IndexFault> {
        let name = index_name(identity.segment);
        let damaged = |what: String| IndexFault::Damaged { file: volume.describe(&name), what };
        let mut page = [0; INDEX_PAGE_BYTES];
        volume.read_at(&name, 0, &mut page)?;
        let head = parse_head(&page).map_err(damaged)?;
        if head.identity != *identity {
            return Err(damaged("it is of other records than the segment has".to_owned()));
        }
        if volume.len(&name)? != u64::from(head.pages) * INDEX_PAGE_BYTES as u64 {
            return Err(damaged("it does not have the pages that it announces".to_owned()));
        }
        Ok(Self { head, file: lock(cache).file(), is_bad: AtomicBool::new(false) })
    }

    /// The segment it is of.
    pub fn segment(&self) -> SegmentId {
        self.head.identity.segment
    }

    /// Lowest and highest set of which it has something; none where it has nothing of a set.
    pub fn sets(&self) -> Option<(u64, u64)> {
        (self.head.sets.1 > 0).then_some(self.head.sets)
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        u64::from(self.head.pages) * INDEX_PAGE_BYTES as u64
    }

    /// Says that a page was bad: true the first time.
    pub fn condemn(&self) -> bool {
        !self.is_bad.swap(true, Ordering::Relaxed)
    }

    /// The entries that share a sector with a range, cut to it, by sector.
    pub fn overlapping(
        &self,
        volume: &impl Volume,
        cache: &Mutex<PageCache>,
        disk: u32,
        (sector, sectors): (u64, u64),
    ) -> Result<Vec<Entry>, IndexFault> {
        let end = sector.saturating_add(sectors);
        let mut found = Vec::new();
        self.visit(volume, cache, disk, sector, |entry| {
            if (entry.disk, entry.sector) >= (disk, end) {
                return false;
            }
            if entry.disk < disk {
                return true;
            }
            let (from, to) = (entry.sector.max(sector), (entry.sector.saturating_add(entry.sectors)).min(end));
            if from < to {
                let place = blockio::Slice::slice(&entry.place, from - entry.sector, to - from);
                found.push(Entry { disk, sector: from, sectors: to - from, place });
            }
            true
        })?;
        Ok(found)
    }

    /// The first sector at or after `sector` of which it has something.
    pub fn next_at(
        &self,
        volume: &impl Volume,
        cache: &Mutex<PageCache>,
        disk: u32,
        sector: u64,
    ) -> Result<Option<u64>, IndexFault> {
        let mut next = None;
        self.visit(volume, cache, disk, sector, |entry| {
            if entry.disk == disk && entry.sector.saturating_add(entry.sectors) > sector {
                next = Some(entry.sector.max(sector));
            }
            entry.disk <= disk && next.is_none()
        })?;
        Ok(next)
    }

    /// Gives entries in order, from the last one that begins at or before (disk, sector), for as long as they are wanted.
    fn visit(
        &self,
        volume: &impl Volume,
        cache: &Mutex<PageCache>,
        disk: u32,
        sector: u64,
        mut wanted: impl FnMut(Entry) -> bool,
    ) -> Result<(), IndexFault> {
        if self.head.leaves == 0 {
            return Ok(());
        }
        let mut number = self.head.pages - 1;
        for level in (1..=self.head.height).rev() {
            let page = self.page(volume, cache, number, level)?;
            let after = partition(page.len(), |index| {
                let key = page.key(index);
                (key.disk, key.sector) <= (disk, sector)
            });
            number = page.key(after.saturating_sub(1)).page;
        }
        let mut page = self.page(volume, cache, number, 0)?;
        let after = partition(page.len(), |index| {
            let entry = page.entry(index);
            (entry.disk, entry.sector) <= (disk, sector)
        });
        let mut index = after.saturating_sub(1);
        loop {
            while index < page.len() {
                if !wanted(page.entry(index)) {
                    return Ok(());
                }
                index += 1;
            }
            number += 1;
            if number > self.head.leaves {
                return Ok(());
            }
            page = self.page(volume, cache, number, 0)?;
            index = 0;
        }
    }

    fn page(
        &self,
        volume: &impl Volume,
        cache: &Mutex<PageCache>,
        number: u32,
        level: u32,
    ) -> Result<Arc<Page>, IndexFault> {
        let name = index_name(self.segment());
        let damaged = |what: String| IndexFault::Damaged { file: volume.describe(&name), what };
        let known = lock(cache).page(self.file, number);
        if let Some(page) = known {
            return if page.level() == level {
                Ok(page)
            } else {
                Err(damaged(format!("page {number} is no level {level}")))
            };
        }
        let is_inside = number < self.head.pages && (level > 0 || (1..=self.head.leaves).contains(&number));
        if !is_inside {
            return Err(damaged(format!("a key leads to page {number}, which is none of level {level}")));
        }
        let mut bytes = vec![0; INDEX_PAGE_BYTES].into_boxed_slice();
        volume.read_at(&name, u64::from(number) * INDEX_PAGE_BYTES as u64, &mut bytes)?;
        let page = Arc::new(Page::check(bytes, &self.head.identity, number, level).map_err(damaged)?);
        lock(cache).keep(self.file, number, page.clone());
        Ok(page)
    }
}

/// How many of the first items hold; they come before all that don't.
fn partition(len: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = (low + high) / 2;
        if holds(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
