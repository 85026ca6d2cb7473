//! Operations, polls and wake-ups in one ring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::{opcode, squeue, types};

use super::flight::{Flight, Next};
use super::ring::{Outcome, Owner, Ring};
use super::watches::{GENERATION_BITS, PollChange, PollKey, Watches};
use crate::engine::op::{Completion, Event, Interest, Op};
use crate::engine::waker::Waker;

/// Room for the polls of one turn beside the operations; more take a second enter.
const POLL_ENTRIES: u32 = 64;
/// A wait gathers one in so many of the operations under way, so that a few never wait for each other...
const GATHER_SHARE: usize = 4;
/// ...and at most so many.
const GATHER_MAX: usize = 16;

pub(in crate::engine) struct Uring {
    ring: Ring,
    flights: Flights,
    watches: Watches,
    /// Entries on their way into the ring.
    entries: VecDeque<squeue::Entry>,
    /// Completions on their way out of it.
    taken: Vec<(u64, Outcome)>,
    waker: Waker,
    waker_is_armed: bool,
}

impl Uring {
    pub(in crate::engine) fn is_available() -> bool {
        Ring::is_available()
    }

    pub(in crate::engine) fn new(depth: u32, waker: Waker) -> io::Result<Self> {
        Ok(Self {
            ring: Ring::new((depth + POLL_ENTRIES).next_power_of_two())?,
            flights: Flights::default(),
            watches: Watches::default(),
            entries: VecDeque::new(),
            taken: Vec::new(),
            waker,
            waker_is_armed: false,
        })
    }

    /// Makes sure that the calling thread may enter the ring.
    pub(in crate::engine) fn settle_in(&mut self) -> io::Result<()> {
        match self.ring.owner() {
            Owner::Me => Ok(()),
            Owner::Nobody => self.ring.adopt(),
            Owner::Another if self.flights.in_kernel > 0 => {
                Err(io::Error::other("the engine was moved to another thread with operations in flight"))
            }
            Owner::Another => {
                self.ring.replace()?;
                self.entries.clear();
                self.watches.forget_polls();
                self.waker_is_armed = false;
                Ok(())
            }
        }
    }

    pub(in crate::engine) fn start(&mut self, token: u64, op: Op) {
        let index = self.flights.insert(Flight::new(token, op));
        self.queue_piece(index);
    }

    pub(in crate::engine) fn watch(&mut self, fd: RawFd, token: u64, interest: Interest) {
        self.watches.watch(fd, token, interest);
    }

    pub(in crate::engine) fn unwatch(&mut self, fd: RawFd) {
        self.watches.unwatch(fd);
    }

    pub(in crate::engine) fn wait(
        &mut self,
        patience: Option<Duration>,
        ended: &mut Vec<Completion>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        self.queue_polls();
        self.enter(patience)?;
        self.ring.take_completions(&mut self.taken);
        let mut taken = std::mem::take(&mut self.taken);
        for (user_data, outcome) in taken.drain(..) {
            match Key::parse(user_data) {
                Key::Op(index) => match self.flights.get_mut(index).handle(outcome) {
                    Next::Again => self.queue_piece(index),
                    Next::Ended(result) => ended.push(self.flights.remove(index).complete(result)),
                },
                Key::Poll(key) => events.extend(self.watches.handle(key, outcome)),
                Key::Waker => {
                    self.waker_is_armed = false;
                    if outcome >= 0 {
                        self.waker.lower();
                        events.push(Event::Woken);
                    }
                }
                Key::Disarm => {}
            }
        }
        self.taken = taken;
        Ok(())
    }

    fn queue_piece(&mut self, index: u32) {
        let entry = self.flights.get_mut(index).entry();
        self.entries.push_back(entry.user_data(Key::Op(index).user_data()));
    }

    fn queue_polls(&mut self) {
        if !self.waker_is_armed {
            let poll = opcode::PollAdd::new(types::Fd(self.waker.fd()), libc::POLLIN as u32);
            self.entries.push_back(poll.build().user_data(Key::Waker.user_data()));
            self.waker_is_armed = true;
        }
        while let Some(change) = self.watches.next_change() {
            self.entries.push_back(match change {
                PollChange::Arm(key, poll) => poll.user_data(Key::Poll(key).user_data()),
                PollChange::Disarm(key) => {
                    opcode::PollRemove::new(Key::Poll(key).user_data()).build().user_data(Key::Disarm.user_data())
                }
            });
        }
    }

