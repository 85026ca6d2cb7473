//! The clocks of the agent: the one place in it that reads them. Cores take `now` as a value.

use proto::time::Timestamp;
use std::time::{Duration, Instant, SystemTime};

/// Monotonic time since the agent started, and the wall clock. Copies tell the same time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// Starts at zero.
    #[expect(clippy::disallowed_methods, reason = "the driver's clock")]
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Monotonic time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The wall clock. May jump; never use it for time-outs.
    #[expect(clippy::disallowed_methods, reason = "the driver's clock")]
    pub fn wall(&self) -> Timestamp {
        Timestamp::from_system_time(SystemTime::now())
    }
}
