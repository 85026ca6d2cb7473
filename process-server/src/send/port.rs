//! The channel between a group and the link: what goes in, what comes out, and whose session it is.
//!
//! The group's thread holds the [`GroupPort`] and never waits on it; the link holds the [`LinkPort`].
//! Each session has a queue of its own: it arrives with [`FromLink::Up`], inside the port, and when the
//! session ends the link drops its end. So what was queued in an old session is dropped with it and
//! can't be sent in the next one, whatever the group does between the two (rules S8 and L2).

use std::collections::VecDeque;
use std::sync::Arc;

use proto::frame::{Bases, Compression, Keep, Parcel, RawExtent};
use proto::ids::GroupName;
use proto::replication::{
    BeginBulk, Fenced, MarksVoid, OpenGroup, PartBegin, PartKind, RepairBlock, SealSet, SourceGroupBeat, TargetMessage,
};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};

use super::limits;
use crate::control::WakeCell;

/// What a group asks the link to do, in the order given.
///
/// Messages overtake parts: a [`ToLink::Seal`] may arrive before the parts that it counts.
#[derive(Debug)]
pub enum ToLink {
    /// Opens the group's conversation; the answer to [`FromLink::Up`].
    Open(OpenGroup),
    /// Asks for a bulk generation.
    BeginBulk(BeginBulk),
    /// Encodes a part and sends it on a stream of its own.
    Part(PartJob),
    /// Digests content and asks the target whether it has the same.
    Compare(CompareJob),
    /// Sends the content of a block that the target holds damaged.
    Repair(RepairBlock),
    /// Says what the write-intent marks are worth.
    MarksVoid(MarksVoid),
    /// Declares a set complete.
    Seal(SealSet),
    /// Answers a fence request.
    Fenced(Fenced),
    /// Goes out with the next heartbeat; a newer one replaces it.
    Beat(SourceGroupBeat),
}

/// One part of a change set, or of a bulk copy.
#[derive(Debug)]
pub struct PartJob {
    /// Names the part.
    pub begin: PartBegin,
    /// Its content; the memory is let go when the connection no longer needs it.
    pub extents: Vec<RawExtent>,
    /// What the link compresses with; it may decide for nothing, or for more in sets while it has little to do.
    pub level: Compression,
    /// What the target durably has of blocks that it overwrites, as far as that is known: their content may go as deltas.
    pub bases: Bases,
    /// What is to be kept of what is sent, for [`FromLink::Parcels`]: only where the link compresses.
    pub keep: Keep,
}

/// Content to be compared by digest. The answer is the target's `BlocksCompared`; jobs are answered in any order.
///
/// At most [`proto::limits::COMPARE_RUNS_MAX`] extents of [`proto::limits::COMPARE_UNITS_MAX`] units together.
#[derive(Debug)]
pub struct CompareJob {
    /// Name of the group.
    pub group: String,
    /// Its phase.
    pub phase: u64,
    /// A running number within the phase.
    pub request: u32,
    /// Data of at most 1 MiB or zeroes, never unreadable; each becomes one run, in this order. Their memory is let go
    /// when they have been digested.
    pub extents: Vec<RawExtent>,
}

/// What waits in the queue of those who are in no hurry.
#[derive(Debug)]
pub(super) enum BulkJob {
    Part(PartJob),
    Compare(CompareJob),
}

/// What the link tells a group.
#[derive(Debug, Clone, PartialEq)]
pub enum FromLink {
    /// A session began: answer with [`ToLink::Open`].
    Up,
    /// The session ended; nothing that was queued in it will be sent.
    Down {
        /// Why, in words.
        reason: String,
    },
    /// The target said something about this group.
    Message(TargetMessage),
    /// A part's content no longer matches the checksum it was captured with; it was not sent.
    PartDamaged {
        /// Set number; 0 for bulk and for what was to be compared.
        number: u64,
        /// Index of the part, or number of the request.
        part: u32,
    },
    /// What was kept of a part. It arrives before the part's last record leaves, so before any answer to it.
    Parcels {
        /// The part.
        begin: PartBegin,
        /// Its blocks, as they were sent.
        parcels: Vec<Arc<Parcel>>,
    },
    /// A part was handed to the connection as a whole. It is durable only when the target says so.
    PartSent {
        /// Ordered or bulk.
        kind: PartKind,
        /// Set number; 0 for bulk.
        number: u64,
        /// Index of the part.
        part: u32,
        /// Bytes after encoding, record heads included.
        wire_bytes: u64,
        /// Whether content is compressed at the moment, since the link takes less than the processors compress.
        compresses: bool,
    },
}

