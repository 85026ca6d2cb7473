//! Which 4 KiB blocks of a disk are dirty, at a cost that does not depend on the pattern of writes.
//!
//! Two levels: a disk is cut into regions of 128 MiB, and a region is clean, full, or has a leaf
//! with one bit per block. Leaves come from a pool with a bound (rule S19); without a free one a
//! region becomes full. Too much marked costs a read and a comparison, too little costs data, so a
//! map errs on the side of marking, and `clear` says how much it really cleared.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::BLOCK;

/// Blocks of one region: a leaf of them is one page.
pub const REGION_BLOCKS: u64 = 32_768;

const WORD_BITS: u64 = u64::BITS as u64;
const LEAF_WORDS: usize = (REGION_BLOCKS / WORD_BITS) as usize;
const _: () = assert!(LEAF_WORDS * size_of::<u64>() == 4096);

/// The leaves that all maps of an agent share.
#[derive(Clone, Debug)]
pub struct LeafPool {
    free: Arc<AtomicUsize>,
}

impl LeafPool {
    /// A pool of `leaves_max` leaves of 4 KiB each, allocated when they are needed.
    pub fn new(leaves_max: usize) -> Self {
        Self { free: Arc::new(AtomicUsize::new(leaves_max)) }
    }

    /// How many leaves are left.
    pub fn free(&self) -> usize {
        self.free.load(Ordering::Relaxed)
    }

    fn take(&self) -> Option<Leaf> {
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1)).ok()?;
        Some(Leaf { words: Box::new([0; LEAF_WORDS]), ones: 0, pool: self.clone() })
    }
}

/// The dirty blocks of one disk.
#[derive(Debug)]
pub struct DirtyMap {
    regions: Vec<Region>,
    blocks: u64,
    dirty: u64,
    pool: LeafPool,
}

#[derive(Debug)]
enum Region {
    Clean,
    Full,
    Leaf(Leaf),
}

impl DirtyMap {
    /// A map of a disk of `size_bytes`, all clean. The last block may be a short one.
    pub fn new(size_bytes: u64, pool: &LeafPool) -> Self {
        let blocks = size_bytes.div_ceil(BLOCK);
        let regions = (0..blocks.div_ceil(REGION_BLOCKS)).map(|_| Region::Clean).collect();
        Self { regions, blocks, dirty: 0, pool: pool.clone() }
    }

    /// How many blocks the disk has.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// How many blocks are marked.
    pub fn count_blocks(&self) -> u64 {
        self.dirty
    }

    /// Whether no block is marked.
    pub fn is_empty(&self) -> bool {
        self.dirty == 0
    }

    /// Marks `count` blocks from `block` on, and without a free leaf the regions around them.
    ///
    /// # Panics
    /// If the range ends beyond the disk, as do all methods that take one.
    pub fn set(&mut self, block: u64, count: u64) {
        for piece in self.pieces(block, count) {
            let size = self.region_blocks(piece.region);
            let region = &mut self.regions[piece.region];
            self.dirty += set_in(region, piece, size, &self.pool);
        }
    }

    /// Unmarks `count` blocks from `block` on and returns how many marks really went: a part of a
    /// full region stays marked when there is no free leaf.
    pub fn clear(&mut self, block: u64, count: u64) -> u64 {
        let mut cleared = 0;
        for piece in self.pieces(block, count) {
            let size = self.region_blocks(piece.region);
            let region = &mut self.regions[piece.region];
            cleared += clear_in(region, piece, size, &self.pool);
        }
        self.dirty -= cleared;
        cleared
    }

    /// Marks every block.
    pub fn set_all(&mut self) {
        self.regions.fill_with(|| Region::Full);
        self.dirty = self.blocks;
    }

    /// Unmarks every block.
    pub fn clear_all(&mut self) {
        self.regions.fill_with(|| Region::Clean);
        self.dirty = 0;
    }

    /// Whether `block` is marked.
    pub fn contains(&self, block: u64) -> bool {
        self.any(block, 1)
    }

    /// Whether one of the `count` blocks from `block` on is marked.
    pub fn any(&self, block: u64, count: u64) -> bool {
        self.pieces(block, count).any(|piece| match &self.regions[piece.region] {
            Region::Clean => false,
            Region::Full => true,
            Region::Leaf(leaf) => leaf.next(piece.first, true).is_some_and(|found| found < piece.first + piece.count),
        })
    }

