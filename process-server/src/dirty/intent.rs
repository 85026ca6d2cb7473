//! Write-intent marks: which regions of 1 MiB may hold something that the target does not have durably.
//!
//! Three images of the marks. *Wanted* is what they should say now; *committing* is what is being written to the state
//! volume, one commit at a time; *durable* is what is known to be there. A write may be submitted when its regions are
//! marked in all of them (rule S7): a region that is being unmarked by a commit under way needs another commit after it
//! (REVIEW W2). Which regions may be unmarked is decided by the group (`group::marks`), which knows what is acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use blockio::BLOCK;
use bytes::Bytes;
use proto::ids::{Counter, DiskIndex, Lineage};

use super::page::{self, Bits, Head, PAGE_REGIONS, PAGE_WORDS};
use crate::rules::Rule;

/// Bytes of a region.
pub const REGION_BYTES: u64 = 1 << 20;

/// Where the regions of each disk lie among the pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Blocks of a region.
    region_blocks: u64,
    /// Regions of each disk.
    regions: Vec<u64>,
    /// First page of each disk, and after the last disk the number of pages.
    first_page: Vec<u32>,
}

impl Layout {
    /// The layout for disks of these sizes in bytes.
    #[must_use]
    pub fn of(sizes: impl IntoIterator<Item = u64>) -> Self {
        Self::with_regions(sizes, REGION_BYTES / BLOCK)
    }

    /// The same with regions of another size, for simulations of small disks.
    #[must_use]
    pub fn with_regions(sizes: impl IntoIterator<Item = u64>, region_blocks: u64) -> Self {
        let regions: Vec<u64> = sizes.into_iter().map(|size| size.div_ceil(region_blocks * BLOCK)).collect();
        let mut first_page = vec![0];
        for count in &regions {
            let pages = u32::try_from(count.div_ceil(PAGE_REGIONS)).expect("a disk of 64 TiB has 2,081 pages");
            first_page.push(first_page[first_page.len() - 1] + pages);
        }
        Self { region_blocks, regions, first_page }
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.first_page[self.regions.len()]
    }

    /// Number of disks.
    #[must_use]
    pub fn disks(&self) -> usize {
        self.regions.len()
    }

    /// Blocks of a region.
    #[must_use]
    pub fn region_blocks(&self) -> u64 {
        self.region_blocks
    }

    /// The regions that blocks lie in.
    pub(crate) fn around(&self, block: u64, blocks: u64) -> std::ops::RangeInclusive<u64> {
        block / self.region_blocks..=(block + blocks - 1) / self.region_blocks
    }

    /// Regions of a disk.
    #[must_use]
    pub fn regions(&self, disk: DiskIndex) -> u64 {
        self.regions[disk.0 as usize]
    }

    /// Page and bit of a region.
    fn place(&self, disk: DiskIndex, region: u64) -> (u32, usize) {
        debug_assert!(region < self.regions(disk));
        let page = self.first_page[disk.0 as usize] + (region / PAGE_REGIONS) as u32;
        (page, (region % PAGE_REGIONS) as usize)
    }

    /// The disk of a page, and its number among the disk's.
    fn owner(&self, page: u32) -> (u32, u32) {
        let disk = self.first_page.partition_point(|first| *first <= page) - 1;
        (disk as u32, page - self.first_page[disk])
    }

    /// The page with every region of its disk marked.
    fn full_page(&self, page: u32) -> Bits {
        let (disk, of_disk) = self.owner(page);
        let here = self.regions[disk as usize] - u64::from(of_disk) * PAGE_REGIONS;
        let mut bits = [0; PAGE_WORDS];
        for (index, word) in bits.iter_mut().enumerate() {
            let left = here.saturating_sub(index as u64 * 64);
            *word = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
        }
        bits
    }
}

/// What the marks know of the target: the newest durable acknowledgement (rule L1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Lineage of the target.
    pub lineage: Lineage,
    /// Its counter.
    pub counter: Counter,
}

/// Pages to be written in place and synced, as one.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Number and content of each page.
    pub pages: Vec<(u32, Bytes)>,
}

/// One image of all pages.
type Image = Vec<Bits>;

