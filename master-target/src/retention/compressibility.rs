//! Where the points of a group compress far worse than they used to: the hint at ransomware (F1).
//!
//! Pure: it sees how compressible each point is, oldest first, and marks. A point is compared with the group's own history, so
//! a group of films is not marked and one of text files is. docs/retention.md says how, and what it can't see.

use std::collections::VecDeque;

use crate::journal::Shrink;

/// Points with less measured data than this neither are judged nor count as history: a few blocks say nothing, bytes.
const JUDGED_BYTES_MIN: u64 = 1 << 20;
/// Points of history that a point is compared with, at most.
const HISTORY_MAX: usize = 256;
/// Fewer are no history.
const HISTORY_MIN: usize = 16;
/// A drop from the median of at least this share is sharp.
const DROP_MIN: f64 = 0.15;
/// And of at least so many times the usual distance from the median.
const SPREADS: f64 = 4.0;
/// A median absolute deviation times this is the standard deviation of what is spread normally.
const DEVIATION: f64 = 1.4826;
/// The share of history that may lie as low without the group being used to it.
const RARE: f64 = 0.1;
/// So far below all but that share of history a point has to lie.
const RARE_DROP_MIN: f64 = 0.05;

/// Which of the points, oldest first, drop sharply against those before them.
#[must_use]
pub fn drops(points: &[Shrink]) -> Vec<bool> {
    let mut history = History::default();
    let judge = |point: &Shrink| {
        let Some(share) = point.compressibility().filter(|_| point.raw_bytes >= JUDGED_BYTES_MIN) else { return false };
        let drops = history.is_dropped_to(share);
        history.push(share);
        drops
    };
    points.iter().map(judge).collect()
}

/// The newest points that count, in order of time and of size.
#[derive(Debug, Default)]
struct History {
    by_time: VecDeque<f64>,
    sorted: Vec<f64>,
}

impl History {
    fn push(&mut self, share: f64) {
        if self.by_time.len() == HISTORY_MAX
            && let Some(oldest) = self.by_time.pop_front()
        {
            let at = self.sorted.partition_point(|known| *known < oldest);
            self.sorted.remove(at);
        }
        self.by_time.push_back(share);
        let at = self.sorted.partition_point(|known| *known < share);
        self.sorted.insert(at, share);
    }

    fn is_dropped_to(&self, share: f64) -> bool {
        let count = self.sorted.len();
        if count < HISTORY_MIN {
            return false;
        }
        let median = self.sorted[count / 2];
        if share > median - DROP_MIN {
            return false;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "0 to 25"
        )]
        let rare = self.sorted[(count as f64 * RARE) as usize];
        share <= median - SPREADS * DEVIATION * self.deviation(median) && share <= rare - RARE_DROP_MIN
    }

    /// The median of the distances from the median.
    fn deviation(&self, median: f64) -> f64 {
        let mut distances: Vec<f64> = self.sorted.iter().map(|share| (share - median).abs()).collect();
        let middle = distances.len() / 2;
        let (_, deviation, _) = distances.select_nth_unstable_by(middle, f64::total_cmp);
        *deviation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn point(share: f64) -> Shrink {
        of_size(8 * MIB, share)
    }

    fn of_size(raw_bytes: u64, share: f64) -> Shrink {
        Shrink { raw_bytes, packed_bytes: (raw_bytes as f64 * (1.0 - share)) as u64 }
    }

    /// A value between 0 and 1 that depends on nothing but its number.
    fn noise(number: usize) -> f64 {
        let mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f64 / f64::from(1 << 24)
    }

    /// Numbers of the points that are marked.
    fn marked(points: &[Shrink]) -> Vec<usize> {
        drops(points).iter().enumerate().filter_map(|(number, drops)| drops.then_some(number)).collect()
    }

    #[test]
    fn encryption_after_a_steady_load_is_marked_from_its_first_point() {
        let mut points: Vec<Shrink> = (0..100).map(|n| point(0.6 + 0.1 * noise(n))).collect();
        points.extend((0..10).map(|_| point(0.0)));
        assert_eq!(marked(&points), (100..110).collect::<Vec<_>>());
    }

    #[test]
    fn a_steady_load_is_never_marked_however_much_it_scatters() {
        for spread in [0.0, 0.02, 0.1, 0.3, 0.6] {
            let points: Vec<Shrink> = (0..5000).map(|n| point(0.2 + spread * noise(n))).collect();
            assert_eq!(marked(&points), [0; 0], "{spread}");
        }
    }

    #[test]
    fn what_happens_regularly_is_not_marked_once_it_is_known() {
        // Each eighth point an archive that is packed already.
        let points: Vec<Shrink> = (0..400).map(|n| point(if n % 8 == 7 { 0.02 } else { 0.7 })).collect();
        assert_eq!(marked(&points).iter().filter(|number| **number > 32).count(), 0, "{:?}", marked(&points));
    }

    #[test]
    fn a_content_that_stays_becomes_the_usual_one() {
        let mut points: Vec<Shrink> = (0..300).map(|_| point(0.6)).collect();
        points.extend((0..300).map(|_| point(0.0)));
        let marked = marked(&points);
        assert_eq!(marked.first(), Some(&300));
        assert!((20..60).contains(&marked.len()) && marked.len() == marked[marked.len() - 1] - 299, "{marked:?}");
        // And a second drop is seen after the content has become compressible again.
        points.extend((0..300).map(|_| point(0.6)));
        points.push(point(0.0));
        assert_eq!(drops(&points).last(), Some(&true));
    }

    #[test]
    fn points_with_little_data_neither_are_judged_nor_count() {
        let mut points: Vec<Shrink> = (0..100).map(|_| of_size(MIB - 1, 0.0)).collect();
        points.extend((0..30).map(|_| point(0.6)));
        points.push(of_size(MIB - 1, 0.0));
        points.push(Shrink::default());
        points.push(of_size(MIB, 0.0));
        assert_eq!(marked(&points), [132]);
    }

    #[test]
    fn without_history_nothing_is_marked() {
        let mut points: Vec<Shrink> = (0..HISTORY_MIN - 1).map(|_| point(0.9)).collect();
        points.push(point(0.0));
        assert_eq!(marked(&points), [0; 0]);
        points.insert(0, point(0.9));
        assert_eq!(marked(&points), [HISTORY_MIN]);
    }

    #[test]
    fn a_slight_drop_is_not_sharp() {
        let mut points: Vec<Shrink> = (0..100).map(|_| point(0.5)).collect();
        points.push(point(0.36));
        points.push(point(0.34));
        assert_eq!(marked(&points), [101]);
    }

    #[test]
    fn an_increase_is_no_drop() {
        let mut points: Vec<Shrink> = (0..100).map(|_| point(0.1)).collect();
        points.extend((0..10).map(|_| point(0.9)));
        assert_eq!(marked(&points), [0; 0]);
    }
}
