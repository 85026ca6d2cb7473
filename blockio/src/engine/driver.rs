//! What both kinds of engine share: checks, the queue beyond the depth, and the turns of syncs.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::blocking::Blocking;
use super::op::{Completion, Event, Interest, Op};
use super::syncs::Syncs;
use super::uring::Uring;
use super::waker::Waker;
use crate::file::BlockFile;

/// Most operations that an engine hands to the kernel at a time. A deeper device queue gains nothing
/// and makes a submission block when the device's own queue is full.
pub const DEPTH_MAX: u32 = 1024;

/// How an engine does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring where the kernel has and allows it, otherwise threads.
    Auto,
    /// io_uring.
    Uring,
    /// epoll and threads.
    Blocking,
}

/// Carries out operations and watches descriptors for one owner thread.
///
/// Dropping it waits for what the kernel has begun; what was still queued is abandoned. The
/// io_uring kind may be moved to another thread between two waits while nothing is in flight.
pub struct Engine {
    backend: Backend,
    /// What the backend was made for.
    depth_max: usize,
    depth: usize,
    /// Operations that the backend has.
    active: usize,
    /// Operations submitted and not yet reported.
    outstanding: usize,
    queued: VecDeque<(u64, Op)>,
    /// Files whose next sync has its turn.
    sync_turns: VecDeque<Arc<BlockFile>>,
    syncs: Syncs,
    /// Ended without reaching the backend.
    ended: Vec<Completion>,
    waker: Waker,
}

/// An engine may be made in one place and handed to its thread.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Engine>();
};

enum Backend {
    Uring(Box<Uring>),
    Blocking(Blocking),
}

impl Backend {
    fn new(kind: EngineKind, depth: u32, waker: &Waker) -> io::Result<Self> {
        let uring = || Uring::new(depth, waker.clone()).map(|uring| Self::Uring(Box::new(uring)));
        let blocking = || Blocking::new(depth, waker.clone()).map(Self::Blocking);
        match kind {
            EngineKind::Uring => uring(),
            EngineKind::Blocking => blocking(),
            // One more ring may be refused where a first one was not: locked memory is limited.
            EngineKind::Auto if Uring::is_available() => uring().or_else(|_| blocking()),
            EngineKind::Auto => blocking(),
        }
    }
}

impl Engine {
    /// An engine that has at most `depth` operations under way, from 1 to [`DEPTH_MAX`].
    pub fn new(kind: EngineKind, depth: u32) -> io::Result<Self> {
        let depth = depth.clamp(1, DEPTH_MAX);
        let waker = Waker::new()?;
        let backend = Backend::new(kind, depth, &waker)?;
        Ok(Self {
            backend,
            depth_max: depth as usize,
            depth: depth as usize,
            active: 0,
            outstanding: 0,
            queued: VecDeque::new(),
            sync_turns: VecDeque::new(),
            syncs: Syncs::default(),
            ended: Vec::new(),
            waker,
        })
    }

    /// The kind that it is; never `Auto`.
    pub fn kind(&self) -> EngineKind {
        match self.backend {
            Backend::Uring(_) => EngineKind::Uring,
            Backend::Blocking(_) => EngineKind::Blocking,
        }
    }

    /// Keeps fewer operations under way from now on, at most as many as the engine was made for: what else uses the
    /// device then waits behind fewer of ours.
    pub fn set_depth(&mut self, depth: u32) {
        self.depth = (depth.max(1) as usize).min(self.depth_max);
    }

    /// Takes an operation, which the next [`Engine::wait`] starts. Never blocks.
    pub fn submit(&mut self, token: u64, op: Op) {
        self.outstanding += 1;
        match op.check() {
            Ok(()) if op.is_empty() => self.ended.push(Completion { token, op, result: Ok(()) }),
            Ok(()) => self.queued.push_back((token, op)),
            Err(error) => self.ended.push(Completion { token, op, result: Err(error) }),
        }
    }