/// Why a message was not taken; it is handed back.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// There is no session: drop what belongs to it and wait for [`FromLink::Up`].
    #[error("the link is down")]
    Down(Box<ToLink>),
    /// The session's queue is full: try again after the next [`FromLink`].
    #[error("the link's queue is full")]
    Full(Box<ToLink>),
}

/// The queues of one session. Bulk parts and comparisons have their own: what is in no hurry never keeps
/// an ordered part or a message waiting behind it.
#[derive(Debug)]
pub(super) struct SessionQueues {
    pub(super) first: mpsc::Receiver<ToLink>,
    pub(super) bulk: mpsc::Receiver<BulkJob>,
}

#[derive(Debug)]
struct SessionSender {
    first: mpsc::Sender<ToLink>,
    bulk: mpsc::Sender<BulkJob>,
}

/// What really travels to the group: `Up` brings the new session's queues along.
#[derive(Debug)]
enum Delivery {
    Up(SessionSender),
    Other(FromLink),
}

/// The group's end.
#[derive(Debug)]
pub struct GroupPort {
    session: Option<SessionSender>,
    from_link: mpsc::Receiver<Delivery>,
}

/// The link's end.
#[derive(Debug)]
pub struct LinkPort {
    group: GroupName,
    deliveries: mpsc::Sender<Delivery>,
    wake: WakeCell,
}

/// Makes both ends for `group`; `wake` is called after each message to the group.
pub fn port(group: GroupName, wake: WakeCell) -> (GroupPort, LinkPort) {
    let (deliveries, from_link) = mpsc::channel(limits::FROM_LINK_QUEUE);
    (GroupPort { session: None, from_link }, LinkPort { group, deliveries, wake })
}

impl GroupPort {
    /// The next message of the link, if there is one. Never waits.
    pub fn try_recv(&mut self) -> Option<FromLink> {
        match self.from_link.try_recv() {
            Ok(Delivery::Up(session)) => {
                self.session = Some(session);
                Some(FromLink::Up)
            }
            Ok(Delivery::Other(message)) => {
                if matches!(message, FromLink::Down { .. }) {
                    self.session = None;
                }
                Some(message)
            }
            Err(TryRecvError::Empty) => None,
            // The link itself has ended: say so once, in its own terms.
            Err(TryRecvError::Disconnected) => {
                self.session.take().map(|_| FromLink::Down { reason: "the agent is stopping".to_owned() })
            }
        }
    }

    /// Hands a message to the session that this port last saw begin. Never waits.
    ///
    /// After [`PortError::Full`] try again when the next [`FromLink`] or timer wakes the group: a part
    /// that makes room is announced by [`FromLink::PartSent`], a comparison by its answer.
    pub fn try_send(&mut self, message: ToLink) -> Result<(), PortError> {
        let Some(session) = &self.session else {
            return Err(PortError::Down(Box::new(message)));
        };
        match message {
            ToLink::Part(job) if job.begin.kind() == PartKind::Bulk => {
                session.bulk.try_send(BulkJob::Part(job)).map_err(PortError::from_refused_bulk)
            }
            ToLink::Compare(job) => session.bulk.try_send(BulkJob::Compare(job)).map_err(PortError::from_refused_bulk),
            message => session.first.try_send(message).map_err(|refused| PortError::from_refused(refused, |it| it)),
        }
    }

    /// How many more bulk parts and comparisons the session takes now; 0 without one.
    pub fn bulk_capacity(&self) -> usize {
        self.session.as_ref().map_or(0, |session| free(&session.bulk))
    }

