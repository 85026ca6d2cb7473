//! What a verification found: per disk how much was compared, and which places differ.
//!
//! Places that touch and share their fate are one difference. Their number is bounded: a target that differs in more
//! places than that was not damaged here and there, and a list would help nobody.

use std::collections::BTreeMap;

/// Places of one disk that are told apart at most.
pub(super) const PLACES_MAX: usize = 4096;

/// A place at which the target holds something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Byte offset on the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The target has the right content again, durably.
    pub repaired: bool,
}

/// What is known of one disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifiedDisk {
    /// Index in the group.
    pub disk: u32,
    /// Bytes of which it is known whether the target has them.
    pub compared_bytes: u64,
    /// Bytes that were written all the time, or can't be read at the source.
    pub unverified_bytes: u64,
    places: BTreeMap<u64, (u64, bool)>,
}

impl VerifiedDisk {
    pub(super) fn new(disk: u32) -> Self {
        Self { disk, ..Self::default() }
    }

    /// The differences, in order.
    pub fn differences(&self) -> impl Iterator<Item = Difference> + '_ {
        self.places.iter().map(|(offset, (length, repaired))| Difference {
            offset: *offset,
            length: *length,
            repaired: *repaired,
        })
    }

    /// Whether there are more places than are told apart.
    pub(super) fn is_overfull(&self) -> bool {
        self.places.len() > PLACES_MAX
    }

    /// Adds a place, joined with its neighbours.
    pub(super) fn differs(&mut self, offset: u64, length: u64, repaired: bool) {
        let (mut start, mut end) = (offset, offset + length);
        if let Some((before, (len, fate))) = self.places.range(..offset).next_back()
            && before + len == offset
            && *fate == repaired
        {
            start = *before;
        }
        if let Some((len, fate)) = self.places.get(&end)
            && *fate == repaired
        {
            let behind = end;
            end += len;
            self.places.remove(&behind);
        }
        self.places.insert(start, (end - start, repaired));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_fate_are_one_difference() {
        let mut disk = VerifiedDisk::new(0);
        for (offset, repaired) in [(8192, false), (0, false), (4096, false), (12288, true), (20480, true)] {
            disk.differs(offset, 4096, repaired);
        }
        let found: Vec<_> = disk.differences().map(|found| (found.offset, found.length, found.repaired)).collect();
        assert_eq!(found, [(0, 12288, false), (12288, 4096, true), (20480, 4096, true)]);
    }
}