/// The marks of a group. See the module's documentation.
#[derive(Debug)]
pub struct Intent {
    layout: Layout,
    wanted: Image,
    durable: Image,
    committing: Option<BTreeMap<u32, Bits>>,
    /// Regions that a write came to, or was in flight on, since the last `begin_watch`.
    touched: Image,
    /// Pages whose wanted bits no commit has taken yet.
    changed: BTreeSet<u32>,
    commit: u64,
    committed: u64,
    /// Everything is in doubt, and not yet durably so.
    in_doubt: bool,
    /// In doubt: commits keep the number of the last until every region is marked durably, then they go on above this one.
    held_below: Option<u64>,
    /// The target has not been heard yet in this start: commits keep the number that was found.
    waits_for_target: bool,
    /// One did.
    has_kept_number: bool,
    key: Option<Key>,
}

impl Intent {
    /// Marks of disks of which nothing is known: every region is wanted, none is durable.
    #[must_use]
    pub fn unknown(layout: Layout) -> Self {
        let none: Image = vec![[0; PAGE_WORDS]; layout.pages() as usize];
        let mut intent = Self {
            wanted: none.clone(),
            durable: none.clone(),
            touched: none,
            committing: None,
            changed: BTreeSet::new(),
            commit: 0,
            committed: 0,
            in_doubt: false,
            held_below: None,
            waits_for_target: false,
            has_kept_number: false,
            key: None,
            layout,
        };
        intent.want_all();
        intent
    }

    /// The marks that pages hold. None where they don't fit the layout or each other: then nothing is known. A page
    /// that is damaged was being written when the power went, and counts as marked everywhere.
    #[must_use]
    pub fn read(layout: Layout, pages: &[u8]) -> Option<Self> {
        let mut intent = Self::unknown(layout);
        let layout = intent.layout.clone();
        if pages.len() != layout.pages() as usize * page::PAGE_BYTES || pages.is_empty() {
            return None;
        }
        intent.changed.clear();
        let mut any = false;
        for (number, bytes) in (0..).zip(pages.chunks_exact(page::PAGE_BYTES)) {
            let Some((head, bits)) = page::decode(bytes) else {
                intent.changed.insert(number);
                continue;
            };
            let (disk, of_disk) = layout.owner(number);
            if (head.disk, head.page, head.regions) != (disk, of_disk, layout.regions[disk as usize]) {
                return None;
            }
            any = true;
            intent.commit = intent.commit.max(head.commit);
            // Without a lineage no acknowledgement was known, so nothing was ever unmarked.
            if head.lineage != [0; 16] {
                let lineage = Lineage(head.lineage);
                let counter = intent.key.map_or(0, |key| key.counter.0).max(head.counter);
                if intent.key.is_some_and(|key| key.lineage != lineage) {
                    return None;
                }
                intent.key = Some(Key { lineage, counter: Counter(counter) });
            }
            intent.wanted[number as usize] = *bits;
            intent.durable[number as usize] = *bits;
        }
        intent.committed = intent.commit;
        any.then_some(intent)
    }

    /// Where the regions lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What is known of the target.
    #[must_use]
    pub fn key(&self) -> Option<Key> {
        self.key
    }

    /// Learns of a newer acknowledgement. A commit carries it before anything is unmarked on its strength.
    pub fn learn(&mut self, key: Key) {
        self.key = Some(key);
    }

    /// Number of the newest commit that is durable, or the one that follows at once after `target_is_heard`.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// A start: the target is yet to say which number it has seen. If these marks come from an image, lives in which it can't
    /// be asked must not count up to that number, or a later start would pass for one that the target knows.
    pub fn wait_for_target(&mut self) {
        self.waits_for_target = Rule::NumbersWaitForTarget.holds();
    }

    /// The target has seen no later number. An image of this start may be older than a write that was committed after it
    /// under the same number: so what is sent from now on has the next one, whose commit follows at once. A crash before
    /// that is durable makes the next start doubt everything, which is safe.
    pub fn target_is_heard(&mut self) {
        self.waits_for_target = false;
        if std::mem::take(&mut self.has_kept_number) {
            self.committed = self.commit + 1;
            self.changed.insert(0);
        }
    }

