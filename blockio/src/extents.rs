//! A map from ranges to values, in which a later insert wins over what it overlaps.
//!
//! Change sets, indexes of the journal and copy-before-write keep their extents in it. The unit
//! (sectors, blocks, bytes) is the caller's. Neighbours are not joined, because a value is opaque.
//!
//! Invariants: extents do not overlap, none is empty, and `units` is the sum of their lengths.

use std::collections::BTreeMap;

/// A value that stands for a range and can be cut to a part of it.
pub trait Slice {
    /// The part that begins `from` units into this value and is `len` units long.
    #[must_use]
    fn slice(&self, from: u64, len: u64) -> Self;
}

/// Non-overlapping extents `[start, start + len)`, each with a value, ordered by start.
#[derive(Clone, Debug)]
pub struct ExtentMap<V> {
    extents: BTreeMap<u64, Extent<V>>,
    units: u64,
}

#[derive(Clone, Debug)]
struct Extent<V> {
    len: u64,
    value: V,
}

impl<V> Default for ExtentMap<V> {
    fn default() -> Self {
        Self { extents: BTreeMap::new(), units: 0 }
    }
}

impl<V> ExtentMap<V> {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many extents there are.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether there is no extent.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// The sum of all lengths.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.extents.clear();
        self.units = 0;
    }

    /// All extents as (start, length, value), by start.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64, &V)> {
        self.extents.iter().map(|(&start, extent)| (start, extent.len, &extent.value))
    }

    /// The extent that holds `unit`, whole.
    pub fn at(&self, unit: u64) -> Option<(u64, u64, &V)> {
        self.overlapping(unit, 1).next()
    }

    /// The extents that share a unit with `[start, start + len)`, whole, by start.
    pub fn overlapping(&self, start: u64, len: u64) -> impl Iterator<Item = (u64, u64, &V)> {
        let end = range_end(start, len);
        let first = self.first_reaching(start);
        self.extents
            .range(first..end.max(first))
            .map(|(&at, extent)| (at, extent.len, &extent.value))
            // An empty range inside an extent would otherwise meet it.
            .filter(move |_| len > 0)
    }

    /// The parts of `[start, start + len)` that no extent covers, as (start, length), by start.
    pub fn gaps(&self, start: u64, len: u64) -> Vec<(u64, u64)> {
        let end = range_end(start, len);
        let mut gaps = Vec::new();
        let mut at = start;
        for (extent_start, extent_len, _) in self.overlapping(start, len) {
            if extent_start > at {
                gaps.push((at, extent_start - at));
            }
            at = extent_start + extent_len;
        }
        if at < end {
            gaps.push((at, end - at));
        }
        gaps
    }

    /// Whether an extent shares a unit with `[start, start + len)`.
    pub fn overlaps(&self, start: u64, len: u64) -> bool {
        self.overlapping(start, len).next().is_some()
    }

    /// Start of the extent that begins before `start` and reaches beyond it, or else `start`.
    fn first_reaching(&self, start: u64) -> u64 {
        match self.extents.range(..start).next_back() {
            Some((&before, extent)) if before + extent.len > start => before,
            _ => start,
        }
    }

    fn put(&mut self, start: u64, len: u64, value: V) {
        self.units += len;
        let replaced = self.extents.insert(start, Extent { len, value });
        assert!(replaced.is_none(), "extent at {start} was not cut out first");
    }
}

impl<V: Slice + Clone> ExtentMap<V> {
    /// Gives `[start, start + len)` the value, in place of whatever was there.
    pub fn insert(&mut self, start: u64, len: u64, value: V) {
        self.remove(start, len);
        if len > 0 {
            self.put(start, len, value);
        }
    }

    /// Gives the value's parts to those units of `[start, start + len)` that have none. Returns how
    /// many units that were.
    pub fn fill(&mut self, start: u64, len: u64, value: V) -> u64 {
        let units_before = self.units;
        for (gap, gap_len) in self.gaps(start, len) {
            let part = if gap_len == len { value.clone() } else { value.slice(gap - start, gap_len) };
            self.put(gap, gap_len, part);
        }
        self.units - units_before
    }

