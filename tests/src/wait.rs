//! Waiting for another process: a condition is asked again until it holds or a deadline has passed.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Between two questions. Each question may start a process, so this is far above the cost of one.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks `question` until it answers `Ok`, and returns that answer.
///
/// # Panics
/// When `within` has passed: with `what` and the last thing that was seen instead.
#[track_caller]
pub fn until<T, E: Debug>(what: &str, within: Duration, mut question: impl FnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match question() {
            Ok(answer) => return answer,
            Err(seen) if started.elapsed() > within => {
                panic!("waited {:.1} s for: {what}; last seen: {seen:?}", started.elapsed().as_secs_f64())
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