    /// Hands all entries to the kernel, in one system call unless there are more than fit, and waits.
    fn enter(&mut self, patience: Option<Duration>) -> io::Result<()> {
        while let Some(entry) = self.entries.front() {
            // SAFETY: the memory and file of an operation are owned by its flight, which stays in
            // `flights` until its completion was taken and is leaked if that can't be. A poll has no
            // memory; the kernel resolves its descriptor when it is submitted, and a wrong one is an
            // error.
            if unsafe { self.ring.push(entry) } {
                self.entries.pop_front();
            } else {
                self.ring.enter(Some(Duration::ZERO), 1)?;
                // Room for completions is what the kernel may be waiting for.
                self.ring.take_completions(&mut self.taken);
            }
        }
        // The more is under way, the more ends together: one turn for some of it costs the owner less than one for each.
        let want = (self.flights.in_kernel / GATHER_SHARE).clamp(1, GATHER_MAX);
        self.ring.enter(patience, want)
    }

    /// Waits until the kernel has ended everything it has begun; what is short stays short.
    fn drain(&mut self) -> io::Result<()> {
        while self.flights.in_kernel > 0 {
            self.enter(None)?;
            self.ring.take_completions(&mut self.taken);
            for (user_data, _) in self.taken.drain(..) {
                if let Key::Op(index) = Key::parse(user_data) {
                    self.flights.remove(index);
                }
            }
        }
        Ok(())
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let drained = self.ring.owner() != Owner::Another && self.drain().is_ok();
        if !drained {
            // The kernel may still write to these buffers: sooner leaked than freed.
            std::mem::forget(std::mem::take(&mut self.flights));
        }
    }
}

/// Operations in the kernel, by the index that their completions carry.
#[derive(Default)]
struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<u32>,
    in_kernel: usize,
}

impl Flights {
    fn insert(&mut self, flight: Flight) -> u32 {
        self.in_kernel += 1;
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = Some(flight);
            return index;
        }
        self.slots.push(Some(flight));
        (self.slots.len() - 1) as u32
    }

    fn get_mut(&mut self, index: u32) -> &mut Flight {
        self.slots[index as usize].as_mut().expect("a completion belongs to an operation in flight")
    }

    fn remove(&mut self, index: u32) -> Flight {
        let flight = self.slots[index as usize].take().expect("an operation completes once");
        self.free.push(index);
        self.in_kernel -= 1;
        flight
    }
}

/// What a completion is about: two bits of kind, then generation and slot or index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Op(u32),
    Poll(PollKey),
    Waker,
    Disarm,
}

const KIND_SHIFT: u32 = 62;
const GENERATION_SHIFT: u32 = 32;
const _: () = assert!(GENERATION_SHIFT + GENERATION_BITS <= KIND_SHIFT);

impl Key {
    fn user_data(self) -> u64 {
        match self {
            Self::Op(index) => u64::from(index),
            Self::Poll(PollKey { slot, generation }) => {
                (1 << KIND_SHIFT) | u64::from(generation) << GENERATION_SHIFT | u64::from(slot)
            }
            Self::Waker => 2 << KIND_SHIFT,
            Self::Disarm => 3 << KIND_SHIFT,
        }
    }

    fn parse(user_data: u64) -> Self {
        match user_data >> KIND_SHIFT {
            0 => Self::Op(user_data as u32),
            1 => Self::Poll(PollKey {
                slot: user_data as u32,
                generation: (user_data >> GENERATION_SHIFT) as u32 & ((1 << GENERATION_BITS) - 1),
            }),
            2 => Self::Waker,
            _ => Self::Disarm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_ring() {
        let poll = PollKey { slot: u32::MAX, generation: (1 << GENERATION_BITS) - 1 };
        for key in [Key::Op(0), Key::Op(u32::MAX), Key::Poll(poll), Key::Waker, Key::Disarm] {
            assert_eq!(Key::parse(key.user_data()), key);
        }
    }
}
