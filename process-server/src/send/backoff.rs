//! How long to wait before the next attempt to reach the master-target.
//!
//! Pure: the caller brings the random numbers and does the waiting. The delay doubles from
//! [`DELAY_MIN`] to [`DELAY_MAX`]; jitter takes up to half of it away, so that many agents that lost
//! the same target do not come back in step. A session counts as a success only after it lived for
//! [`HEALTHY_AFTER`]: a target that accepts and drops at once is not hammered.

use std::time::Duration;

/// The first delay after a success, before jitter.
pub const DELAY_MIN: Duration = Duration::from_millis(100);
/// The largest delay, before jitter.
pub const DELAY_MAX: Duration = Duration::from_secs(5);
/// A session that lived this long starts the sequence anew.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(5);

const _: () = assert!(DELAY_MIN.as_millis() * 2 <= DELAY_MAX.as_millis());

/// The sequence of delays between attempts.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: DELAY_MIN }
    }
}

impl Backoff {
    /// The delay before the next attempt; `random` is any uniformly distributed number.
    pub fn next_delay(&mut self, random: u64) -> Duration {
        let ceiling = self.next;
        self.next = (ceiling * 2).min(DELAY_MAX);
        let half_us = u64::try_from(ceiling.as_micros() / 2).unwrap_or(u64::MAX - 1);
        ceiling - Duration::from_micros(random % (half_us + 1))
    }

    /// Notes how long a session lived that has just ended.
    pub fn session_ended(&mut self, lived: Duration) {
        if lived >= HEALTHY_AFTER {
            self.next = DELAY_MIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ceilings(backoff: &mut Backoff, count: usize) -> Vec<u128> {
        (0..count).map(|_| backoff.next_delay(0).as_millis()).collect()
    }

    #[test]
    fn delays_double_up_to_the_maximum_and_stay_there() {
        let mut backoff = Backoff::default();
        assert_eq!(ceilings(&mut backoff, 8), [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn a_session_that_lived_starts_the_sequence_anew() {
        let mut backoff = Backoff::default();
        ceilings(&mut backoff, 6);
        backoff.session_ended(HEALTHY_AFTER);
        assert_eq!(ceilings(&mut backoff, 2), [100, 200]);
    }

    #[test]
    fn a_session_that_was_dropped_at_once_does_not_start_it_anew() {
        let mut backoff = Backoff::default();
        ceilings(&mut backoff, 3);
        backoff.session_ended(Duration::from_millis(30));
        assert_eq!(ceilings(&mut backoff, 1), [800]);
    }

    proptest! {
        #[test]
        fn jitter_takes_at_most_half_and_adds_nothing(randoms in proptest::collection::vec(any::<u64>(), 1..12)) {
            let mut jittered = Backoff::default();
            let mut plain = Backoff::default();
            for random in randoms {
                let ceiling = plain.next_delay(0);
                let delay = jittered.next_delay(random);
                prop_assert!(delay <= ceiling && delay >= ceiling / 2);
            }
        }
    }
}