    /// Later commits have numbers above this one: the target has seen it.
    pub fn number_above(&mut self, number: u64) {
        match &mut self.held_below {
            Some(held) => *held = number.max(*held),
            None => self.commit = self.commit.max(number),
        }
    }

    /// Everything is in doubt, since the target has seen this number, which is above that of these marks. A page that is
    /// numbered above it would make the doubt look settled while other pages still lack their marks (rule S12).
    pub fn doubt_below(&mut self, number: u64) {
        self.doubt();
        self.waits_for_target = false;
        if Rule::DoubtIsWhole.holds() {
            self.held_below = Some(number);
        } else {
            self.number_above(number);
        }
    }

    /// Everything is in doubt.
    pub fn doubt(&mut self) {
        self.want_all();
        self.in_doubt = true;
    }

    /// Whether a doubt is not yet durable as a whole: nothing may be unmarked.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// A write to these blocks has arrived: its regions are wanted.
    pub fn want(&mut self, disk: DiskIndex, block: u64, blocks: u64) {
        for region in self.layout.around(block, blocks) {
            let (page, bit) = self.layout.place(disk, region);
            set(&mut self.touched[page as usize], bit);
            if set(&mut self.wanted[page as usize], bit) {
                self.changed.insert(page);
            }
        }
    }

    /// Whether a write to these blocks may be submitted: its regions are marked, and stay so whatever is being written.
    #[must_use]
    pub fn covers(&self, disk: DiskIndex, block: u64, blocks: u64) -> bool {
        self.layout.around(block, blocks).all(|region| {
            let (page, bit) = self.layout.place(disk, region);
            let committing = self.committing.as_ref().and_then(|pages| pages.get(&page));
            is_set(&self.wanted[page as usize], bit)
                && is_set(&self.durable[page as usize], bit)
                && (committing.is_none_or(|bits| is_set(bits, bit)) || !Rule::UnmarkingNeedsMark.holds())
        })
    }

    /// Every region is wanted.
    fn want_all(&mut self) {
        for page in 0..self.layout.pages() {
            self.wanted[page as usize] = self.layout.full_page(page);
            self.changed.insert(page);
        }
    }

    /// Forgets which regions were touched, but for those of the writes in flight, which the caller wants again.
    pub fn begin_watch(&mut self) {
        self.touched.fill([0; PAGE_WORDS]);
    }

    /// The region is marked and was not touched since `begin_watch`.
    #[must_use]
    pub fn is_at_rest(&self, disk: DiskIndex, region: u64) -> bool {
        let (page, bit) = self.layout.place(disk, region);
        let page = page as usize;
        is_set(&self.wanted[page], bit) && !is_set(&self.touched[page], bit)
    }

    /// The first marked region of a disk at or after `from` that was not touched since `begin_watch`.
    #[must_use]
    pub fn next_at_rest(&self, disk: DiskIndex, from: u64) -> Option<u64> {
        let mut region = from;
        while region < self.layout.regions(disk) {
            let (page, bit) = self.layout.place(disk, region);
            let (page, word) = (page as usize, bit / 64);
            let rest = (self.wanted[page][word] & !self.touched[page][word]) >> (bit % 64);
            if rest != 0 {
                return Some(region + u64::from(rest.trailing_zeros()));
            }
            region += 64 - (bit % 64) as u64;
        }
        None
    }

    /// The content of a region is on the target for good. A write after this needs a new mark (REVIEW W2).
    pub fn unmark(&mut self, disk: DiskIndex, region: u64) {
        let (page, bit) = self.layout.place(disk, region);
        self.wanted[page as usize][bit / 64] &= !(1 << (bit % 64));
        self.changed.insert(page);
    }

    /// Every region is wanted, and nothing that is on the state volume counts: every page is written anew.
    pub fn want_anew(&mut self) {
        self.want_all();
        self.durable.iter_mut().for_each(|page| page.fill(0));
    }

    /// Whether every region is wanted.
    #[cfg(test)]
    pub(crate) fn is_all_wanted(&self) -> bool {
        (0..).zip(&self.wanted).all(|(page, bits)| *bits == self.layout.full_page(page))
    }

