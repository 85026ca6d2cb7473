//! How long the link was what parts waited for: time in which at least one was handed to the connection as a whole and had not
//! arrived within a round trip.
//!
//! Waiting for the connection to take bytes says less: its buffer holds more than bulk parts may have under way, so on a link of
//! 1 Gbit/s nothing ever waits for that.

use std::time::{Duration, Instant};

/// The link of one agent.
#[derive(Debug, Default)]
pub(super) struct Occupied {
    parts: u32,
    since: Option<Instant>,
    sum: Duration,
    /// The shortest round trip that was seen: a longer one is a queue, which is what is to be noticed.
    round_trip: Option<Duration>,
}

impl Occupied {
    /// Learns from the round trip of now, and gives that of an idle link.
    pub(super) fn round_trip(&mut self, now: Duration) -> Duration {
        *self.round_trip.insert(self.round_trip.map_or(now, |shortest| shortest.min(now)))
    }

    /// A part has waited for a round trip.
    pub(super) fn enter(&mut self, now: Instant) {
        self.settle(now);
        self.parts += 1;
        self.since = Some(now);
    }

    /// It has arrived, or its connection has ended.
    pub(super) fn leave(&mut self, now: Instant) {
        self.settle(now);
        self.parts -= 1;
        self.since = self.since.filter(|_| self.parts > 0);
    }

    /// What it came to since the last call.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        self.settle(now);
        std::mem::take(&mut self.sum)
    }

    fn settle(&mut self, now: Instant) {
        if let Some(since) = &mut self.since {
            self.sum += now.saturating_duration_since(*since);
            *since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a beginning; the rest is counted from there")]
    fn time_with_any_part_in_the_link_counts_once() {
        let (start, mut link) = (Instant::now(), Occupied::default());
        let at = |ms| start + Duration::from_millis(ms);
        link.enter(at(10));
        link.enter(at(20));
        link.leave(at(30));
        assert_eq!(link.take(at(40)), Duration::from_millis(30));
        link.leave(at(45));
        link.enter(at(70));
        assert_eq!(link.take(at(100)), Duration::from_millis(35));
        link.leave(at(100));
        assert_eq!(link.take(at(500)), Duration::ZERO);
        let round_trips = [40, 90, 30, 60].map(|ms| link.round_trip(Duration::from_millis(ms)).as_millis());
        assert_eq!(round_trips, [40, 40, 30, 30]);
    }
}