    /// Empties `[start, start + len)`; what reaches into it is cut. Returns how many units went.
    pub fn remove(&mut self, start: u64, len: u64) -> u64 {
        let end = range_end(start, len);
        let units_before = self.units;
        if len > 0 {
            self.split_at(start);
            self.split_at(end);
            while let Some((&at, extent)) = self.extents.range(start..end).next() {
                self.units -= extent.len;
                self.extents.remove(&at);
            }
        }
        units_before - self.units
    }

    /// Cuts the extent that holds both sides of `unit` in two.
    fn split_at(&mut self, unit: u64) {
        let at = self.first_reaching(unit);
        if at == unit {
            return;
        }
        if let Some(extent) = self.extents.get_mut(&at) {
            let head_len = unit - at;
            let tail_len = extent.len - head_len;
            let tail = extent.value.slice(head_len, tail_len);
            extent.value = extent.value.slice(0, head_len);
            extent.len = head_len;
            self.units -= tail_len;
            self.put(unit, tail_len, tail);
        }
    }

    /// The parts of the extents that lie in `[start, start + len)`, by start.
    pub fn clipped(&self, start: u64, len: u64) -> impl Iterator<Item = (u64, u64, V)> {
        let end = range_end(start, len);
        self.overlapping(start, len).map(move |(extent_start, extent_len, value)| {
            let from = extent_start.max(start);
            let to = (extent_start + extent_len).min(end);
            let part =
                if to - from == extent_len { value.clone() } else { value.slice(from - extent_start, to - from) };
            (from, to - from, part)
        })
    }
}