    /// Operations submitted and not yet reported as done.
    pub fn in_flight(&self) -> usize {
        self.outstanding
    }

    /// Reports a descriptor's readiness, level-triggered, under `token`. Watching it again changes
    /// token and interest. It must stay open until [`Engine::unwatch`].
    pub fn watch(&mut self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        match &mut self.backend {
            Backend::Uring(uring) => {
                uring.watch(fd, token, interest);
                Ok(())
            }
            Backend::Blocking(blocking) => blocking.watch(fd, token, interest),
        }
    }

    /// Forgets a descriptor. Nothing more is reported for it; call it before the descriptor is
    /// closed. The io_uring kind lets go of it during the next `wait`.
    pub fn unwatch(&mut self, fd: RawFd) {
        match &mut self.backend {
            Backend::Uring(uring) => uring.unwatch(fd),
            Backend::Blocking(blocking) => blocking.unwatch(fd),
        }
    }

    /// A handle that makes `wait` return from any thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Starts what is queued, then waits until there is at least one event or `timeout` has passed,
    /// and replaces the content of `events` by all there are.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        events.clear();
        if let Backend::Uring(uring) = &mut self.backend {
            uring.settle_in()?;
        }
        self.report_ended(events);
        let deadline = timeout.map(Deadline::after);
        loop {
            self.start_queued();
            let patience = if events.is_empty() { deadline.as_ref().map(Deadline::left) } else { Some(Duration::ZERO) };
            match &mut self.backend {
                Backend::Uring(uring) => uring.wait(patience, &mut self.ended, events)?,
                Backend::Blocking(blocking) => blocking.wait(patience, &mut self.ended, events)?,
            }
            self.active -= self.ended.len();
            self.report_ended(events);
            if !events.is_empty() || patience == Some(Duration::ZERO) {
                return Ok(());
            }
        }
    }

    fn start_queued(&mut self) {
        while self.active < self.depth {
            let (token, op) = if let Some(file) = self.sync_turns.pop_front() {
                // The tokens of a sync are kept in `syncs`.
                (0, Op::Sync { file })
            } else if let Some((token, op)) = self.queued.pop_front() {
                if let Op::Sync { file } = &op
                    && !self.syncs.begin(file, token)
                {
                    continue;
                }
                (token, op)
            } else {
                return;
            };
            self.active += 1;
            match &mut self.backend {
                Backend::Uring(uring) => uring.start(token, op),
                Backend::Blocking(blocking) => blocking.start(token, op),
            }
        }
    }

    fn report_ended(&mut self, events: &mut Vec<Event>) {
        let before = events.len();
        for Completion { token, op, result } in self.ended.drain(..) {
            let Op::Sync { file } = &op else {
                let buf = op.into_buf();
                events.push(Event::Done { token, result, buf });
                continue;
            };
            let (answered, another) = self.syncs.end(file);
            if another {
                self.sync_turns.push_back(Arc::clone(file));
            }
            events.extend(answered.into_iter().map(|token| Event::Done {
                token,
                result: match &result {
                    Ok(()) => Ok(()),
                    Err(error) => Err(error.duplicate()),
                },
                buf: None,
            }));
        }
        self.outstanding -= events.len() - before;
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("kind", &self.kind())
            .field("depth", &self.depth)
            .field("active", &self.active)
            .field("outstanding", &self.outstanding)
            .finish_non_exhaustive()
    }
}

/// The end of a wait. Not asked for the time where there is nothing to wait for.
enum Deadline {
    Passed,
    At(Instant),
}

#[expect(clippy::disallowed_methods, reason = "the engine waits in real time")]
impl Deadline {
    fn after(timeout: Duration) -> Self {
        if timeout.is_zero() { Self::Passed } else { Self::At(Instant::now() + timeout) }
    }

    fn left(&self) -> Duration {
        match self {
            Self::Passed => Duration::ZERO,
            Self::At(end) => end.saturating_duration_since(Instant::now()),
        }
    }
}
