//! Which parts of a frame that is sent raw are compressed all the same, to know how compressible it is.
//!
//! Where the link takes more than the processors compress, content travels as it is; the target still shows how
//! compressible each point is. A sample of 16 KiB of each 512 KiB costs a thirty-second of compressing all of it, and of the
//! usual frame of small writes, 128 KiB, an eighth. Pure: it chooses ranges.

use std::ops::Range;

/// The level of samples: the fastest that zstd counts from, so that what is measured is the same on every link.
pub(super) const LEVEL: i32 = 1;
/// Of each stretch of so many bytes one sample is taken.
const STRETCH_BYTES: usize = 512 << 10;
/// Bytes of a sample.
const SAMPLE_BYTES: usize = 16 << 10;

/// The samples of `len` bytes. Where in its stretch a sample lies follows from `seed`, so that a structure of the content
/// with the same period does not show only one side of itself.
pub(super) fn ranges(len: usize, seed: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(STRETCH_BYTES).map(move |from| {
        let stretch = STRETCH_BYTES.min(len - from);
        let sample = SAMPLE_BYTES.min(stretch);
        let at = from + seed % (stretch - sample + 1);
        at..at + sample
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_lie_inside_and_one_of_each_stretch_is_taken() {
        for len in [0, 1, 512, 16 << 10, (16 << 10) + 1, 128 << 10, 512 << 10, (512 << 10) + 512, 1 << 20] {
            for seed in [0, 1, 12_345, u32::MAX as usize] {
                let all: Vec<_> = ranges(len, seed).collect();
                assert_eq!(all.len(), len.div_ceil(STRETCH_BYTES));
                for (index, range) in all.iter().enumerate() {
                    let stretch = index * STRETCH_BYTES..((index + 1) * STRETCH_BYTES).min(len);
                    assert!(stretch.start <= range.start && range.end <= stretch.end, "{len} {seed}: {range:?}");
                    assert_eq!(range.len(), SAMPLE_BYTES.min(stretch.len()));
                }
            }
        }
    }

    #[test]
    fn samples_do_not_always_lie_at_the_same_place() {
        let places: std::collections::BTreeSet<usize> =
            (0..100).flat_map(|seed| ranges(128 << 10, seed * 7919)).map(|range| range.start).collect();
        assert!(places.len() > 50, "{}", places.len());
    }
}
