//! A waker that may be filled in later.
//!
//! A group's port and mailbox are made before its thread, and the thread makes the engine that it
//! waits in. So the waker is set by the thread at its start: first [`WakeCell::set`], then a look
//! into the queues, then the first wait. Whatever was queued before is seen by that look.

use std::fmt;
use std::sync::{Arc, OnceLock};

type Wake = Box<dyn Fn() + Send + Sync>;

/// Wakes one group's thread, once it has said how. Clones wake the same thread.
#[derive(Clone, Default)]
pub struct WakeCell {
    wake: Arc<OnceLock<Wake>>,
}

impl WakeCell {
    /// Says how to wake the thread. Only the first call counts: a thread has one engine.
    pub fn set(&self, wake: impl Fn() + Send + Sync + 'static) {
        let was_new = self.wake.set(Box::new(wake)).is_ok();
        assert!(was_new, "a group's thread sets its waker once");
    }

    /// Wakes the thread; does nothing while it has not started to wait.
    pub fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }
}

impl fmt::Debug for WakeCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WakeCell").field("set", &self.wake.get().is_some()).finish()
    }
}