    /// How many more ordered parts and messages the session takes now; 0 without one.
    pub fn capacity(&self) -> usize {
        self.session.as_ref().map_or(0, |session| free(&session.first))
    }
}

fn free<T>(queue: &mpsc::Sender<T>) -> usize {
    if queue.is_closed() { 0 } else { queue.capacity() }
}

impl PortError {
    fn from_refused_bulk(refused: TrySendError<BulkJob>) -> Self {
        Self::from_refused(refused, |job| match job {
            BulkJob::Part(job) => ToLink::Part(job),
            BulkJob::Compare(job) => ToLink::Compare(job),
        })
    }

    fn from_refused<T>(refused: TrySendError<T>, back: impl FnOnce(T) -> ToLink) -> Self {
        match refused {
            TrySendError::Full(message) => Self::Full(Box::new(back(message))),
            TrySendError::Closed(message) => Self::Down(Box::new(back(message))),
        }
    }
}

impl LinkPort {
    /// The group at the other end.
    pub fn group(&self) -> &GroupName {
        &self.group
    }

    /// Begins a session: what the group sends from now on comes out of the queues.
    pub(super) async fn begin_session(&self) -> SessionQueues {
        let (first_in, first) = mpsc::channel(limits::TO_LINK_QUEUE);
        let (bulk_in, bulk) = mpsc::channel(limits::BULK_QUEUE);
        self.deliver(Delivery::Up(SessionSender { first: first_in, bulk: bulk_in })).await;
        SessionQueues { first, bulk }
    }

    /// Tells the group something.
    pub(super) async fn tell(&self, message: FromLink) {
        self.deliver(Delivery::Other(message)).await;
    }

    async fn deliver(&self, delivery: Delivery) {
        // A group that is gone has stopped or failed, and says so in its own status.
        if self.deliveries.send(delivery).await.is_ok() {
            self.wake.wake();
        }
    }
}

/// Tries messages again in order, for a group that must keep what did not fit.
///
/// A convenience around [`GroupPort::try_send`]: order is kept across full queues.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<ToLink>,
}

