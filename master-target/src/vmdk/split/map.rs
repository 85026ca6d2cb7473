//! Which file of a split disk holds a byte: pure arithmetic.

/// Where the parts of a disk end, in bytes of the disk.
pub(super) struct PartMap {
    ends: Vec<u64>,
}

impl PartMap {
    /// A disk of parts of these sizes, none of them empty.
    pub(super) fn new(sizes: impl IntoIterator<Item = u64>) -> PartMap {
        let mut end = 0u64;
        let ends: Vec<u64> = sizes
            .into_iter()
            .map(|size| {
                assert!(size > 0, "a part holds something");
                end = end.checked_add(size).expect("extents are bounded where they are parsed");
                end
            })
            .collect();
        assert!(!ends.is_empty(), "a disk has a part");
        PartMap { ends }
    }

    /// Size of the disk.
    pub(super) fn size(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The part that holds byte `offset` of the disk, the byte's place in the part, and how much of `len` lies there.
    pub(super) fn locate(&self, offset: u64, len: u64) -> (usize, u64, u64) {
        let part = self.ends.partition_point(|&end| end <= offset).min(self.ends.len() - 1);
        let start = if part == 0 { 0 } else { self.ends[part - 1] };
        (part, offset - start, len.min(self.ends[part] - offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_lies_in_one_part_and_ranges_end_at_its_end() {
        let map = PartMap::new([1024, 512, 4096]);
        assert_eq!(map.size(), 5632);
        assert_eq!(map.locate(0, 5632), (0, 0, 1024));
        assert_eq!(map.locate(1023, 1), (0, 1023, 1));
        assert_eq!(map.locate(1024, 5000), (1, 0, 512));
        assert_eq!(map.locate(1536, 100), (2, 0, 100));
        assert_eq!(map.locate(5631, 1), (2, 4095, 1));
        assert_eq!(map.locate(5632, 0), (2, 4096, 0));
    }
}
