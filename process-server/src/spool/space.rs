//! Where in the spool there is room.
//!
//! First fit from the lowest offset: what is freed oldest first is used again before the file grows. Ranges that touch
//! are joined, so there are at most as many free ranges as taken ones, and one more.

use std::collections::BTreeMap;

use super::limits::SPOOL_UNIT;

/// The free ranges of a spool of fixed size.
#[derive(Debug, Clone)]
pub struct Space {
    size: u64,
    free: BTreeMap<u64, u64>,
    used: u64,
}

impl Space {
    /// All of `size` bytes are free; what is beyond whole units is not used.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let size = size / SPOOL_UNIT * SPOOL_UNIT;
        let free = BTreeMap::from_iter((size > 0).then_some((0, size)));
        Self { size, free, used: 0 }
    }

    /// Bytes that can be taken in all.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are taken.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Takes a range of `len` bytes, whole units; `None` where no free range is long enough.
    pub fn take(&mut self, len: u64) -> Option<u64> {
        assert!(len > 0 && len.is_multiple_of(SPOOL_UNIT), "room is taken in whole units");
        let (&offset, &room) = self.free.iter().find(|(_, room)| **room >= len)?;
        self.free.remove(&offset);
        if room > len {
            self.free.insert(offset + len, room - len);
        }
        self.used += len;
        Some(offset)
    }

    /// Gives a range back that was taken.
    pub fn give_back(&mut self, offset: u64, len: u64) {
        assert!(len <= self.used && offset + len <= self.size, "what is given back was taken");
        self.used -= len;
        let (mut start, mut end) = (offset, offset + len);
        if let Some((&before, &room)) = self.free.range(..offset).next_back() {
            assert!(before + room <= offset, "nothing is given back twice");
            if before + room == offset {
                start = before;
            }
        }
        if let Some((&after, &room)) = self.free.range(offset..).next() {
            assert!(after >= end, "nothing is given back twice");
            if after == end {
                end = after + room;
                self.free.remove(&after);
            }
        }
        self.free.insert(start, end - start);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_spool_smaller_than_a_unit_takes_nothing() {
        assert_eq!(Space::new(SPOOL_UNIT - 1).take(SPOOL_UNIT), None);
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_range_is_given_back_once() {
        let mut space = Space::new(4 * SPOOL_UNIT);
        let first = space.take(SPOOL_UNIT).unwrap();
        space.take(SPOOL_UNIT).unwrap();
        space.give_back(first, SPOOL_UNIT);
        space.give_back(first, SPOOL_UNIT);
    }

    const UNITS: usize = 24;

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_room_is_found_again(steps in prop::collection::vec((0..3usize, 1..6u64), 1..200)) {
            let mut space = Space::new(UNITS as u64 * SPOOL_UNIT);
            let mut owner = [0u32; UNITS];
            let mut taken = Vec::new();
            for (number, (kind, units)) in (1..).zip(steps) {
                let len = units * SPOOL_UNIT;
                if kind > 0 || taken.is_empty() {
                    let run = |at: usize| owner[at..].iter().take_while(|owner| **owner == 0).count() as u64;
                    let fits = (0..UNITS).any(|at| run(at) >= units);
                    let offset = space.take(len);
                    prop_assert_eq!(offset.is_some(), fits);
                    let Some(offset) = offset else { continue };
                    let first = (offset / SPOOL_UNIT) as usize;
                    for unit in &mut owner[first..first + units as usize] {
                        prop_assert_eq!(std::mem::replace(unit, number), 0);
                    }
                    taken.push((offset, len));
                } else {
                    let (offset, len) = taken.swap_remove(units as usize % taken.len());
                    space.give_back(offset, len);
                    owner[(offset / SPOOL_UNIT) as usize..((offset + len) / SPOOL_UNIT) as usize].fill(0);
                }
                let used = owner.iter().filter(|owner| **owner != 0).count() as u64;
                prop_assert_eq!(space.used(), used * SPOOL_UNIT);
            }
        }
    }
}