impl Outbox {
    /// Queues a message behind those that wait.
    pub fn push(&mut self, message: ToLink) {
        self.waiting.push_back(message);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends what fits; drops everything when there is no session.
    pub fn flush(&mut self, port: &mut GroupPort) {
        while let Some(message) = self.waiting.pop_front() {
            match port.try_send(message) {
                Ok(()) => {}
                Err(PortError::Full(message)) => {
                    self.waiting.push_front(*message);
                    return;
                }
                Err(PortError::Down(_)) => self.waiting.clear(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn beat(newest_set: u64) -> ToLink {
        ToLink::Beat(SourceGroupBeat { newest_set, ..SourceGroupBeat::default() })
    }

    fn part(kind: PartKind) -> ToLink {
        let begin = PartBegin { kind: kind.into(), ..PartBegin::default() };
        ToLink::Part(PartJob {
            begin,
            extents: Vec::new(),
            level: Compression::Off,
            bases: Bases::default(),
            keep: Keep::Nothing,
        })
    }

    fn down() -> FromLink {
        FromLink::Down { reason: "test".to_owned() }
    }

    #[tokio::test]
    async fn nothing_of_an_old_session_comes_out_of_the_next() {
        let (mut group, link) = port("web".parse().unwrap(), WakeCell::default());
        assert!(matches!(group.try_send(beat(0)), Err(PortError::Down(_))));

        let mut old = link.begin_session().await;
        assert_eq!(group.try_recv(), Some(FromLink::Up));
        group.try_send(beat(1)).unwrap();
        assert!(matches!(old.first.recv().await, Some(ToLink::Beat(_))));
        group.try_send(beat(2)).unwrap();

        // The session ends and the next begins before the group looks: what it sends belongs to the old one.
        drop(old);
        link.tell(down()).await;
        let mut new = link.begin_session().await;
        assert!(matches!(group.try_send(beat(3)), Err(PortError::Down(_))));
        assert_eq!(group.capacity(), 0);

        assert_eq!(group.try_recv(), Some(down()));
        assert!(matches!(group.try_send(beat(4)), Err(PortError::Down(_))));
        assert_eq!(group.try_recv(), Some(FromLink::Up));
        group.try_send(beat(5)).unwrap();
        assert!(matches!(new.first.recv().await, Some(ToLink::Beat(beat)) if beat.newest_set == 5));
        assert!(new.first.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_full_bulk_queue_leaves_room_for_ordered_parts_and_messages() {
        let (mut group, link) = port("web".parse().unwrap(), WakeCell::default());
        let mut queues = link.begin_session().await;
        group.try_recv();
        while group.bulk_capacity() > 0 {
            group.try_send(part(PartKind::Bulk)).unwrap();
        }
        assert!(matches!(group.try_send(part(PartKind::Bulk)), Err(PortError::Full(_))));
        group.try_send(part(PartKind::Ordered)).unwrap();
        group.try_send(beat(1)).unwrap();
        assert!(matches!(queues.first.recv().await, Some(ToLink::Part(_))));
        assert!(queues.bulk.recv().await.is_some());
        assert_eq!(group.bulk_capacity(), 1);
    }

    #[tokio::test]
    async fn comparisons_wait_among_the_bulk_parts_and_come_back_whole_when_there_is_no_room() {
        let compare =
            |request| ToLink::Compare(CompareJob { group: "web".to_owned(), phase: 1, request, extents: Vec::new() });
        let (mut group, link) = port("web".parse().unwrap(), WakeCell::default());
        let mut queues = link.begin_session().await;
        group.try_recv();
        let room = group.capacity();
        group.try_send(compare(0)).unwrap();
        while group.bulk_capacity() > 0 {
            group.try_send(part(PartKind::Bulk)).unwrap();
        }
        match group.try_send(compare(7)) {
            Err(PortError::Full(back)) => assert!(matches!(*back, ToLink::Compare(job) if job.request == 7)),
            other => panic!("{other:?}"),
        }
        assert_eq!(group.capacity(), room, "ordered parts and messages keep their room");
        assert!(matches!(queues.bulk.recv().await, Some(BulkJob::Compare(job)) if job.request == 0));
    }

    #[tokio::test]
    async fn each_message_wakes_the_group() {
        let wake = WakeCell::default();
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&wakes);
        wake.set(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let (mut group, link) = port("web".parse().unwrap(), wake);
        let _queues = link.begin_session().await;
        link.tell(down()).await;
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
        assert_eq!((group.try_recv(), group.try_recv(), group.try_recv()), (Some(FromLink::Up), Some(down()), None));
    }

    #[tokio::test]
    async fn a_link_that_ends_says_down_once() {
        let (mut group, link) = port("web".parse().unwrap(), WakeCell::default());
        let _queues = link.begin_session().await;
        drop(link);
        assert_eq!(group.try_recv(), Some(FromLink::Up));
        assert!(matches!(group.try_recv(), Some(FromLink::Down { .. })));
        assert_eq!(group.try_recv(), None);
    }

    #[tokio::test]
    async fn an_outbox_keeps_order_across_a_full_queue_and_forgets_an_ended_session() {
        let (mut group, link) = port("web".parse().unwrap(), WakeCell::default());
        let mut queues = link.begin_session().await;
        group.try_recv();
        let mut outbox = Outbox::default();
        let count = limits::TO_LINK_QUEUE as u64 + 3;
        (0..count).for_each(|number| outbox.push(beat(number)));
        outbox.flush(&mut group);
        assert_eq!(outbox.len(), 3);
        for expected in 0..count {
            let Some(ToLink::Beat(beat)) = queues.first.recv().await else { panic!("not a beat") };
            assert_eq!(beat.newest_set, expected);
            outbox.flush(&mut group);
        }
        drop(queues);
        outbox.push(beat(99));
        outbox.push(beat(100));
        outbox.flush(&mut group);
        assert!(outbox.is_empty());
    }
}
