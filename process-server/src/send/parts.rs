//! Parts on their way: taken from a group's queue, encoded, written to a stream of their own.
//!
//! A group has two lanes, ordered and bulk. In each at most [`limits::PARTS_WINDOW`] parts are in progress, counted
//! from the oldest unfinished one. On the wire messages go before ordered parts, and these before bulk
//! (`proto::part_stream::priority`). Bulk content on its way is bounded besides ([`BulkRoom`]), so that it never takes the
//! room that ordered parts need.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::frame::{Bases, Compression, FrameError, Keep, RawExtent, split_frames};
use proto::part_stream::{PartWriter, PartWritten};
use proto::replication::{PartBegin, PartKind};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::bulk_room::BulkRoom;
use super::compare::Comparisons;
use super::encode::{Workshop, batches};
use super::error::LinkError;
use super::limits;
use super::port::{BulkJob, FromLink, LinkPort, PartJob};
use super::turns::{OwnTurns, Turns};
use super::zeroes::find_zeroes;

/// Whom errors speak of.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) address: String,
}

/// What parts of one connection share.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) connection: quinn::Connection,
    workshop: Arc<Workshop>,
    peer: Peer,
    ordered_turns: Turns,
    bulk_turns: Turns,
    pub(super) bulk_room: BulkRoom,
}

impl Outlet {
    /// The outlet of one session.
    pub(super) fn new(connection: quinn::Connection, workshop: Arc<Workshop>, peer: Peer) -> Self {
        let (ordered_turns, bulk_turns) = (Turns::default(), Turns::default());
        Self { connection, workshop, peer, ordered_turns, bulk_turns, bulk_room: BulkRoom::default() }
    }

    fn turns(&self, kind: PartKind) -> &Turns {
        match kind {
            PartKind::Bulk => &self.bulk_turns,
            _ => &self.ordered_turns,
        }
    }

    /// Why the connection ended, in words.
    pub(super) fn lost(&self, error: &quinn::ConnectionError) -> LinkError {
        proto::endpoint::explain(error, &self.peer.address, &self.peer.name).into()
    }

    fn write_failed(&self, begin: &PartBegin, error: quinn::WriteError) -> LinkError {
        match error {
            quinn::WriteError::ConnectionLost(error) => self.lost(&error),
            quinn::WriteError::Stopped(code) => stopped_by_target(begin, code),
            other => LinkError::Lost(other.to_string()),
        }
    }
}

/// One lane of a group, of parts of one kind: those in progress, oldest first.
pub(super) struct Lane {
    outlet: Arc<Outlet>,
    ports: Arc<[LinkPort]>,
    group: usize,
    turns: OwnTurns,
    in_progress: VecDeque<Running>,
}

