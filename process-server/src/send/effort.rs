//! How hard parts of sets are compressed: harder while the processors have little else to do for the link.
//!
//! Pure: it is told what encoding took, and answers with a level. A harder level is taken when it would keep the workers busy
//! for a small share of the time, and given up within the window in which much more comes. Bulk content always goes at the
//! level that is asked for: there is much of it, and somebody waits for its end.

use std::time::Duration;

/// What is judged together: as long as sets mostly are apart.
const WINDOW: Duration = Duration::from_secs(1);
/// Levels of zstd, and how many times as long as the first each takes. Of 48 MB of PostgreSQL's WAL with full pages, 128 KiB at
/// a time, they leave 15.0, 12.8 and 11.2 %, at 422, 328 and 101 MB/s of one processor.
const STEPS: [(i32, f64); 3] = [(1, 1.0), (3, 1.3), (7, 4.2)];
/// Share of the workers' time that the next step may take by what is known.
const UP_SHARE: f64 = 0.1;
/// Share of it above which one step is taken back: twice as much, so that it does not flap.
const DOWN_SHARE: f64 = 0.2;
/// Share of a window's worth of it that is too much at once.
const BURST_SHARE: f64 = 0.4;

const _: () = assert!(UP_SHARE < DOWN_SHARE && DOWN_SHARE < BURST_SHARE && BURST_SHARE < 1.0);

/// The effort of one link.
#[derive(Debug)]
pub struct Effort {
    step: usize,
    workers: f64,
    /// What encoding has taken in this window, all workers together.
    busy: Duration,
    elapsed: Duration,
}

impl Effort {
    /// Of a link with so many workers: none beyond what is asked for, at first.
    pub fn new(workers: usize) -> Self {
        Self {
            step: 0,
            workers: f64::from(u32::try_from(workers).unwrap_or(u32::MAX)),
            busy: Duration::ZERO,
            elapsed: Duration::ZERO,
        }
    }

    /// The level for parts of sets.
    pub fn level(&self) -> i32 {
        STEPS[self.step].0
    }

    /// A worker has encoded something for so long.
    pub fn handle_encoded(&mut self, took: Duration) {
        self.busy += took;
        if self.share(WINDOW) > BURST_SHARE {
            self.step = 0;
        }
    }

    /// More time has passed.
    pub fn handle_window(&mut self, elapsed: Duration) {
        self.elapsed += elapsed;
        if self.elapsed < WINDOW {
            return;
        }
        let share = self.share(self.elapsed);
        (self.busy, self.elapsed) = (Duration::ZERO, Duration::ZERO);
        let next = STEPS.get(self.step + 1);
        if next.is_some_and(|(_, cost)| share * cost / STEPS[self.step].1 < UP_SHARE) {
            self.step += 1;
        } else if share > DOWN_SHARE {
            self.step = self.step.saturating_sub(1);
        }
    }

    fn share(&self, of: Duration) -> f64 {
        self.busy.as_secs_f64() / (of.as_secs_f64() * self.workers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content comes at a rate that level 1 would spend this share of two workers on. The levels at the ends of the windows.
    fn levels(effort: &mut Effort, share_at_1: f64, windows: usize) -> Vec<i32> {
        let window = |_| {
            // In ten batches, each at the level of the moment.
            for _ in 0..10 {
                let cost = STEPS[effort.step].1;
                effort.handle_encoded(WINDOW.mul_f64(share_at_1 * cost * effort.workers / 10.0));
            }
            effort.handle_window(WINDOW);
            effort.level()
        };
        (0..windows).map(window).collect()
    }

    #[test]
    fn little_content_is_compressed_harder_and_much_is_not() {
        assert_eq!(levels(&mut Effort::new(2), 0.0, 3), [3, 7, 7]);
        assert_eq!(levels(&mut Effort::new(2), 0.01, 3), [3, 7, 7]);
        assert_eq!(levels(&mut Effort::new(2), 0.05, 3), [3, 3, 3]);
        assert_eq!(levels(&mut Effort::new(2), 0.3, 3), [1, 1, 1]);
    }

    #[test]
    fn a_burst_is_compressed_fast_within_its_window_and_a_rate_on_the_edge_does_not_flap() {
        let mut effort = Effort::new(2);
        levels(&mut effort, 0.01, 3);
        effort.handle_encoded(WINDOW.mul_f64(0.9));
        assert_eq!(effort.level(), 1);
        let mut effort = Effort::new(2);
        levels(&mut effort, 0.02, 3);
        let edge = levels(&mut effort, 0.03, 100);
        assert!(edge.iter().all(|level| *level == edge[0]), "{edge:?}");
    }
}
