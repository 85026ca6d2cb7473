//! The engine without io_uring: epoll for descriptors, a few threads for files.
//!
//! Containers often forbid io_uring. Semantics are those of the other kind; each operation costs
//! two hops between threads.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::op::{Completion, Event, Interest, Op};
use super::waker::Waker;
use crate::poison;

/// Most threads of one engine: enough to keep a disk busy, few enough for one per group.
const THREADS_MAX: u32 = 8;

/// Most events taken from epoll at a time.
const READY_MAX: usize = 256;

/// Tokens in epoll of the two bells; descriptors are below.
const WAKER_KEY: u64 = u64::MAX;
const COMPLETIONS_KEY: u64 = u64::MAX - 1;

pub(super) struct Blocking {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    epoll: OwnedFd,
    watches: HashMap<RawFd, Watch>,
    waker: Waker,
}

struct Watch {
    token: u64,
    interest: Interest,
}

struct Shared {
    jobs: Mutex<Jobs>,
    added: Condvar,
    ended: Mutex<Vec<Completion>>,
    bell: Waker,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<(u64, Op)>,
    stopping: bool,
}

impl Blocking {
    pub(super) fn new(depth: u32, waker: Waker) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let shared = Arc::new(Shared {
            jobs: Mutex::default(),
            added: Condvar::new(),
            ended: Mutex::default(),
            bell: Waker::new()?,
        });
        for (bell, key) in [(&waker, WAKER_KEY), (&shared.bell, COMPLETIONS_KEY)] {
            let key = epoll::EventData::new_u64(key);
            epoll::add(&epoll, bell.eventfd(), key, epoll::EventFlags::IN)?;
        }
        let mut engine = Self { shared, threads: Vec::new(), epoll, watches: HashMap::new(), waker };
        for _ in 0..depth.min(THREADS_MAX) {
            let shared = Arc::clone(&engine.shared);
            let thread = thread::Builder::new().name("block-io".to_owned());
            // On a failure here the drop of `engine` ends those already started.
            engine.threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(engine)
    }

    pub(super) fn start(&mut self, token: u64, op: Op) {
        poison::lock(&self.shared.jobs).waiting.push_back((token, op));
        self.shared.added.notify_one();
    }

    pub(super) fn watch(&mut self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        if interest == Interest::NONE {
            self.unregister(fd);
        } else {
            self.register(fd, interest)?;
        }
        self.watches.insert(fd, Watch { token, interest });
        Ok(())
    }

    pub(super) fn unwatch(&mut self, fd: RawFd) {
        if self.watches.remove(&fd).is_some() {
            self.unregister(fd);
        }
    }

    pub(super) fn wait(
        &mut self,
        patience: Option<Duration>,
        ended: &mut Vec<Completion>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let timeout = patience.map(Timespec::try_from).transpose().map_err(|_| Errno::INVAL)?;
        let mut room = [const { MaybeUninit::uninit() }; READY_MAX];
        let ready = match epoll::wait(&self.epoll, &mut room[..], timeout.as_ref()) {
            Ok((ready, _)) => ready,
            // A signal is for the process, not for us: the caller goes on waiting.
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        for event in ready {
            match event.data.u64() {
                WAKER_KEY => {
                    self.waker.lower();
                    events.push(Event::Woken);
                }
                COMPLETIONS_KEY => {
                    self.shared.bell.lower();
                    ended.append(&mut poison::lock(&self.shared.ended));
                }
                fd => {
                    // Descriptors are never negative, so they survive the round trip.
                    if let Some(watch) = self.watches.get(&(fd as RawFd)) {
                        events.push(readiness(watch, event.flags));
                    }
                }
            }
        }
        Ok(())
    }

    fn register(&self, fd: RawFd, interest: Interest) -> io::Result<()> {
        let key = epoll::EventData::new_u64(fd as u64);
        let mut flags = epoll::EventFlags::RDHUP;
        flags.set(epoll::EventFlags::IN, interest.readable);
        flags.set(epoll::EventFlags::OUT, interest.writable);
        let fd = borrowed(fd);
        // Whether epoll knows the descriptor is epoll's to say: closing one removes it there.
        match epoll::modify(&self.epoll, fd, key, flags) {
            Err(Errno::NOENT) => epoll::add(&self.epoll, fd, key, flags)?,
            other => other?,
        }
        Ok(())
    }

    fn unregister(&self, fd: RawFd) {
        // It fails when the descriptor is not registered or already closed, and then it is gone.
        let _ = epoll::delete(&self.epoll, borrowed(fd));
    }
}

fn borrowed(fd: RawFd) -> BorrowedFd<'static> {
    assert!(fd >= 0, "a descriptor is never negative");
    // SAFETY: used only during one epoll_ctl call, which takes any number and answers EBADF for one
    // that is not open. Owners are told to keep it open until `unwatch`.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn readiness(watch: &Watch, flags: epoll::EventFlags) -> Event {
    let ended = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
    let read = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
    Event::Ready {
        token: watch.token,
        readable: watch.interest.readable && flags.intersects(read),
        writable: watch.interest.writable && flags.contains(epoll::EventFlags::OUT),
        hangup: flags.intersects(ended),
    }
}

impl Shared {
    /// A thread's life: one operation after the other.
    fn work(&self) {
        while let Some((token, mut op)) = self.next_job() {
            let result = perform(&mut op);
            let completion = Completion { token, op, result };
            poison::lock(&self.ended).push(completion);
            self.bell.wake();
        }
    }

    fn next_job(&self) -> Option<(u64, Op)> {
        let mut jobs = poison::lock(&self.jobs);
        loop {
            if jobs.stopping {
                return None;
            }
            if let Some(job) = jobs.waiting.pop_front() {
                return Some(job);
            }
            jobs = self.added.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn perform(op: &mut Op) -> Result<(), crate::IoError> {
    match op {
        Op::Read { file, offset, buf } => file.read_exact_at(buf, *offset),
        Op::Write { file, offset, data } => file.write_all_at(data, *offset),
        Op::Sync { file } => file.sync(),
        Op::Punch { file, offset, len } => file.punch_hole(*offset, *len),
        Op::Zero { file, offset, len } => file.zero_range(*offset, *len),
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        poison::lock(&self.shared.jobs).stopping = true;
        self.shared.added.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing in flight any more.
            let _ = thread.join();
        }
    }
}
