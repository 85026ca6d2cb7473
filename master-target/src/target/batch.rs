//! Cuts a batch into pieces that a file takes directly: pure arithmetic, used by `io`.
//!
//! Three cuts: into waves whose writes don't overlap, so that their order can't matter; along a disk's pieces, each in
//! one file; and into a head, a middle and a tail, of which only the middle lies on the file's alignment.

use std::collections::BTreeMap;

use blockio::IoError;

use super::{Disk, Location};

/// A range of a file in bytes, perhaps empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// A range cut at the alignment: `middle` is on it, `head` and `tail` are each within one unit of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) head: Span,
    pub(super) middle: Span,
    pub(super) tail: Span,
}

/// Cuts a range; one without a whole unit of the alignment in it has an empty middle.
pub(super) fn cut(offset: u64, len: u64, alignment: u64) -> Cut {
    let end = offset + len;
    let first = offset.next_multiple_of(alignment).min(end);
    let last = (end - end % alignment).max(first);
    Cut {
        head: Span { offset, len: first - offset },
        middle: Span { offset: first, len: last - first },
        tail: Span { offset: last, len: end - last },
    }
}

/// The smallest range on the alignment that covers a range.
pub(super) fn rounded_out(offset: u64, len: u64, alignment: u64) -> Span {
    let start = offset - offset % alignment;
    Span { offset: start, len: (offset + len).next_multiple_of(alignment) - start }
}

/// The pieces of a disk's range in order, none longer than `piece_max`, each with its distance from `offset`. Ends with
/// the first that can't be located.
pub(super) fn pieces(
    disk: &dyn Disk,
    offset: u64,
    len: u64,
    piece_max: u64,
) -> impl Iterator<Item = Result<(u64, Location), IoError>> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let location = match disk.locate(offset + done, (len - done).min(piece_max)) {
            Ok(location) => location,
            Err(error) => {
                done = len;
                return Some(Err(error));
            }
        };
        let (at, piece) = (done, location.len());
        assert!(piece > 0 && piece <= len - done, "{}: a piece of {piece} of {} bytes", disk.describe(), len - done);
        done += piece;
        Some(Ok((at, location)))
    })
}

/// The ranges in waves: the members of a wave don't overlap, and of two that do, the earlier is in the earlier wave.
pub(super) fn waves(ranges: &[(u64, u64)]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_unstable_by_key(|&i| ranges[i].0);
    let apart = order.windows(2).all(|pair| ranges[pair[0]].0 + ranges[pair[0]].1 <= ranges[pair[1]].0);
    if apart {
        return vec![order];
    }
    let mut waves = vec![Vec::new()];
    let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
    for (index, &(start, len)) in ranges.iter().enumerate() {
        let before = taken.range(..start + len).next_back();
        if before.is_some_and(|(&other, &other_len)| other + other_len > start) {
            waves.push(Vec::new());
            taken.clear();
        }
        taken.insert(start, len);
        waves.last_mut().expect("there is always a wave").push(index);
    }
    waves
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(offset: u64, len: u64) -> Span {
        Span { offset, len }
    }

    #[test]
    fn a_range_is_cut_into_what_lies_on_the_alignment_and_its_edges() {
        let whole = cut(4096, 8192, 4096);
        assert_eq!((whole.head.len, whole.middle, whole.tail.len), (0, span(4096, 8192), 0));
        let both = cut(512, 8192, 4096);
        assert_eq!((both.head, both.middle, both.tail), (span(512, 3584), span(4096, 4096), span(8192, 512)));
        let inner = cut(512, 1024, 4096);
        assert_eq!((inner.head, inner.middle.len, inner.tail.len), (span(512, 1024), 0, 0));
        assert_eq!(rounded_out(512, 4096, 4096), span(0, 8192));
    }

    #[test]
    fn writes_that_overlap_go_in_order_and_others_together() {
        assert_eq!(waves(&[(8, 4), (0, 4), (4, 4)]), vec![vec![1, 2, 0]]);
        assert_eq!(waves(&[(0, 8), (4, 8), (12, 4)]), vec![vec![0], vec![1, 2]]);
        assert_eq!(waves(&[(0, 4), (0, 4), (0, 4)]), vec![vec![0], vec![1], vec![2]]);
        assert_eq!(waves(&[(4, 1), (0, 9)]), vec![vec![0], vec![1]]);
    }

    proptest! {
        #[test]
        fn a_cut_covers_its_range_exactly(offset in 0u64..100_000, len in 0u64..100_000, shift in 9u32..13) {
            let alignment = 1u64 << shift;
            let c = cut(offset, len, alignment);
            prop_assert_eq!(c.head.offset, offset);
            prop_assert_eq!(c.head.offset + c.head.len, c.middle.offset);
            prop_assert_eq!(c.middle.offset + c.middle.len, c.tail.offset);
            prop_assert_eq!(c.tail.offset + c.tail.len, offset + len);
            prop_assert!(c.middle.len.is_multiple_of(alignment) && (c.middle.len == 0 || c.middle.offset.is_multiple_of(alignment)));
            prop_assert!(c.head.len < alignment && c.tail.len < alignment);
        }

        #[test]
        fn waves_hold_each_write_once_and_keep_the_order_of_overlaps(
            ranges in prop::collection::vec((0u64..64, 1u64..16), 0..40),
        ) {
            let waves = waves(&ranges);
            let mut place = vec![usize::MAX; ranges.len()];
            for (wave, members) in waves.iter().enumerate() {
                for &member in members {
                    prop_assert_eq!(place[member], usize::MAX);
                    place[member] = wave;
                }
            }
            for (i, a) in ranges.iter().enumerate() {
                prop_assert!(place[i] != usize::MAX);
                for (j, b) in ranges.iter().enumerate().skip(i + 1) {
                    if a.0 < b.0 + b.1 && b.0 < a.0 + a.1 {
                        prop_assert!(place[i] < place[j]);
                    }
                }
            }
        }
    }
}
