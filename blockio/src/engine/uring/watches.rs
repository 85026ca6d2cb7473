//! Descriptors under poll, level-triggered.
//!
//! Each is polled once and, after it was reported, again at the next turn. A poll looks at the
//! descriptor when it is armed, so what is still ready is reported again and no readiness is lost,
//! however little the owner read. It costs one submission per report and no system call.
//! (A multishot poll reports changes only: an owner that leaves a byte unread would hang.)
//!
//! A poll that was overtaken by a change of interest may still report. Every poll has a generation
//! in its key, and reports of earlier ones are dropped: the poll that replaced them sees the same.

use std::collections::HashMap;
use std::os::fd::RawFd;

use io_uring::{opcode, squeue, types};

use super::ring::Outcome;
use crate::engine::op::{Event, Interest};

/// Names one poll in the ring: slot and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PollKey {
    pub(super) slot: u32,
    /// Of [`GENERATION_BITS`] bits.
    pub(super) generation: u32,
}

/// Bits of a generation: what the key's user data leaves beside slot and kind.
pub(super) const GENERATION_BITS: u32 = 24;

#[derive(Default)]
pub(super) struct Watches {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_fd: HashMap<RawFd, u32>,
    /// Slots to look at when polls are armed; one may be in it twice.
    unarmed: Vec<u32>,
    /// Polls to take back.
    obsolete: Vec<PollKey>,
}

struct Slot {
    /// None when the slot is free.
    watch: Option<Watch>,
    generation: u32,
    is_armed: bool,
}

struct Watch {
    fd: RawFd,
    token: u64,
    interest: Interest,
}

/// A poll to begin or to take back.
pub(super) enum PollChange {
    Arm(PollKey, squeue::Entry),
    Disarm(PollKey),
}

impl Watches {
    pub(super) fn watch(&mut self, fd: RawFd, token: u64, interest: Interest) {
        if let Some(&index) = self.by_fd.get(&fd)
            && let Some(watch) = &mut self.slots[index as usize].watch
        {
            watch.token = token;
            if watch.interest != interest {
                watch.interest = interest;
                self.renew(index);
            }
            return;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { watch: None, generation: 0, is_armed: false });
            (self.slots.len() - 1) as u32
        });
        self.slots[index as usize].watch = Some(Watch { fd, token, interest });
        self.by_fd.insert(fd, index);
        self.unarmed.push(index);
    }

    pub(super) fn unwatch(&mut self, fd: RawFd) {
        if let Some(index) = self.by_fd.remove(&fd) {
            self.slots[index as usize].watch = None;
            self.renew(index);
            self.free.push(index);
        }
    }

    /// All polls are gone, with their ring: every descriptor needs a new one.
    pub(super) fn forget_polls(&mut self) {
        for index in 0..self.slots.len() as u32 {
            self.renew(index);
        }
        self.obsolete.clear();
    }

    /// The next change to submit, until there is none.
    pub(super) fn next_change(&mut self) -> Option<PollChange> {
        if let Some(key) = self.obsolete.pop() {
            return Some(PollChange::Disarm(key));
        }
        while let Some(index) = self.unarmed.pop() {
            let slot = &mut self.slots[index as usize];
            let Some(watch) = &slot.watch else { continue };
            if slot.is_armed || watch.interest == Interest::NONE {
                continue;
            }
            slot.is_armed = true;
            let key = PollKey { slot: index, generation: slot.generation };
            let poll = opcode::PollAdd::new(types::Fd(watch.fd), poll_flags(watch.interest));
            return Some(PollChange::Arm(key, poll.build()));
        }
        None
    }

    /// A poll has ended; what it says, if it is still wanted.
    pub(super) fn handle(&mut self, key: PollKey, outcome: Outcome) -> Option<Event> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        let watch = slot.watch.as_ref()?;
        if slot.generation != key.generation || !slot.is_armed {
            return None;
        }
        slot.is_armed = false;
        self.unarmed.push(key.slot);
        if outcome == -libc::ECANCELED {
            return None;
        }
        // A descriptor that can't be polled is reported as gone, so that its owner drops it.
        let flags = u32::try_from(outcome).unwrap_or(libc::POLLERR as u32);
        let has = |wanted: libc::c_short| flags & wanted as u32 != 0;
        Some(Event::Ready {
            token: watch.token,
            readable: watch.interest.readable && has(libc::POLLIN | libc::POLLRDHUP),
            writable: watch.interest.writable && has(libc::POLLOUT),
            hangup: has(libc::POLLHUP | libc::POLLERR | libc::POLLNVAL),
        })
    }

    /// Ends the life of a slot's poll, if it has one.
    fn renew(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.is_armed {
            self.obsolete.push(PollKey { slot: index, generation: slot.generation });
            slot.is_armed = false;
        }
        slot.generation = (slot.generation + 1) % (1 << GENERATION_BITS);
        self.unarmed.push(index);
    }
}

