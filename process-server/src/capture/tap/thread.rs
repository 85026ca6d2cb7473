//! The group thread: what it owns, how it starts, its loop, how it stops.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime};

use blockio::{BlockFile, BufPool, Engine, EngineKind, Event, Interest};
use proto::replication::DiskSpec;
use proto::time::Timestamp;
use tracing::{info, warn};

use super::complaints::Complaints;
use super::connection::Connection;
use super::driver::PUBLISH_INTERVAL;
use super::flushing::CoreFlush;
use super::request::Requests;
use super::serve::WriteJob;
use super::spool::{SpoolDriver, SpoolPlace};
use super::state::StateFile;
use super::tracking::{Committing, MarksFile};
use crate::control::{GroupState, Inbox, PointReplier, VerifyReplier, WakeCell};
use crate::group::{Group, GroupOptions, Now, ReadId, Tracking, WriteId};
use crate::send::{GroupPort, Outbox};
use nbd::Export;

/// Operations in the kernel at the same time: enough for 60 disks at depth 8, few enough to stay in order of arrival.
const ENGINE_DEPTH: u32 = 512;
/// Bytes of buffers, beside the group's memory for sets, that are kept for the next requests.
const POOL_BYTES: usize = 64 << 20;
/// Raw bytes of data in one part: small enough that a lost connection repeats little, large enough that a part's
/// stream and acknowledgement cost nothing against its content.
const PART_BYTES: u64 = 4 << 20;
/// Time between two watches over the marks: how far they lag behind the acknowledgements.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Time a stopping thread waits for requests in progress.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// A protected disk of the group.
#[derive(Debug)]
pub(super) struct TapDisk {
    /// Opened for reading and writing, and locked.
    pub(super) file: Arc<BlockFile>,
    /// As its clients see it.
    pub(super) export: Export,
}

/// What a group thread is made of.
#[derive(Debug)]
pub(super) struct TapArgs {
    /// Name of the group.
    pub(super) name: String,
    /// Its disks, in order.
    pub(super) disks: Vec<TapDisk>,
    /// Its durable state.
    pub(super) state: StateFile,
    /// The file of its write-intent marks.
    pub(super) marks: Arc<BlockFile>,
    /// What is known of the disks.
    pub(super) tracking: Tracking,
    /// Bytes that captured data may pin.
    pub(super) memory_bytes: u64,
    /// Where its spool is to be, if it has one.
    pub(super) spool: Option<SpoolPlace>,
    /// Time between points.
    pub(super) point_interval: Duration,
    /// Random bytes made at this start.
    pub(super) source_instance: [u8; 16],
    /// Its end of the link.
    pub(super) port: GroupPort,
    /// Commands from other threads.
    pub(super) inbox: Inbox,
    /// To be filled with how to wake the thread.
    pub(super) wake: WakeCell,
    /// Which engine to use; `Auto` but in tests.
    pub(super) engine: EngineKind,
}

/// Makes the group's engine on this thread and runs until `Command::Stop`. `started` learns whether it could.
pub(super) fn run(args: TapArgs, started: &SyncSender<io::Result<()>>) {
    // The engine belongs to the thread that made it.
    match Engine::new(args.engine, ENGINE_DEPTH) {
        Ok(engine) => {
            let waker = engine.waker();
            args.wake.set(move || waker.wake());
            // The starter waits for this and nothing else.
            let _ = started.send(Ok(()));
            Tap::new(args, engine).run();
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    }
}

/// The driver's clocks.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the group thread is the driver that reads the clock for its core")]
    fn new() -> Self {
        Self { start: Instant::now() }
    }

    #[expect(clippy::disallowed_methods, reason = "the group thread is the driver that reads the clock for its core")]
    pub(super) fn now(&self) -> Now {
        Now { mono: self.start.elapsed(), wall: Timestamp::from_system_time(SystemTime::now()) }
    }

    pub(super) fn instant(&self, mono: Duration) -> Instant {
        self.start + mono
    }

    pub(super) fn mono(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.start)
    }
}

/// A protected disk while the thread runs.
#[derive(Debug)]
pub(super) struct DiskState {
    pub(super) file: Arc<BlockFile>,
    pub(super) export: Export,
    /// Unit of reads and writes.
    pub(super) alignment: u64,
    /// A flush failed, and none has succeeded since.
    pub(super) is_unflushed: bool,
}

impl DiskState {
    /// Its name in the group.
    pub(super) fn name(&self) -> &str {
        self.export.name.rsplit('/').next().unwrap_or_default()
    }
}