    /// The first run of marked blocks at or after `from_block`, cut to `max_blocks`, as (first
    /// block, count).
    pub fn next_run(&self, from_block: u64, max_blocks: u64) -> Option<(u64, u64)> {
        let first = self.next_marked(from_block)?;
        let mut end = first;
        let limit = self.blocks.min(first.saturating_add(max_blocks.max(1)));
        while end < limit {
            let (index, within) = (end / REGION_BLOCKS, end % REGION_BLOCKS);
            let region_end = limit.min((index + 1) * REGION_BLOCKS);
            let run_end = match &self.regions[index as usize] {
                Region::Clean => end,
                Region::Full => region_end,
                Region::Leaf(leaf) => match leaf.next(within, false) {
                    Some(gap) => region_end.min(index * REGION_BLOCKS + gap),
                    None => region_end,
                },
            };
            end = run_end;
            if run_end < region_end {
                break;
            }
        }
        Some((first, end - first))
    }

    /// Marks every block that is marked in `other`.
    ///
    /// # Panics
    /// If the maps are of disks of different sizes.
    pub fn merge_from(&mut self, other: &Self) {
        assert_eq!(self.blocks, other.blocks, "maps of different disks");
        for (index, theirs) in other.regions.iter().enumerate() {
            let size = self.region_blocks(index);
            let whole = Piece { region: index, first: 0, count: size };
            let mine = &mut self.regions[index];
            self.dirty += match theirs {
                Region::Clean => 0,
                Region::Full => set_in(mine, whole, size, &self.pool),
                Region::Leaf(leaf) => merge_in(mine, leaf, size, &self.pool),
            };
        }
    }

    fn next_marked(&self, from_block: u64) -> Option<u64> {
        if from_block >= self.blocks {
            return None;
        }
        let first_region = from_block / REGION_BLOCKS;
        let mut within = from_block % REGION_BLOCKS;
        for index in first_region..self.regions.len() as u64 {
            let found = match &self.regions[index as usize] {
                Region::Clean => None,
                Region::Full => Some(within),
                Region::Leaf(leaf) => leaf.next(within, true),
            };
            if let Some(found) = found {
                return Some(index * REGION_BLOCKS + found);
            }
            within = 0;
        }
        None
    }

    /// Blocks of a region; the last one of a disk may have fewer than the rest.
    fn region_blocks(&self, region: usize) -> u64 {
        REGION_BLOCKS.min(self.blocks - region as u64 * REGION_BLOCKS)
    }

    /// The range cut at region borders.
    fn pieces(&self, block: u64, count: u64) -> impl Iterator<Item = Piece> + use<> {
        let end = block.checked_add(count).expect("a block range within 64 bits");
        assert!(end <= self.blocks, "blocks {block}..{end} of a disk of {}", self.blocks);
        let mut at = block;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let region = at / REGION_BLOCKS;
            let piece_end = end.min((region + 1) * REGION_BLOCKS);
            let piece = Piece { region: region as usize, first: at % REGION_BLOCKS, count: piece_end - at };
            at = piece_end;
            Some(piece)
        })
    }
}

/// `count` blocks from block `first` of one region on.
#[derive(Clone, Copy)]
struct Piece {
    region: usize,
    first: u64,
    count: u64,
}

/// Returns how many blocks became marked.
fn set_in(region: &mut Region, piece: Piece, size: u64, pool: &LeafPool) -> u64 {
    let before = ones(region, size);
    if piece.count == size {
        *region = Region::Full;
    } else if let Region::Clean = region {
        *region = pool.take().map_or(Region::Full, Region::Leaf);
    }
    if let Region::Leaf(leaf) = region {
        leaf.assign(piece.first, piece.count, true);
        if leaf.ones == size {
            *region = Region::Full;
        }
    }
    ones(region, size) - before
}

/// Returns how many blocks became unmarked.
fn clear_in(region: &mut Region, piece: Piece, size: u64, pool: &LeafPool) -> u64 {
    let before = ones(region, size);
    if piece.count == size {
        *region = Region::Clean;
    } else if let Region::Full = region
        && let Some(mut leaf) = pool.take()
    {
        leaf.assign(0, size, true);
        *region = Region::Leaf(leaf);
    }
    if let Region::Leaf(leaf) = region {
        leaf.assign(piece.first, piece.count, false);
        if leaf.ones == 0 {
            *region = Region::Clean;
        }
    }
    before - ones(region, size)
}

/// Returns how many blocks became marked.
fn merge_in(region: &mut Region, theirs: &Leaf, size: u64, pool: &LeafPool) -> u64 {
    let before = ones(region, size);
    if let Region::Clean = region {
        *region = pool.take().map_or(Region::Full, Region::Leaf);
    }
    if let Region::Leaf(leaf) = region {
        leaf.merge(theirs);
        if leaf.ones == size {
            *region = Region::Full;
        }
    }
    ones(region, size) - before
}