struct Running {
    begin: PartBegin,
    task: JoinHandle<Result<u64, LinkError>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Lane {
    /// A lane for the group with index `group`.
    pub(super) fn new(outlet: Arc<Outlet>, ports: Arc<[LinkPort]>, group: usize) -> Self {
        Self { outlet, ports, group, turns: OwnTurns::default(), in_progress: VecDeque::new() }
    }

    /// Whether another part may be started.
    pub(super) fn has_room(&self) -> bool {
        self.in_progress.len() < limits::PARTS_WINDOW
    }

    /// Starts a part.
    pub(super) fn start(&mut self, job: PartJob) {
        assert!(self.has_room(), "the caller asks first");
        let begin = job.begin.clone();
        let turn = self.turns.next(self.outlet.turns(begin.kind()));
        let task = tokio::spawn(send_part(Arc::clone(&self.outlet), (Arc::clone(&self.ports), self.group), job, turn));
        self.in_progress.push_back(Running { begin, task });
    }

    /// Waits for the oldest part and returns what the group is to be told. Pends for ever when there is none.
    ///
    /// Cancel safe: a part leaves the lane only together with its result.
    pub(super) async fn oldest(&mut self) -> Result<FromLink, LinkError> {
        let Some(oldest) = self.in_progress.front_mut() else {
            return std::future::pending().await;
        };
        let result = (&mut oldest.task).await;
        let (kind, number, part) = (oldest.begin.kind(), oldest.begin.number, oldest.begin.part);
        self.in_progress.pop_front();
        match result {
            Ok(Ok(wire_bytes)) => {
                let compresses = self.outlet.workshop.compresses();
                Ok(FromLink::PartSent { kind, number, part, wire_bytes, compresses })
            }
            Ok(Err(error)) => {
                if matches!(error, LinkError::Content { .. }) {
                    // The group must know before the session ends: it would send the same content again.
                    self.tell(FromLink::PartDamaged { number, part }).await;
                }
                Err(error)
            }
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            Err(_) => Err(LinkError::Stopping),
        }
    }

    /// Tells the group of this lane.
    pub(super) async fn tell(&self, message: FromLink) {
        self.ports[self.group].tell(message).await;
    }

    /// Finishes what is in progress, then pends until the session ends.
    pub(super) async fn finish(mut self) -> Result<(), LinkError> {
        loop {
            let sent = self.oldest().await?;
            self.tell(sent).await;
        }
    }
}

/// Sends the bulk parts and comparisons of one group until the session ends.
pub(super) async fn run_bulk(
    mut lane: Lane,
    mut comparisons: Comparisons,
    mut jobs: mpsc::Receiver<BulkJob>,
) -> Result<(), LinkError> {
    let mut has_ended = false;
    loop {
        let has_room = !has_ended && lane.has_room() && comparisons.has_room();
        tokio::select! {
            job = jobs.recv(), if has_room => match job {
                Some(BulkJob::Part(job)) => lane.start(job),
                Some(BulkJob::Compare(job)) => comparisons.start(job),
                // The group has stopped; what it handed over still goes out.
                None => has_ended = true,
            },
            sent = lane.oldest() => lane.tell(sent?).await,
            asked = comparisons.next() => if let Err(damaged) = asked {
                // The group must know before the session ends: it would send the same content again.
                lane.tell(FromLink::PartDamaged { number: 0, part: damaged.request }).await;
                return Err(damaged.error);
            },
        }
    }
}

/// The frames of a part: zero blocks become ranges, small extents are gathered.
#[must_use]
pub fn frames_of(extents: Vec<RawExtent>) -> Vec<Vec<RawExtent>> {
    split_frames(find_zeroes(extents).into_iter())
}

/// Sends one part; returns its bytes on the wire, once the connection has taken them all.
async fn send_part(
    outlet: Arc<Outlet>,
    (ports, group): (Arc<[LinkPort]>, usize),
    job: PartJob,
    turn: u32,
) -> Result<u64, LinkError> {
    let PartJob { begin, extents, level, bases, keep } = job;
    let mut waits = None;
    if begin.kind() == PartKind::Ordered {
        waits = Some(outlet.bulk_room.ordered_waits());
    } else {
        let bytes = extents.iter().map(|extent| extent.data_bytes() as u64).sum();
        outlet.bulk_room.take(&begin, bytes).await;
    }
    let mut stream = outlet.connection.open_uni().await.map_err(|error| outlet.lost(&error))?;
    let batches = batches(frames_of(extents));
    let how = How { level, bases: Arc::new(bases), keep };
    let written = write_part(&outlet, &ports[group], &mut stream, (&begin, turn), batches, how).await?;
    drop(waits);
    // The connection has it, which may hold many parts; its turn is over when the target has it. There are as many of
    // these as streams, and they end with the connection.
    let (arrived, round_trip) = (stream.stopped(), outlet.workshop.round_trip(outlet.connection.rtt()));
    tokio::spawn(async move {
        tokio::pin!(arrived);
        if tokio::time::timeout(round_trip, &mut arrived).await.is_err() {
            let _waits = outlet.workshop.waits_for_link();
            _ = arrived.await;
        }
        outlet.turns(begin.kind()).done(turn);
    });
    Ok(written.wire_bytes)
}

/// How a part is encoded.
struct How {
    level: Compression,
    bases: Arc<Bases>,
    keep: Keep,
}

/// Writes the batches in order, while the next ones are being encoded. What is kept of them is told before the end.
async fn write_part(
    outlet: &Outlet,
    port: &LinkPort,
    stream: &mut quinn::SendStream,
    (begin, turn): (&PartBegin, u32),
    batches: Vec<Vec<Vec<RawExtent>>>,
    how: How,
) -> Result<PartWritten, LinkError> {
    let failed = |error| outlet.write_failed(begin, error);
    let mut writer = PartWriter::begin_in_turn(stream, begin, turn).await.map_err(failed)?;
    let mut waiting = batches.into_iter();
    let mut ahead = VecDeque::with_capacity(limits::BATCHES_AHEAD);
    let mut parcels = Vec::new();
    loop {
        while ahead.len() < limits::BATCHES_AHEAD
            && let Some(frames) = waiting.next()
        {
            let workshop = Arc::clone(&outlet.workshop);
            let over = (Arc::clone(&how.bases), how.keep);
            ahead.push_back(tokio::spawn(workshop.encode(begin.number, begin.part, frames, how.level, over)));
        }
        let Some(oldest) = ahead.pop_front() else { break };
        let start = Instant::now();
        let batch = match oldest.await {
            Ok(batch) => batch.map_err(|error| content_error(begin, &error))?,
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            Err(_) => return Err(LinkError::Stopping),
        };
        let encoded = Instant::now();
        let (raw_bytes, wire_bytes) = (batch.raw_bytes, batch.wire_bytes);
        parcels.extend(batch.parcels);
        for frame in batch.frames {
            writer.frame(frame).await.map_err(failed)?;
        }
        outlet.workshop.note(raw_bytes, wire_bytes, encoded - start);
    }
    if !parcels.is_empty() {
        port.tell(FromLink::Parcels { begin: begin.clone(), parcels }).await;
    }
    writer.end().await.map_err(failed)
}

fn content_error(begin: &PartBegin, error: &FrameError) -> LinkError {
    LinkError::Content { group: begin.group.clone(), number: begin.number, part: begin.part, what: error.to_string() }
}

fn stopped_by_target(begin: &PartBegin, code: quinn::VarInt) -> LinkError {
    let PartBegin { group, number, part, .. } = begin;
    LinkError::Protocol(format!("it refused part {part} of set {number} of group {group} (code {code})"))
}
