//! The groups that a connection has open, as its messages and parts find them.
//!
//! Once closed, nothing can be added: a group that finishes opening after its connection has ended must notice.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::group::Port;

/// The ports of one connection.
#[derive(Default)]
pub struct Ports(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    open: HashMap<String, Port>,
    closed: bool,
}

impl Ports {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Each change is one call on the map: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the port of a group; gives it back if the connection has ended.
    pub fn insert(&self, port: Port) -> Result<(), Port> {
        let mut inner = self.inner();
        if inner.closed {
            return Err(port);
        }
        inner.open.insert(port.pass.about().group.clone(), port);
        Ok(())
    }

    /// Takes the port of a group away, before the group is opened anew.
    pub fn remove(&self, group: &str) {
        self.inner().open.remove(group);
    }

    /// Takes the port of a session away, if it still is the group's.
    pub fn remove_session(&self, group: &str, key: u64) {
        let mut inner = self.inner();
        if inner.open.get(group).is_some_and(|port| port.pass.about().key == key) {
            inner.open.remove(group);
        }
    }

    /// The port of a group in a phase. Content of any other phase has no port (rule L2).
    pub fn find(&self, group: &str, phase: u64) -> Option<Port> {
        let inner = self.inner();
        inner.open.get(group).filter(|port| port.pass.about().phase == phase).cloned()
    }

    /// Does something with each open port, while none can be added or taken away.
    pub fn each_open(&self, mut work: impl FnMut(&Port)) {
        self.inner().open.values().for_each(&mut work);
    }

    /// The port of a group in any phase.
    pub fn find_any(&self, group: &str) -> Option<Port> {
        self.inner().open.get(group).cloned()
    }

    /// Closes: returns group and session key of what was open.
    pub fn close(&self) -> Vec<(String, u64)> {
        let mut inner = self.inner();
        inner.closed = true;
        inner.open.drain().map(|(group, port)| (group, port.pass.about().key)).collect()
    }
}