fn ones(region: &Region, size: u64) -> u64 {
    match region {
        Region::Clean => 0,
        Region::Full => size,
        Region::Leaf(leaf) => leaf.ones,
    }
}

/// One bit per block of a region; goes back to the pool's count when dropped.
#[derive(Debug)]
struct Leaf {
    words: Box<[u64; LEAF_WORDS]>,
    ones: u64,
    pool: LeafPool,
}

impl Leaf {
    fn assign(&mut self, first: u64, count: u64, marked: bool) {
        let end = first + count;
        let mut at = first;
        while at < end {
            let bit = at % WORD_BITS;
            let bits = (end - at).min(WORD_BITS - bit);
            let mask = (u64::MAX >> (WORD_BITS - bits)) << bit;
            let word = &mut self.words[(at / WORD_BITS) as usize];
            self.ones -= u64::from(word.count_ones());
            *word = if marked { *word | mask } else { *word & !mask };
            self.ones += u64::from(word.count_ones());
            at += bits;
        }
    }

    fn merge(&mut self, theirs: &Self) {
        self.ones = 0;
        for (mine, theirs) in self.words.iter_mut().zip(theirs.words.iter()) {
            *mine |= theirs;
            self.ones += u64::from(mine.count_ones());
        }
    }

    /// The first block at or after `from` whose bit is `marked`.
    fn next(&self, from: u64, marked: bool) -> Option<u64> {
        let flip = if marked { 0 } else { u64::MAX };
        let mut keep = u64::MAX << (from % WORD_BITS);
        let first_word = (from / WORD_BITS) as usize;
        for (index, word) in self.words.iter().enumerate().skip(first_word) {
            let found = (word ^ flip) & keep;
            if found != 0 {
                return Some(index as u64 * WORD_BITS + u64::from(found.trailing_zeros()));
            }
            keep = u64::MAX;
        }
        None
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        self.pool.free.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Two whole regions and a short one, the last block of it cut.
    const SIZE_BYTES: u64 = (2 * REGION_BLOCKS + 100) * BLOCK - 512;
    const BLOCKS: u64 = 2 * REGION_BLOCKS + 100;

    #[test]
    fn a_run_goes_on_over_the_border_of_regions() {
        let mut map = DirtyMap::new(SIZE_BYTES, &LeafPool::new(9));
        assert_eq!((map.blocks(), map.next_run(0, 10)), (BLOCKS, None));
        map.set(REGION_BLOCKS - 3, 6);
        assert_eq!(map.next_run(0, 100), Some((REGION_BLOCKS - 3, 6)));
        assert_eq!(map.next_run(0, 4), Some((REGION_BLOCKS - 3, 4)));
        assert_eq!(map.next_run(REGION_BLOCKS + 2, 4), Some((REGION_BLOCKS + 2, 1)));
        assert_eq!(map.next_run(REGION_BLOCKS + 3, 4), None);
        assert_eq!(map.next_run(BLOCKS, 4), None);
    }

    #[test]
    fn all_marked_is_one_run_and_needs_no_leaf() {
        let mut map = DirtyMap::new(SIZE_BYTES, &LeafPool::new(0));
        map.set_all();
        assert_eq!(map.next_run(0, u64::MAX), Some((0, BLOCKS)));
        assert_eq!(map.count_blocks(), BLOCKS);
        assert_eq!(map.clear(0, BLOCKS), BLOCKS);
        assert!(map.is_empty());
    }

    #[test]
    fn without_a_leaf_a_region_is_marked_whole_and_stays_so() {
        let pool = LeafPool::new(1);
        let mut map = DirtyMap::new(SIZE_BYTES, &pool);
        map.set(5, 1);
        map.set(REGION_BLOCKS + 5, 1);
        assert_eq!((pool.free(), map.count_blocks()), (0, 1 + REGION_BLOCKS));
        assert!(map.contains(REGION_BLOCKS) && !map.contains(4));
        assert_eq!(map.clear(REGION_BLOCKS, 10), 0);
        assert!(map.contains(REGION_BLOCKS));
        assert_eq!(map.clear(5, 1), 1);
        assert_eq!(pool.free(), 1);
        assert_eq!(map.clear(REGION_BLOCKS, 10), 10);
        assert_eq!(map.count_blocks(), REGION_BLOCKS - 10);
    }

    #[test]
    fn leaves_go_back_when_a_region_is_full_clean_or_dropped() {
        let pool = LeafPool::new(3);
        let mut map = DirtyMap::new(SIZE_BYTES, &pool);
        map.set(0, 1);
        map.set(1, REGION_BLOCKS - 1);
        assert_eq!(pool.free(), 3);
        map.set(2 * REGION_BLOCKS, 99);
        assert_eq!(pool.free(), 2);
        map.set(2 * REGION_BLOCKS + 99, 1);
        assert_eq!(pool.free(), 3);
        map.clear(7, 1);
        assert_eq!(pool.free(), 2);
        drop(map);
        assert_eq!(pool.free(), 3);
    }

    #[test]
    #[should_panic(expected = "of a disk of")]
    fn a_block_beyond_the_disk_is_refused() {
        DirtyMap::new(BLOCK, &LeafPool::new(1)).set(1, 1);
    }

    #[test]
    fn an_empty_disk_has_nothing_to_find() {
        let mut map = DirtyMap::new(0, &LeafPool::new(1));
        map.set_all();
        map.set(0, 0);
        assert!(map.is_empty() && map.next_run(0, 1).is_none() && !map.any(0, 0));
    }

    /// Ranges that gather around the borders of words and regions.
    fn range() -> impl Strategy<Value = (u64, u64)> {
        let place = prop_oneof![
            0..200u64,
            REGION_BLOCKS - 100..REGION_BLOCKS + 100,
            2 * REGION_BLOCKS - 100..BLOCKS,
            0..BLOCKS,
        ];
        let len = prop_oneof![0..3u64, 60..70u64, 0..300u64, 0..BLOCKS];
        (place, len).prop_map(|(start, len)| (start, len.min(BLOCKS - start)))
    }

    fn steps() -> impl Strategy<Value = Vec<(u8, (u64, u64))>> {
        proptest::collection::vec((0..4u8, range()), 1..25)
    }

    fn runs(map: &DirtyMap) -> Vec<bool> {
        let mut marked = vec![false; BLOCKS as usize];
        let mut at = 0;
        while let Some((first, count)) = map.next_run(at, 1000) {
            assert!(first >= at && (1..=1000).contains(&count));
            marked[first as usize..(first + count) as usize].fill(true);
            at = first + count;
        }
        marked
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn with_leaves_to_spare_it_agrees_with_an_array_of_blocks(steps in steps()) {
            let pool = LeafPool::new(9);
            let mut map = DirtyMap::new(SIZE_BYTES, &pool);
            let mut other = DirtyMap::new(SIZE_BYTES, &pool);
            let mut model = vec![false; BLOCKS as usize];
            let mut other_model = model.clone();
            for (kind, (start, len)) in steps {
                let window = start as usize..(start + len) as usize;
                prop_assert_eq!(map.any(start, len), model[window.clone()].contains(&true));
                match kind {
                    0 => {
                        map.set(start, len);
                        model[window].fill(true);
                    }
                    1 => {
                        let marked = model[window.clone()].iter().filter(|&&block| block).count();
                        prop_assert_eq!(map.clear(start, len), marked as u64);
                        model[window].fill(false);
                    }
                    2 => {
                        other.set(start, len);
                        other_model[window].fill(true);
                    }
                    _ => {
                        map.merge_from(&other);
                        for (mine, theirs) in model.iter_mut().zip(&other_model) {
                            *mine |= theirs;
                        }
                    }
                }
                let count = model.iter().filter(|&&block| block).count() as u64;
                prop_assert_eq!(map.count_blocks(), count);
            }
            prop_assert_eq!(runs(&map), model);
            drop((map, other));
            prop_assert_eq!(pool.free(), 9);
        }

        #[test]
        fn short_of_leaves_it_never_forgets_a_block(steps in steps(), leaves in 0..3usize) {
            let pool = LeafPool::new(leaves);
            let mut map = DirtyMap::new(SIZE_BYTES, &pool);
            let mut model = vec![false; BLOCKS as usize];
            for (kind, (start, len)) in steps {
                let window = start as usize..(start + len) as usize;
                if kind < 2 {
                    map.set(start, len);
                    model[window].fill(true);
                } else {
                    let before = map.count_blocks();
                    let cleared = map.clear(start, len);
                    prop_assert_eq!(before - cleared, map.count_blocks());
                    model[window].fill(false);
                }
            }
            let marked = runs(&map);
            prop_assert!(model.iter().zip(&marked).all(|(must, is)| !must || *is));
            prop_assert_eq!(marked.iter().filter(|&&is| is).count() as u64, map.count_blocks());
        }
    }
}
