//! What is known about the master-target, for `status`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::control::PeerStatus;
use proto::ids::AgentName;
use tokio::time::Instant;

/// The peer as last seen. Clones see the same.
#[derive(Debug, Clone)]
pub struct PeerView {
    name: AgentName,
    address: String,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    connected: bool,
    heard: Option<Instant>,
    last_error: Option<String>,
}

impl PeerView {
    /// A peer that was never heard.
    pub fn new(name: AgentName, address: String) -> Self {
        Self { name, address, seen: Arc::default() }
    }

    /// A session has begun.
    pub(super) fn set_connected(&self, now: Instant) {
        *self.lock() = Seen { connected: true, heard: Some(now), last_error: None };
    }

    /// Something arrived.
    pub(super) fn set_heard(&self, now: Instant) {
        self.lock().heard = Some(now);
    }

    /// There is no session, because of `error`.
    pub(super) fn set_down(&self, error: String) {
        let mut seen = self.lock();
        seen.connected = false;
        seen.last_error = Some(error);
    }

    /// The answer to `status`, as of `now`.
    pub fn to_status(&self, now: Instant) -> PeerStatus {
        let seen = self.lock();
        PeerStatus {
            name: self.name.to_string(),
            address: self.address.clone(),
            connected: seen.connected,
            heard_seconds_ago: seen.heard.map(|heard| now.saturating_duration_since(heard).as_secs_f64()),
            last_error: seen.last_error.clone(),
        }
    }

    /// Each change is whole when the lock is let go.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_peer_is_unknown_then_connected_then_down_with_the_reason() {
        let view = PeerView::new("mt-1".parse().unwrap(), "10.0.0.2:9443".to_owned());
        let start = Instant::now();
        let status = view.to_status(start);
        assert_eq!((status.connected, status.heard_seconds_ago, status.last_error), (false, None, None));

        view.set_connected(start);
        view.set_heard(start + Duration::from_secs(1));
        let status = view.to_status(start + Duration::from_secs(3));
        assert_eq!((status.connected, status.heard_seconds_ago), (true, Some(2.0)));

        view.set_down("time-out".to_owned());
        let status = view.to_status(start + Duration::from_secs(4));
        assert_eq!((status.connected, status.heard_seconds_ago), (false, Some(3.0)));
        assert_eq!(status.last_error.as_deref(), Some("time-out"));
    }
}
