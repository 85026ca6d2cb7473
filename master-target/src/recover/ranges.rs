//! Parts of the disks that somebody else wrote after they were handed over (REVIEW J6).
//!
//! They are kept in the record of a failback, so their number is bounded. What is on the disks there is of no use to any
//! point: only points whose content of them is in the journal can be had.

use serde::{Deserialize, Serialize};

/// Most ranges of one record: some 30 bytes each in the manifest.
pub const RANGES_MAX: usize = 4096;

/// Ranges of the disks of a group, ordered and apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ranges(Vec<Range>);

/// One of them: disk, first sector, sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Range(pub u32, pub u64, pub u64);

impl Ranges {
    /// Takes a range in; neighbours become one.
    pub fn add(&mut self, disk: u32, sector: u64, sectors: u64) {
        let mut all = std::mem::take(&mut self.0);
        all.push(Range(disk, sector, sectors));
        all.sort_unstable();
        for Range(disk, sector, sectors) in all {
            match self.0.last_mut() {
                Some(Range(of, at, len)) if *of == disk && sector <= *at + *len => {
                    *len = (*len).max(sector + sectors - *at);
                }
                _ => self.0.push(Range(disk, sector, sectors)),
            }
        }
    }

    /// All of both.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        for Range(disk, sector, sectors) in &other.0 {
            self.add(*disk, *sector, *sectors);
        }
        self
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range> {
        self.0.iter().copied()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Bytes of all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|Range(_, _, sectors)| sectors * 512).sum()
    }

    /// Cuts a range at the borders of these: first sector, sectors, and whether it lies in one.
    #[must_use]
    pub fn split(&self, disk: u32, sector: u64, sectors: u64) -> Vec<(u64, u64, bool)> {
        let (mut at, end) = (sector, sector + sectors);
        let mut parts = Vec::new();
        for Range(_, from, len) in self.0.iter().filter(|Range(of, ..)| *of == disk) {
            let (from, to) = ((*from).clamp(at, end), (*from + *len).clamp(at, end));
            if at < from {
                parts.push((at, from - at, false));
            }
            if from < to {
                parts.push((from, to - from, true));
            }
            at = at.max(to);
        }
        if at < end {
            parts.push((at, end - at, false));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_range_is_cut_where_a_naive_model_cuts_it(
            added in proptest::collection::vec((0_u32..2, 0_u64..40, 1_u64..12), 0..12),
            (disk, sector, sectors) in (0_u32..2, 0_u64..40, 1_u64..30),
        ) {
            let mut ranges = Ranges::default();
            let mut model = std::collections::BTreeSet::new();
            for (disk, sector, sectors) in added {
                ranges.add(disk, sector, sectors);
                model.extend((sector..sector + sectors).map(|sector| (disk, sector)));
            }
            prop_assert_eq!(ranges.bytes(), model.len() as u64 * 512);
            let mut at = sector;
            for (from, len, is_in) in ranges.split(disk, sector, sectors) {
                prop_assert_eq!(from, at);
                prop_assert!((from..from + len).all(|sector| model.contains(&(disk, sector)) == is_in));
                at += len;
            }
            prop_assert_eq!(at, sector + sectors);
            let kept: Ranges = serde_json::from_str(&serde_json::to_string(&ranges).unwrap()).unwrap();
            prop_assert_eq!(&kept, &ranges);
            prop_assert_eq!(kept.union(&ranges), ranges);
        }
    }
}
