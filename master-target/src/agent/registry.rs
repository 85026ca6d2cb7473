//! The groups and peers of a running agent, found by name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jobs::{Now, Table};

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
    jobs: Table,
    connection_keys: AtomicU64,
}

/// A group with its failback desk.
pub struct Member {
    /// The group.
    pub group: Arc<Group>,
    /// Its failbacks.
    pub desk: Arc<Desk>,
}

impl Agent {
    /// The agent of a configuration; nothing is opened yet but the history of its jobs, in the state folder.
    pub fn new(config: &Config, clock: Clock) -> Self {
        let site = Site {
            retention: config.retention.clone(),
            datastores: config.datastores.clone(),
            groups: config.groups.clone().into(),
            state_dir: config.state_dir.clone(),
            nbd_tls: config.nbd_tls.clone(),
            clock,
        };
        let now = move || Now { mono: clock.elapsed(), wall: clock.wall() };
        let jobs = Table::open(&config.state_dir.join("jobs.json"), Box::new(now));
        let member = |config: &crate::config::GroupConfig| {
            let group = Group::new(config.clone(), site.clone());
            (config.name.to_string(), Member { desk: Arc::new(Desk::new(group.clone(), jobs.clone())), group })
        };
        Self {
            name: config.name.to_string(),
            clock,
            members: config.groups.iter().map(member).collect(),
            peers: Peers::default(),
            jobs,
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

    /// Its jobs.
    pub fn jobs(&self) -> &Table {
        &self.jobs
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
