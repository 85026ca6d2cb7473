//! A failback, and its cancellation.

use super::*;

impl World {
    /// A failback begins while guests write: they are refused from some moment on, and all from before is in the copy.
    pub(in super::super) fn fail_back(&mut self) {
        self.faults = 0;
        self.volume.mend();
        self.cache.heal();
        self.raise_link();
        self.target.ask_fence();
        self.until(|world| {
            world.guest_writes();
            // A session that ended took the request with it; the target asks again in the next.
            if world.target.fenced.is_none() && world.random.one_in(200) {
                world.target.ask_fence();
            }
            world.target.fenced.is_some()
        });
        assert_eq!(self.group.state(), GroupState::Fenced);
        assert!(self.guest.is_empty(), "the fence is reported after the last write has ended");
        assert!(self.fence_attempts > 1, "a fence that was not durable does not count");
        self.compare();
    }

    /// The target cancels the failback; an earlier cancellation lifts nothing. The guest's writes are taken again.
    pub(in super::super) fn cancel_failback(&mut self) {
        self.raise_link();
        self.target.cancel_failback(true);
        for _ in 0..100 {
            self.answer();
            self.time_us += 20_000;
            self.turn();
        }
        assert_eq!(self.group.state(), GroupState::Fenced, "another failback was cancelled, not this one");
        self.until(|world| {
            // The target says so in each session.
            if world.link_up && world.random.one_in(100) {
                world.target.cancel_failback(false);
            }
            world.group.state() == GroupState::Streaming
        });
        assert!(self.lift_attempts > 1, "a fence that could not be lifted durably holds, and is tried again");
        for _ in 0..50 {
            self.guest_writes();
            self.disk_progress();
            self.turn();
        }
        self.settle();
    }
}