    /// Whether every region is marked durably, with no commit under way that would change it.
    #[must_use]
    pub fn is_all_durable(&self) -> bool {
        let is_full = |(page, bits): (u32, &Bits)| *bits == self.layout.full_page(page);
        self.committing.is_none() && (0..).zip(&self.durable).all(is_full)
    }

    /// Whether any region is marked.
    #[must_use]
    pub fn any(&self) -> bool {
        self.wanted.iter().flatten().any(|word| *word != 0)
    }

    /// The marked regions of a disk, as runs of (first region, count).
    #[must_use]
    pub fn marked(&self, disk: DiskIndex) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for region in 0..self.layout.regions(disk) {
            let (page, bit) = self.layout.place(disk, region);
            if is_set(&self.wanted[page as usize], bit) {
                match runs.last_mut() {
                    Some((first, count)) if *first + *count == region => *count += 1,
                    _ => runs.push((region, 1)),
                }
            }
        }
        runs
    }

    /// Whether a commit is under way.
    #[must_use]
    pub fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// Whether a commit has something to write.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The next commit, if there is something to write and none is under way.
    pub fn begin_commit(&mut self) -> Option<Commit> {
        if self.committing.is_some() || self.changed.is_empty() {
            return None;
        }
        if self.held_below.is_none() && !self.waits_for_target {
            self.commit += 1;
        }
        self.has_kept_number |= self.waits_for_target;
        let mut images = BTreeMap::new();
        let mut pages = Vec::with_capacity(self.changed.len());
        for page in std::mem::take(&mut self.changed) {
            let bits = self.wanted[page as usize];
            pages.push((page, self.encode(page, &bits)));
            images.insert(page, bits);
        }
        self.committing = Some(images);
        Some(Commit { pages })
    }

    fn encode(&self, number: u32, bits: &Bits) -> Bytes {
        let (disk, of_disk) = self.layout.owner(number);
        let head = Head {
            disk,
            page: of_disk,
            regions: self.layout.regions[disk as usize],
            commit: self.commit,
            lineage: self.key.map_or([0; 16], |key| key.lineage.0),
            counter: self.key.map_or(0, |key| key.counter.0),
        };
        page::encode(&head, bits)
    }

    /// The commit under way has been written and synced, or has failed: then any part of it may be on the disk.
    pub fn commit_ended(&mut self, ok: bool) {
        let Some(images) = self.committing.take() else { return };
        for (page, bits) in images {
            let durable = &mut self.durable[page as usize];
            if ok {
                *durable = bits;
            } else {
                durable.iter_mut().zip(&bits).for_each(|(durable, bits)| *durable &= bits);
                self.changed.insert(page);
            }
        }
        if !ok {
            // The volume may have lost what it had: it is written as a whole until that succeeds.
            self.changed.extend(0..self.layout.pages());
            return;
        }
        self.committed = self.committed.max(self.commit);
        if self.in_doubt && self.is_all_durable() {
            self.in_doubt = false;
            if let Some(number) = self.held_below.take() {
                self.number_above(number);
                // One more commit, or the next start would doubt everything again.
                self.changed.insert(0);
            }
        }
    }

    /// All pages as they are wanted: the content of a new file. Counts as a commit.
    #[must_use]
    pub fn whole(&mut self) -> Vec<u8> {
        self.commit += 1;
        let mut bytes = Vec::with_capacity(self.layout.pages() as usize * page::PAGE_BYTES);
        for page in 0..self.layout.pages() {
            let bits = self.wanted[page as usize];
            bytes.extend_from_slice(&self.encode(page, &bits));
        }
        bytes
    }

    /// The file that `whole` described is durably there.
    pub fn whole_is_durable(&mut self) {
        self.durable.clone_from(&self.wanted);
        self.changed.clear();
        self.committed = self.commit;
    }
}

fn is_set(bits: &Bits, bit: usize) -> bool {
    bits[bit / 64] >> (bit % 64) & 1 == 1
}

/// Sets a bit; true if it was not set.
fn set(bits: &mut Bits, bit: usize) -> bool {
    let (word, mask) = (&mut bits[bit / 64], 1 << (bit % 64));
    let was = *word & mask != 0;
    *word |= mask;
    !was
}

#[cfg(test)]
mod tests;
