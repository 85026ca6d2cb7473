//! The groups and peers of a running agent, found by name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Clock;
use crate::config::Config;
use crate::group::{Group, Site};
use crate::receive::Peers;
use crate::recover::desk::Desk;

/// A running agent.
pub struct Agent {
    name: String,
    clock: Clock,
    members: BTreeMap<String, Member>,
    peers: Peers,
    connection_keys: AtomicU64,
}

/// A group with its failback desk.
pub struct Member {
    /// The group.
    pub group: Arc<Group>,
    /// Its failbacks.
    pub desk: Desk,
}

impl Agent {
    /// The agent of a configuration; nothing is opened yet.
    pub fn new(config: &Config, clock: Clock) -> Self {
        let site = Site {
            retention: config.retention.clone(),
            datastores: config.datastores.clone(),
            state_dir: config.state_dir.clone(),
            nbd_tls: config.nbd_tls.clone(),
            clock,
        };
        let member = |config: &crate::config::GroupConfig| {
            let group = Group::new(config.clone(), site.clone());
            (config.name.to_string(), Member { desk: Desk::new(group.clone()), group })
        };
        Self {
            name: config.name.to_string(),
            clock,
            members: config.groups.iter().map(member).collect(),
            peers: Peers::default(),
            connection_keys: AtomicU64::new(1),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its clocks.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// A group by name.
    pub fn group(&self, name: &str) -> Option<Arc<Group>> {
        self.members.get(name).map(|member| member.group.clone())
    }

    /// A group with its desk, by name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.get(name)
    }

    /// All groups, by name.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The peers.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// A key for a new connection.
    pub fn next_connection(&self) -> u64 {
        self.connection_keys.fetch_add(1, Ordering::Relaxed)
    }
}