fn range_end(start: u64, len: u64) -> u64 {
    start.checked_add(len).expect("a range ends within 64 bits: its bounds were checked where it came in")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A value that knows which units it stands for, so that a wrong slice shows.
    #[derive(Clone, Debug, PartialEq)]
    struct Tagged {
        tag: u32,
        first: u64,
        len: u64,
    }

    impl Slice for Tagged {
        fn slice(&self, from: u64, len: u64) -> Self {
            assert!(len > 0 && from + len <= self.len, "slice out of the value");
            Self { tag: self.tag, first: self.first + from, len }
        }
    }

    fn tagged(tag: u32, first: u64, len: u64) -> Tagged {
        Tagged { tag, first, len }
    }

    fn listed(map: &ExtentMap<Tagged>) -> Vec<(u64, u64, u32)> {
        map.iter().map(|(at, len, value)| (at, len, value.tag)).collect()
    }

    #[test]
    fn a_later_insert_cuts_what_it_overlaps() {
        let mut map = ExtentMap::new();
        map.insert(0, 10, tagged(1, 0, 10));
        map.insert(3, 4, tagged(2, 3, 4));
        assert_eq!(listed(&map), [(0, 3, 1), (3, 4, 2), (7, 3, 1)]);
        assert_eq!((map.len(), map.units()), (3, 10));
        map.insert(2, 6, tagged(3, 2, 6));
        assert_eq!(listed(&map), [(0, 2, 1), (2, 6, 3), (8, 2, 1)]);
    }

    #[test]
    fn fill_takes_only_what_is_empty() {
        let mut map = ExtentMap::new();
        map.insert(4, 2, tagged(1, 4, 2));
        assert_eq!(map.fill(2, 6, tagged(2, 2, 6)), 4);
        assert_eq!(listed(&map), [(2, 2, 2), (4, 2, 1), (6, 2, 2)]);
        assert_eq!(map.fill(2, 6, tagged(3, 2, 6)), 0);
    }

    #[test]
    fn clipped_cuts_and_overlapping_does_not() {
        let mut map = ExtentMap::new();
        map.insert(0, 10, tagged(1, 0, 10));
        let whole: Vec<_> = map.overlapping(4, 2).map(|(at, len, _)| (at, len)).collect();
        assert_eq!(whole, [(0, 10)]);
        let cut: Vec<_> = map.clipped(4, 2).collect();
        assert_eq!(cut, [(4, 2, tagged(1, 4, 2))]);
        assert_eq!(map.at(9).map(|(at, len, _)| (at, len)), Some((0, 10)));
        assert!(map.at(10).is_none());
    }

    #[test]
    fn an_empty_range_changes_and_meets_nothing() {
        let mut map = ExtentMap::new();
        map.insert(0, 10, tagged(1, 0, 10));
        map.insert(5, 0, tagged(2, 5, 0));
        assert_eq!(map.remove(5, 0), 0);
        assert_eq!(listed(&map), [(0, 10, 1)]);
        assert!(!map.overlaps(5, 0));
        assert!(map.gaps(5, 0).is_empty() && map.gaps(20, 0).is_empty());
    }

    #[test]
    fn ranges_up_to_the_last_unit_work() {
        let mut map = ExtentMap::new();
        map.insert(u64::MAX - 4, 4, tagged(1, 0, 4));
        assert_eq!(map.gaps(u64::MAX - 10, 10), [(u64::MAX - 10, 6)]);
        assert_eq!(map.remove(0, u64::MAX), 4);
    }

    #[test]
    #[should_panic(expected = "64 bits")]
    fn a_range_that_wraps_is_refused() {
        ExtentMap::<Tagged>::new().gaps(u64::MAX, 2);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Fill(u64, u64),
        Remove(u64, u64),
    }

    const UNITS: u64 = 64;

    fn step() -> impl Strategy<Value = Step> {
        let range = (0..UNITS).prop_flat_map(|start| (Just(start), 0..=UNITS - start));
        (0..5, range).prop_map(|(kind, (start, len))| match kind {
            0..=2 => Step::Insert(start, len),
            3 => Step::Fill(start, len),
            _ => Step::Remove(start, len),
        })
    }

    fn check(map: &ExtentMap<Tagged>, model: &[Option<u32>], start: u64, len: u64) {
        let mut seen = vec![None; model.len()];
        let mut units = 0;
        let mut end_before = 0;
        for (at, extent_len, value) in map.iter() {
            assert!(extent_len > 0 && at >= end_before);
            assert_eq!((value.first, value.len), (at, extent_len), "sliced wrongly");
            end_before = at + extent_len;
            units += extent_len;
            seen[at as usize..end_before as usize].fill(Some(value.tag));
        }
        assert_eq!(seen, model);
        assert_eq!(map.units(), units);

        let window = start as usize..(start + len) as usize;
        let mut clipped = vec![None; model.len()];
        for (at, part_len, part) in map.clipped(start, len) {
            assert_eq!((part.first, part.len), (at, part_len));
            clipped[at as usize..(at + part_len) as usize].fill(Some(part.tag));
        }
        assert_eq!(clipped[window.clone()], model[window.clone()]);
        assert_eq!(clipped.iter().flatten().count(), model[window.clone()].iter().flatten().count());
        let empty: u64 = map.gaps(start, len).iter().map(|gap| gap.1).sum();
        assert_eq!(empty as usize, model[window].iter().filter(|unit| unit.is_none()).count());
        for (gap, gap_len) in map.gaps(start, len) {
            assert!(gap >= start && gap + gap_len <= start + len && !map.overlaps(gap, gap_len));
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_an_array_of_units(steps in proptest::collection::vec(step(), 1..40)) {
            let mut map = ExtentMap::new();
            let mut model = vec![None; UNITS as usize];
            for (tag, step) in steps.into_iter().enumerate() {
                let tag = tag as u32;
                let (start, len) = match step {
                    Step::Insert(start, len) => {
                        map.insert(start, len, tagged(tag, start, len));
                        model[start as usize..(start + len) as usize].fill(Some(tag));
                        (start, len)
                    }
                    Step::Fill(start, len) => {
                        let filled = map.fill(start, len, tagged(tag, start, len));
                        let mut empty = 0;
                        for unit in &mut model[start as usize..(start + len) as usize] {
                            if unit.is_none() {
                                *unit = Some(tag);
                                empty += 1;
                            }
                        }
                        prop_assert_eq!(filled, empty);
                        (start, len)
                    }
                    Step::Remove(start, len) => {
                        map.remove(start, len);
                        model[start as usize..(start + len) as usize].fill(None);
                        (start, len)
                    }
                };
                check(&map, &model, start, len);
            }
        }
    }
}
