//! Who was heard when, and which causes of trouble were already told.
//!
//! Pure: the link passes the time in. [`Liveness`] decides when a silent peer is given up;
//! [`CauseLog`] keeps a target that is down for hours from filling the log with one line per attempt.

use std::time::Duration;

use tokio::time::Instant;

/// Both sides send a heartbeat this often.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// A peer that was not heard for this long is given up, and the connection made anew.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

const _: () = assert!(HEARTBEAT_EVERY.as_secs() * 3 <= SILENCE_MAX.as_secs());

/// When the peer was last heard on this connection.
#[derive(Debug)]
pub struct Liveness {
    heard: Instant,
}

/// The peer was silent for too long.
#[derive(Debug, PartialEq, Eq)]
pub struct Silent {
    /// How long nothing was heard.
    pub for_how_long: Duration,
}

impl Liveness {
    /// A connection that was made at `now`.
    pub fn new(now: Instant) -> Self {
        Self { heard: now }
    }

    /// Something arrived at `now`.
    pub fn handle_heard(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    /// Fails once the peer was silent for longer than [`SILENCE_MAX`].
    pub fn check(&self, now: Instant) -> Result<(), Silent> {
        let for_how_long = now.saturating_duration_since(self.heard);
        if for_how_long > SILENCE_MAX { Err(Silent { for_how_long }) } else { Ok(()) }
    }
}

/// Remembers the last cause that was logged, so that each is logged once until the link works again.
#[derive(Debug, Default)]
pub struct CauseLog {
    last: Option<String>,
}

impl CauseLog {
    /// Whether `cause` is news.
    pub fn is_news(&mut self, cause: &str) -> bool {
        if self.last.as_deref() == Some(cause) {
            return false;
        }
        self.last = Some(cause.to_owned());
        true
    }

    /// The link works: the next cause is news, whatever it is.
    pub fn clear(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_silent_only_after_the_limit_and_not_once_it_was_heard() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        assert_eq!(liveness.check(start + SILENCE_MAX), Ok(()));
        let late = start + SILENCE_MAX + Duration::from_millis(1);
        assert_eq!(liveness.check(late), Err(Silent { for_how_long: SILENCE_MAX + Duration::from_millis(1) }));
        liveness.handle_heard(late);
        assert_eq!(liveness.check(late + SILENCE_MAX), Ok(()));
    }

    #[test]
    fn a_clock_that_goes_back_never_makes_a_peer_silent() {
        let start = Instant::now() + Duration::from_secs(60);
        let mut liveness = Liveness::new(start);
        liveness.handle_heard(start - Duration::from_secs(30));
        assert_eq!(liveness.check(start), Ok(()));
    }

    #[test]
    fn a_cause_is_news_once_until_another_one_or_a_success() {
        let mut causes = CauseLog::default();
        assert!(causes.is_news("refused"));
        assert!(!causes.is_news("refused"));
        assert!(causes.is_news("time-out"));
        assert!(causes.is_news("refused"));
        causes.clear();
        assert!(causes.is_news("refused"));
    }
}
