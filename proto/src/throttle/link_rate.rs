//! What the agent holds of a capped socket: to set the cap, and to show what was sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{BitRate, Bucket};

/// The cap of one socket and its counters. Clones mean the same socket.
#[derive(Debug, Clone)]
pub struct LinkRate(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    bucket: Bucket,
    sent_bytes: u64,
    /// Since when something waits for the bucket.
    held_since: Option<Instant>,
    held: Duration,
}

impl State {
    fn end_hold(&mut self, now: Instant) {
        if let Some(since) = self.held_since.take() {
            self.held += now.saturating_duration_since(since);
        }
    }
}

/// How a link was used since the agent started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkUse {
    /// The present cap; `None` is none.
    pub rate: Option<BitRate>,
    /// Bytes of UDP payload that were handed to the kernel.
    pub sent_bytes: u64,
    /// Time during which something to send waited for the cap.
    pub throttled: Duration,
}

impl LinkRate {
    /// No cap, nothing sent.
    #[must_use]
    pub fn unlimited() -> Self {
        let bucket = Bucket::new(None, Instant::now());
        Self(Arc::new(Mutex::new(State { bucket, sent_bytes: 0, held_since: None, held: Duration::ZERO })))
    }

    /// Caps from now on; true where that is a change.
    ///
    /// # Panics
    /// If the rate is 0.
    pub fn set(&self, rate: Option<BitRate>) -> bool {
        let mut state = self.lock();
        let changed = state.bucket.rate() != rate;
        if changed {
            state.bucket.set_rate(rate, Instant::now());
        }
        changed
    }

    /// How the link was used, as of `now`.
    #[must_use]
    pub fn used(&self, now: Instant) -> LinkUse {
        let state = self.lock();
        let holding = state.held_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        LinkUse { rate: state.bucket.rate(), sent_bytes: state.sent_bytes, throttled: state.held + holding }
    }

    /// Whether a batch may leave now; otherwise notes that one waits, and says for how long.
    pub(super) fn check(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.lock();
        let checked = state.bucket.check(now);
        if checked.is_err() {
            state.held_since.get_or_insert(now);
        }
        checked
    }

    /// Sends a batch with `send` if it may leave now, as one step. `None` if it may not.
    pub(super) fn send<E>(
        &self,
        now: Instant,
        bytes: usize,
        send: impl FnOnce() -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        let mut state = self.lock();
        state.bucket.check(now).ok()?;
        let sent = send();
        if sent.is_ok() {
            state.bucket.handle_sent(bytes);
            state.sent_bytes += bytes as u64;
            state.end_hold(now);
        }
        Some(sent)
    }

    /// Who waited has given up: its connection is gone.
    pub(super) fn give_up(&self, now: Instant) {
        self.lock().end_hold(now);
    }

    pub(super) fn batch_datagrams_max(&self) -> usize {
        self.lock().bucket.batch_datagrams_max()
    }

    /// Each change is whole when the lock is let go.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(rate: &LinkRate, now: Instant, bytes: usize) -> bool {
        rate.send(now, bytes, || Ok::<(), ()>(())).is_some()
    }

    #[test]
    fn the_time_in_which_something_waited_is_counted_also_while_it_waits() {
        let rate = LinkRate::unlimited();
        assert!(rate.set(Some(BitRate(80_000))) && !rate.set(Some(BitRate(80_000))));
        let now = Instant::now();
        assert!(sent(&rate, now, 10_000), "no debt yet");
        assert!(rate.check(now).is_err() && !sent(&rate, now, 1));
        let half = now + Duration::from_millis(500);
        assert_eq!(rate.used(half).throttled, Duration::from_millis(500));
        let whole = now + Duration::from_secs(1);
        assert!(sent(&rate, whole, 100));
        let later = whole + Duration::from_secs(9);
        let used = rate.used(later);
        assert_eq!(
            (used.throttled, used.sent_bytes),
            (Duration::from_secs(1), 10_100),
            "idle time is not throttled time"
        );
        assert_eq!(used.rate, Some(BitRate(80_000)));
    }

    #[test]
    fn a_connection_that_died_while_it_waited_does_not_wait_for_ever() {
        let rate = LinkRate::unlimited();
        rate.set(Some(BitRate(80_000)));
        let now = Instant::now();
        sent(&rate, now, 10_000);
        assert!(rate.check(now).is_err());
        rate.give_up(now + Duration::from_secs(1));
        assert_eq!(rate.used(now + Duration::from_secs(60)).throttled, Duration::from_secs(1));
    }

    #[test]
    fn a_batch_that_the_kernel_did_not_take_costs_nothing() {
        let rate = LinkRate::unlimited();
        rate.set(Some(BitRate(80_000)));
        let now = Instant::now();
        assert_eq!(rate.send(now, 10_000, || Err("full")), Some(Err("full")));
        assert_eq!((rate.check(now), rate.used(now).sent_bytes), (Ok(()), 0));
    }
}
