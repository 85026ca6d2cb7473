//! Waiting for another process: a condition is asked again until it holds or a deadline has passed.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two questions. Each question may start a process, so this is far above the cost of one.
const PAUSE: Duration = Duration::from_millis(50);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait panic from now on, so that what runs is taken down in order.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether [`interrupt`] was called.
#[must_use]
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Measures how long something takes.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Seconds since the start.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// Asks `question` until it answers `Ok`, and returns that answer.
///
/// # Panics
/// When `within` has passed: with `what` and the last thing that was seen instead. When the run was interrupted.
#[track_caller]
pub fn until<T, E: Debug>(what: &str, within: Duration, mut question: impl FnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        assert!(!is_interrupted(), "interrupted while waiting for: {what}");
        match question() {
            Ok(answer) => return answer,
            Err(seen) if started.elapsed() > within => {
                panic!("waited {:.1} s for: {what}; last seen: {seen:?}", started.elapsed().as_secs_f64())
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
