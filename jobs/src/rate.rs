//! How fast a job is: bytes per second over the last ten seconds. Pure, it is told the time.

use std::collections::VecDeque;
use std::time::Duration;

/// How far back it looks.
const WINDOW: Duration = Duration::from_secs(10);
/// Time between two samples that are kept.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// A rate of less time than this says nothing.
const MEASURED_MIN: Duration = Duration::from_millis(200);
/// Samples in the window, the newest one apart.
const SAMPLES_MAX: usize = 24;

const _: () = assert!(WINDOW.as_millis() / SAMPLE_EVERY.as_millis() < SAMPLES_MAX as u128);

/// The rate of one step.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    samples: VecDeque<(Duration, u64)>,
    newest: Option<(Duration, u64)>,
}

impl Rate {
    /// So many bytes are done at `now` (monotonic).
    pub fn sample(&mut self, now: Duration, done: u64) {
        if self.newest.is_some_and(|(_, before)| done < before) {
            *self = Self::default();
        }
        self.newest = Some((now, done));
        if self.samples.back().is_none_or(|(last, _)| now >= *last + SAMPLE_EVERY) {
            self.samples.push_back((now, done));
            while self.samples.len() > SAMPLES_MAX
                || self.samples.get(1).is_some_and(|(second, _)| *second + WINDOW <= now)
            {
                self.samples.pop_front();
            }
        }
    }

    /// Bytes per second, as of `now`: work that stands still becomes slower with time.
    pub fn bytes_per_second(&self, now: Duration) -> Option<u64> {
        let ((from, before), (_, done)) = self.samples.front().zip(self.newest)?;
        let passed = now.saturating_sub(*from);
        if passed < MEASURED_MIN {
            return None;
        }
        Some(((done - before) as f64 / passed.as_secs_f64()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_rate_is_that_of_the_last_ten_seconds() {
        let mut rate = Rate::default();
        for ms in (0..100_000).step_by(100) {
            // A thousand times faster in its first half.
            rate.sample(at(ms), if ms < 50_000 { ms * 1000 } else { 50_000_000 + (ms - 50_000) });
        }
        assert!((900..=1100).contains(&rate.bytes_per_second(at(99_900)).unwrap()));
        assert!(rate.samples.len() <= SAMPLES_MAX);
        assert!(rate.bytes_per_second(at(1_000_000)).unwrap() < 20, "it stands still");
    }

    #[test]
    fn nothing_is_said_before_something_was_measured_nor_of_an_earlier_step() {
        let mut rate = Rate::default();
        assert_eq!(rate.bytes_per_second(at(5)), None);
        rate.sample(at(0), 100);
        assert_eq!(rate.bytes_per_second(at(100)), None);
        rate.sample(at(1000), 1100);
        assert_eq!(rate.bytes_per_second(at(1000)), Some(1000));
        rate.sample(at(2000), 0);
        assert_eq!(rate.bytes_per_second(at(2000)), None);
    }
}