fn poll_flags(interest: Interest) -> u32 {
    let mut flags = libc::POLLRDHUP;
    if interest.readable {
        flags |= libc::POLLIN;
    }
    if interest.writable {
        flags |= libc::POLLOUT;
    }
    flags as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed(watches: &mut Watches) -> Vec<PollKey> {
        std::iter::from_fn(|| watches.next_change())
            .filter_map(|change| match change {
                PollChange::Arm(key, _) => Some(key),
                PollChange::Disarm(_) => None,
            })
            .collect()
    }

    #[test]
    fn a_poll_is_armed_again_after_each_report() {
        let mut watches = Watches::default();
        watches.watch(5, 50, Interest::READ);
        for _ in 0..3 {
            let keys = armed(&mut watches);
            assert_eq!(keys.len(), 1);
            assert!(armed(&mut watches).is_empty(), "one poll at a time");
            let event = watches.handle(keys[0], i32::from(libc::POLLIN));
            assert!(matches!(event, Some(Event::Ready { token: 50, readable: true, writable: false, hangup: false })));
        }
    }

    #[test]
    fn reports_of_polls_that_were_replaced_are_dropped() {
        let mut watches = Watches::default();
        watches.watch(5, 50, Interest::READ);
        let old = armed(&mut watches)[0];
        watches.watch(5, 51, Interest::BOTH);
        assert!(watches.handle(old, i32::from(libc::POLLIN)).is_none());
        let new = armed(&mut watches)[0];
        assert_ne!(old, new);
        assert!(watches.handle(old, -libc::ECANCELED).is_none());
        assert!(watches.handle(new, i32::from(libc::POLLOUT)).is_some());
    }

    #[test]
    fn a_slot_taken_by_another_descriptor_does_not_inherit_reports() {
        let mut watches = Watches::default();
        watches.watch(5, 50, Interest::READ);
        let old = armed(&mut watches)[0];
        watches.unwatch(5);
        watches.unwatch(5);
        watches.watch(6, 60, Interest::READ);
        let new = armed(&mut watches);
        assert_eq!((new.len(), new[0].slot), (1, old.slot));
        assert!(watches.handle(old, i32::from(libc::POLLIN)).is_none());
    }

    #[test]
    fn without_interest_there_is_no_poll() {
        let mut watches = Watches::default();
        watches.watch(5, 50, Interest::NONE);
        assert!(armed(&mut watches).is_empty());
        watches.watch(5, 50, Interest::WRITE);
        assert_eq!(armed(&mut watches).len(), 1);
        watches.watch(5, 50, Interest::NONE);
        assert!(matches!(watches.next_change(), Some(PollChange::Disarm(_))));
        assert!(watches.next_change().is_none());
    }

    #[test]
    fn with_a_new_ring_every_descriptor_gets_a_new_poll() {
        let mut watches = Watches::default();
        watches.watch(5, 50, Interest::READ);
        watches.watch(6, 60, Interest::READ);
        let old = armed(&mut watches);
        watches.forget_polls();
        assert_eq!(armed(&mut watches).len(), 2);
        assert!(watches.handle(old[0], i32::from(libc::POLLIN)).is_none());
    }
}
