//! Which points stay as they grow older: pure decisions, made from times and kinds.
//!
//! Points younger than the first rule's `after` all stay. Older ones lose their own redo: of each generation only its end
//! stays a point, so generations are no longer than the shortest `keep` (`generation_age`). Beyond, of each
//! stretch of `keep` one point stays, an application-consistent one where there is one. Points with labels and points
//! that were pinned stay whatever the rules say.

use std::time::Duration;

use proto::time::Timestamp;

/// Points older than `after` are kept `keep` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinRule {
    /// Age from which the rule holds.
    pub after: Duration,
    /// Of each stretch of this length one point stays.
    pub keep: Duration,
}

/// The rules of a group, by age: each keeps points farther apart than the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ThinPolicy {
    rules: Vec<ThinRule>,
}

/// Why rules don't go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ThinError {
    /// Two rules begin at the same age.
    #[error("two rules begin after the same time")]
    SameAge,
    /// A later rule keeps more.
    #[error("points that are older would be kept closer together")]
    Closer,
    /// The kept stretch is longer than the age.
    #[error("points are to be kept farther apart than their age")]
    Wider,
}

/// A point at the start of a generation, as the policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// When it was cut.
    pub time: Timestamp,
    /// It bears a label, or is pinned.
    pub is_protected: bool,
    /// The machines were quiesced.
    pub is_app: bool,
}

impl ThinPolicy {
    /// The rules, in any order.
    ///
    /// # Errors
    /// `ThinError` where they contradict each other.
    pub fn new(mut rules: Vec<ThinRule>) -> Result<Self, ThinError> {
        rules.sort_by_key(|rule| rule.after);
        if rules.iter().any(|rule| rule.keep > rule.after) {
            return Err(ThinError::Wider);
        }
        for pair in rules.windows(2) {
            if pair[0].after == pair[1].after {
                return Err(ThinError::SameAge);
            }
            if pair[0].keep >= pair[1].keep {
                return Err(ThinError::Closer);
            }
        }
        Ok(Self { rules })
    }

    /// Longest age of a generation whose end shall stay.
    #[must_use]
    pub fn generation_age(&self) -> Option<Duration> {
        self.rules.first().map(|rule| rule.keep)
    }

    /// Points cut before this lose their own redo.
    pub(crate) fn thins_before(&self, now: Timestamp) -> Option<Timestamp> {
        self.rules.first().map(|rule| now.minus(rule.after))
    }

    /// How far apart points of this time stay.
    fn keep_at(&self, now: Timestamp, time: Timestamp) -> Option<Duration> {
        let age = now.since(time);
        self.rules.iter().rev().find(|rule| age >= rule.after).map(|rule| rule.keep)
    }

    /// Of points at the starts of thinned generations, oldest first, the first that may go. Never the oldest of all: its end
    /// is that of retention.
    pub(crate) fn surplus(&self, now: Timestamp, points: &[Kept]) -> Option<usize> {
        let stretch = |point: &Kept| {
            let keep = u64::try_from(self.keep_at(now, point.time)?.as_micros()).ok()?;
            Some((keep, point.time.0 / keep.max(1)))
        };
        let rank = |index: &usize| (!points[*index].is_protected, !points[*index].is_app, *index);
        let mut from = 0;
        for run in points.chunk_by(|left, right| stretch(left) == stretch(right)) {
            let all = from..from + run.len();
            from = all.end;
            let best = all.clone().min_by_key(rank);
            let may_go = |index: &usize| *index > 0 && Some(*index) != best && !points[*index].is_protected;
            if stretch(&run[0]).is_some()
                && let Some(index) = all.clone().find(may_go)
            {
                return Some(index);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn rule(after_minutes: u32, keep_minutes: u32) -> ThinRule {
        ThinRule { after: MINUTE * after_minutes, keep: MINUTE * keep_minutes }
    }

    fn at(minute: u64) -> Timestamp {
        Timestamp(minute * 60_000_000)
    }

    fn plain(minute: u64) -> Kept {
        Kept { time: at(minute), is_protected: false, is_app: false }
    }

    /// What is left when everything that may go has gone.
    fn left(policy: &ThinPolicy, now: u64, mut points: Vec<Kept>) -> Vec<u64> {
        while let Some(index) = policy.surplus(at(now), &points) {
            points.remove(index);
        }
        points.iter().map(|point| point.time.0 / 60_000_000).collect()
    }

    #[test]
    fn rules_that_contradict_each_other_are_refused() {
        assert_eq!(ThinPolicy::new(vec![rule(120, 5), rule(120, 10)]), Err(ThinError::SameAge));
        assert_eq!(ThinPolicy::new(vec![rule(120, 5), rule(1440, 5)]), Err(ThinError::Closer));
        assert_eq!(ThinPolicy::new(vec![rule(5, 60)]), Err(ThinError::Wider));
        let policy = ThinPolicy::new(vec![rule(1440, 60), rule(120, 5)]).unwrap();
        assert_eq!(policy.generation_age(), Some(MINUTE * 5));
        assert_eq!(policy.thins_before(at(1000)), Some(at(880)));
        assert_eq!(ThinPolicy::default().thins_before(at(1000)), None);
    }

    #[test]
    fn one_point_of_each_stretch_stays_and_the_oldest_of_all() {
        let policy = ThinPolicy::new(vec![rule(120, 5), rule(1440, 60)]).unwrap();
        let points: Vec<Kept> = (0..200).map(plain).collect();
        let expected: Vec<u64> = (0..=80).step_by(5).chain(81..200).collect();
        assert_eq!(left(&policy, 200, points.clone()), expected, "those older than two hours");
        assert_eq!(left(&policy, 1700, points), [0, 60, 120, 180], "those older than a day");
    }

    #[test]
    fn labels_and_application_consistent_points_come_first() {
        let policy = ThinPolicy::new(vec![rule(120, 60)]).unwrap();
        let mut points: Vec<Kept> = (60..120).map(plain).collect();
        points[20].is_app = true;
        points[30].is_app = true;
        // The oldest of all ends with the retention, not here.
        assert_eq!(left(&policy, 400, points.clone()), [60, 80]);
        points[45].is_protected = true;
        points[50].is_protected = true;
        assert_eq!(left(&policy, 400, points), [60, 105, 110]);
    }

    #[test]
    fn every_stretch_that_had_a_point_has_one_whatever_the_order_of_thinning() {
        let policy = ThinPolicy::new(vec![rule(10, 3), rule(60, 20)]).unwrap();
        for step in 1..7 {
            let mut points: Vec<Kept> = Vec::new();
            for minute in 0..300 {
                if minute % step == 0 {
                    points.push(plain(minute));
                }
                while let Some(index) = policy.surplus(at(minute), &points) {
                    points.remove(index);
                }
            }
            for stretch in 0..(300 - 60) / 20 {
                let inside = |point: &&Kept| point.time.0 / 60_000_000 / 20 == stretch;
                let count = points.iter().filter(inside).count();
                assert!((1..=2).contains(&count), "step {step}: {count} points in stretch {stretch}");
            }
        }
    }
}
