//! The process-servers that have connected, for `status`: address, when heard, last error.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::control::PeerStatus;

/// Peers that are remembered. Each has proven a certificate; more than this many make the oldest names disappear.
const PEERS_MAX: usize = 1024;

/// All peers.
#[derive(Debug, Default)]
pub struct Peers(Mutex<BTreeMap<String, Peer>>);

#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    connection: Option<u64>,
    heard_ms: Arc<AtomicU64>,
    last_error: Option<String>,
}

impl Peers {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Peer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer has said who it is.
    pub fn connected(&self, name: &str, address: SocketAddr, connection: u64, heard_ms: Arc<AtomicU64>) {
        let mut all = self.all();
        if all.len() >= PEERS_MAX && !all.contains_key(name) {
            all.retain(|_, peer| peer.connection.is_some());
        }
        all.insert(name.to_owned(), Peer { address, connection: Some(connection), heard_ms, last_error: None });
    }

    /// A connection ended. An older one of the same peer says nothing about the newer.
    pub fn disconnected(&self, name: &str, connection: u64, error: String) {
        if let Some(peer) = self.all().get_mut(name)
            && peer.connection == Some(connection)
        {
            peer.connection = None;
            peer.last_error = Some(error);
        }
    }

    /// What `status` shows. `now_ms` is milliseconds since the agent started.
    pub fn status(&self, now_ms: u64) -> Vec<PeerStatus> {
        let shown = |(name, peer): (&String, &Peer)| {
            let heard_ms = peer.heard_ms.load(Ordering::Relaxed);
            PeerStatus {
                name: name.clone(),
                address: peer.address.to_string(),
                connected: peer.connection.is_some(),
                heard_seconds_ago: Some(now_ms.saturating_sub(heard_ms) as f64 / 1000.0),
                last_error: peer.last_error.clone(),
            }
        };
        self.all().iter().map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> SocketAddr {
        "10.0.0.1:5000".parse().unwrap()
    }

    #[test]
    fn a_peer_shows_when_it_was_heard() {
        let peers = Peers::default();
        peers.connected("ps-1", address(), 1, Arc::new(AtomicU64::new(500)));
        let shown = &peers.status(2500)[0];
        assert_eq!((shown.name.as_str(), shown.connected, shown.heard_seconds_ago), ("ps-1", true, Some(2.0)));
    }

    #[test]
    fn the_end_of_an_older_connection_does_not_touch_the_newer() {
        let peers = Peers::default();
        peers.connected("ps-1", address(), 1, Arc::default());
        peers.connected("ps-1", address(), 2, Arc::default());
        peers.disconnected("ps-1", 1, "replaced".into());
        assert!(peers.status(0)[0].connected);
        peers.disconnected("ps-1", 2, "timed out".into());
        let shown = &peers.status(0)[0];
        assert_eq!((shown.connected, shown.last_error.as_deref()), (false, Some("timed out")));
    }

    #[test]
    fn peers_that_are_gone_make_room() {
        let peers = Peers::default();
        for index in 0..PEERS_MAX as u64 {
            let name = format!("ps-{index}");
            peers.connected(&name, address(), index, Arc::default());
            peers.disconnected(&name, index, String::new());
        }
        peers.connected("new", address(), 9999, Arc::default());
        assert_eq!(peers.status(0).len(), 1);
    }
}