/// Everything the group thread owns.
#[derive(Debug)]
pub(super) struct Tap {
    pub(super) name: String,
    pub(super) engine: Engine,
    pub(super) clock: Clock,
    pub(super) group: Group,
    pub(super) disks: Vec<DiskState>,
    pub(super) pool: BufPool,
    pub(super) connections: HashMap<u64, Connection>,
    pub(super) connections_seen: u64,
    pub(super) requests: Requests,
    pub(super) writes: Vec<Option<WriteJob>>,
    pub(super) bytes_in_progress: usize,
    /// Connections that were touched in this turn.
    pub(super) to_send: Vec<u64>,
    pub(super) port: GroupPort,
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    pub(super) state: StateFile,
    pub(super) marks: MarksFile,
    pub(super) spool: SpoolDriver,
    pub(super) committing: Committing,
    /// Flushes for the core, by their numbers.
    pub(super) core_flushes: HashMap<u64, CoreFlush>,
    pub(super) complaints: Complaints,
    pub(super) points: HashMap<u64, PointReplier>,
    pub(super) points_asked: u64,
    pub(super) verifying: Option<VerifyReplier>,
    pub(super) published: Duration,
    pub(super) shown_state: Option<GroupState>,
    /// How many changes of the target were logged.
    pub(super) target_changes: u64,
    /// Synchronisations that were begun since the start.
    pub(super) syncs: u64,
    pub(super) stopping: bool,
}

impl Tap {
    fn new(args: TapArgs, engine: Engine) -> Self {
        let clock = Clock::new();
        let disks: Vec<DiskState> = args
            .disks
            .into_iter()
            .map(|disk| DiskState {
                alignment: u64::from(disk.file.alignment()),
                file: disk.file,
                export: disk.export,
                is_unflushed: false,
            })
            .collect();
        let specs = disks.iter().map(|disk| DiskSpec {
            name: disk.name().to_owned(),
            size: disk.file.size(),
            logical_block: disk.alignment as u32,
        });
        let options = GroupOptions {
            name: args.name.clone(),
            disks: specs.collect(),
            memory_bytes: args.memory_bytes,
            spool_bytes: args.spool.as_ref().map_or(0, |place| place.bytes),
            part_bytes: PART_BYTES,
            point_interval: args.point_interval,
            watch_interval: WATCH_INTERVAL,
            source_start: args.state.starts(),
            source_instance: args.source_instance,
            fenced: args.state.fenced(),
            fence_request: args.state.fence_request(),
        };
        Self {
            group: Group::new(options, args.tracking, clock.now()),
            name: args.name,
            engine,
            clock,
            disks,
            pool: BufPool::within(args.memory_bytes as usize + POOL_BYTES),
            connections: HashMap::new(),
            connections_seen: 0,
            requests: Requests::default(),
            writes: Vec::new(),
            bytes_in_progress: 0,
            to_send: Vec::new(),
            port: args.port,
            outbox: Outbox::default(),
            inbox: args.inbox,
            state: args.state,
            marks: MarksFile::new(args.marks),
            spool: SpoolDriver::new(args.spool),
            committing: Committing::default(),
            core_flushes: HashMap::new(),
            complaints: Complaints::default(),
            points: HashMap::new(),
            points_asked: 0,
            verifying: None,
            published: Duration::ZERO,
            shown_state: None,
            target_changes: 0,
            syncs: 0,
            stopping: false,
        }
    }

    fn run(mut self) {
        info!(group = %self.name, engine = ?self.engine.kind(), "the group runs");
        let mut events = Vec::with_capacity(1024);
        // Whatever was queued before the waker was set is seen by this first look.
        self.woken();
        while !self.stopping {
            self.turn(&mut events);
        }
        self.stop(&mut events);
    }

    /// One turn: wait, handle what happened, let the core act, answer.
    fn turn(&mut self, events: &mut Vec<Event>) {
        let now = self.clock.now();
        self.group.advance(now);
        self.carry_out();
        self.publish();
        self.resume_paused();
        self.send_replies();
        let deadline = self.group.deadline().min(self.published + PUBLISH_INTERVAL);
        let timeout = deadline.saturating_sub(now.mono).max(Duration::from_millis(1));
        if let Err(error) = self.engine.wait(Some(timeout), events) {
            warn!(group = %self.name, %error, "waiting for disks and sockets failed");
            std::thread::sleep(Duration::from_millis(10));
        }
        for event in events.drain(..) {
            self.handle(event);
        }
    }

