//! Waking an engine's owner from another thread, at one system call for any number of wakes.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::EventfdFlags;

/// Makes the engine's `wait` return. Wakes before the owner has seen the last one are one wake.
#[derive(Clone)]
pub struct Waker {
    bell: Arc<Bell>,
}

struct Bell {
    eventfd: OwnedFd,
    /// Set by the first wake, taken down by the owner before it looks at what it was woken for.
    raised: AtomicBool,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self { bell: Arc::new(Bell { eventfd: rustix::event::eventfd(0, flags)?, raised: AtomicBool::new(false) }) })
    }

    /// Wakes the owner. What was written before is seen by the owner after it.
    pub fn wake(&self) {
        if !self.bell.raised.swap(true, Ordering::AcqRel) {
            // It can fail only when the counter is full, and then the owner is being woken anyway.
            let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.bell.eventfd, &1u64.to_ne_bytes()));
        }
    }

    /// Takes the wake. Empties the eventfd first: a wake in between sees the flag up and is covered
    /// by this one. The other order could swallow its ring and leave the flag up for ever.
    pub(super) fn lower(&self) {
        let mut counter = [0; 8];
        // It can fail only when there is nothing to read.
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&self.bell.eventfd, &mut counter));
        self.bell.raised.swap(false, Ordering::AcqRel);
    }

    pub(super) fn fd(&self) -> RawFd {
        self.bell.eventfd.as_raw_fd()
    }

    pub(super) fn eventfd(&self) -> &OwnedFd {
        &self.bell.eventfd
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").field("raised", &self.bell.raised.load(Ordering::Relaxed)).finish_non_exhaustive()
    }
}