    fn resume_paused(&mut self) {
        let ready: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.paused && self.has_room(connection))
            .map(|(name, _)| *name)
            .collect();
        for name in ready {
            self.resume(name);
            self.to_send.push(name);
        }
    }

    /// Sends replies, and watches or closes the sockets that were touched.
    fn send_replies(&mut self) {
        let mut touched = std::mem::take(&mut self.to_send);
        touched.sort_unstable();
        touched.dedup();
        for name in touched.drain(..) {
            let Some(mut connection) = self.connections.remove(&name) else { continue };
            let lost = match connection.send() {
                Ok(()) => false,
                Err(error) => {
                    info!(group = %self.name, peer = connection.peer(), %error, "an NBD client was lost");
                    true
                }
            };
            let done = connection.closing && connection.outstanding == 0 && !connection.has_output();
            if lost || done {
                self.engine.unwatch(connection.fd());
                self.abandon_payload(&mut connection);
                continue;
            }
            let wanted = (!connection.paused && !connection.closing, connection.has_output());
            if wanted != connection.watched {
                let interest = Interest { readable: wanted.0, writable: wanted.1 };
                if let Err(error) = self.engine.watch(connection.fd(), name, interest) {
                    warn!(group = %self.name, %error, "an NBD client's socket can't be watched; it is disconnected");
                    self.abandon_payload(&mut connection);
                    continue;
                }
                connection.watched = wanted;
            }
            self.connections.insert(name, connection);
        }
        self.to_send = touched;
    }

    /// Ends requests in progress, flushes the disks, and lets go of everything.
    fn stop(mut self, events: &mut Vec<Event>) {
        for (name, mut connection) in std::mem::take(&mut self.connections) {
            connection.closing = true;
            self.abandon_payload(&mut connection);
            self.to_send.push(name);
            self.connections.insert(name, connection);
        }
        let until = self.clock.now().mono + STOP_WAIT;
        while (self.requests.len() > 0 || self.waits_for_marks()) && self.clock.now().mono < until {
            self.turn(events);
        }
        self.send_replies();
        // A flush that succeeds after one that failed says nothing of what was written before.
        let mut is_clean = self.requests.len() == 0 && self.group.unflushable().is_none();
        for disk in &self.disks {
            if let Err(error) = disk.file.sync() {
                warn!(group = %self.name, %error, "a protected disk could not be flushed while stopping");
                is_clean = false;
            }
        }
        if is_clean {
            self.save_exact();
        }
        info!(group = %self.name, "the group has stopped");
    }
}

/// What a completion belongs to, packed into the engine's 64-bit token: 4 bits of kind, 60 bits of identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Write(WriteId),
    ModifyRead(WriteId),
    Flush(usize),
    ClientRead { slot: usize, piece: u32 },
    CoreRead(ReadId),
    MarkWrite,
    MarkSync,
    CoreFlush { id: u64, disk: u32 },
    SpoolWrite(u64),
    SpoolRead(u64),
    SpoolEmpty,
}

impl Token {
    pub(super) fn encode(self) -> u64 {
        let (kind, identity) = match self {
            Self::Write(id) => (0, u64::from(id.0)),
            Self::ModifyRead(id) => (1, u64::from(id.0)),
            Self::Flush(slot) => (2, slot as u64),
            // A read of 32 MiB has 33 pieces at most.
            Self::ClientRead { slot, piece } => (3, (slot as u64) << 8 | u64::from(piece)),
            Self::CoreRead(id) => (4, id.0),
            Self::MarkWrite => (5, 0),
            Self::MarkSync => (6, 0),
            // A group has 64 disks at most.
            Self::CoreFlush { id, disk } => (7, id << 8 | u64::from(disk)),
            Self::SpoolWrite(id) => (12, id),
            Self::SpoolRead(id) => (13, id),
            Self::SpoolEmpty => (14, 0),
        };
        kind << 60 | identity
    }

    pub(super) fn decode(token: u64) -> Self {
        let identity = token & ((1 << 60) - 1);
        match token >> 60 {
            0 => Self::Write(WriteId(identity as u32)),
            1 => Self::ModifyRead(WriteId(identity as u32)),
            2 => Self::Flush(identity as usize),
            3 => Self::ClientRead { slot: (identity >> 8) as usize, piece: (identity & 0xff) as u32 },
            4 => Self::CoreRead(ReadId(identity)),
            5 => Self::MarkWrite,
            6 => Self::MarkSync,
            7 => Self::CoreFlush { id: identity >> 8, disk: (identity & 0xff) as u32 },
            12 => Self::SpoolWrite(identity),
            13 => Self::SpoolRead(identity),
            14 => Self::SpoolEmpty,
            kind => unreachable!("the engine gives back the tokens it was given, not kind {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were() {
        for token in [
            Token::Write(WriteId(u32::MAX)),
            Token::ModifyRead(WriteId(3)),
            Token::Flush(77),
            Token::ClientRead { slot: 12_345, piece: 32 },
            Token::CoreRead(ReadId(1 << 40)),
            Token::MarkWrite,
            Token::MarkSync,
            Token::CoreFlush { id: 9, disk: 63 },
            Token::SpoolWrite(10),
            Token::SpoolRead(1 << 50),
            Token::SpoolEmpty,
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
