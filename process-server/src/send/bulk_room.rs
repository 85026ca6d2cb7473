//! How much bulk content may be between this agent and the target's disks.
//!
//! QUIC's own windows are not enough: a target whose disks are slower than the link stops reading bulk
//! streams, what it has not read fills the connection's window, and the next ordered part of any group
//! waits for disks it has nothing to do with. So a bulk part takes room before it is sent, and gives it
//! back when the target says that it is durable, or when the group's phase has moved on and the target
//! never will. The room of a session ends with the session.
//!
//! While ordered parts wait for the link, bulk has room for one part at a time: what it had queued before would go
//! first where the target's disks are what is scarce, and a capped link would keep it in memory for minutes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::replication::target_message::Body;
use proto::replication::{PartBegin, PartKind, TargetMessage};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::limits;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    group: String,
    phase: u64,
    part: u32,
}

/// What there is on its way, in parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    /// Ordered parts that the connection has not taken as a whole.
    ordered: usize,
    /// Bulk parts that have room.
    bulk: usize,
}

/// A place among the streams, and one among the bytes.
#[derive(Debug)]
struct Place {
    _stream: OwnedSemaphorePermit,
    _content: OwnedSemaphorePermit,
    load: watch::Sender<Load>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.send_modify(|load| load.bulk -= 1);
    }
}

/// An ordered part that waits for the link, until this is dropped.
#[derive(Debug)]
pub(super) struct OrderedWaits(watch::Sender<Load>);

impl Drop for OrderedWaits {
    fn drop(&mut self) {
        self.0.send_modify(|load| load.ordered -= 1);
    }
}

/// The room of one session, for all groups, first come first served.
#[derive(Debug)]
pub(super) struct BulkRoom {
    streams: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    load: watch::Sender<Load>,
    taken: Mutex<HashMap<Key, Place>>,
}

impl Default for BulkRoom {
    fn default() -> Self {
        Self {
            streams: Arc::new(Semaphore::new(limits::BULK_STREAMS)),
            kib: Arc::new(Semaphore::new(limits::BULK_IN_FLIGHT_KIB as usize)),
            load: watch::Sender::default(),
            taken: Mutex::default(),
        }
    }
}

impl BulkRoom {
    /// Waits for room for a part with `bytes` of data; one that is larger than all the room takes all of it.
    pub(super) async fn take(&self, begin: &PartBegin, bytes: u64) {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, limits::BULK_IN_FLIGHT_KIB);
        let stream = Arc::clone(&self.streams).acquire_owned().await;
        let content = Arc::clone(&self.kib).acquire_many_owned(kib).await;
        let (Ok(stream), Ok(content)) = (stream, content) else {
            unreachable!("the semaphores are never closed");
        };
        self.enter().await;
        let place = Place { _stream: stream, _content: content, load: self.load.clone() };
        let key = Key { group: begin.group.clone(), phase: begin.phase, part: begin.part };
        self.taken().insert(key, place);
    }

    /// Waits until no ordered part waits, or no bulk part is on its way.
    async fn enter(&self) {
        let mut changes = self.load.subscribe();
        let enter = |load: &mut Load| {
            let may = load.ordered == 0 || load.bulk == 0;
            load.bulk += usize::from(may);
            may
        };
        while !self.load.send_if_modified(enter) {
            if changes.changed().await.is_err() {
                unreachable!("the sender is in this room");
            }
        }
    }

    /// An ordered part begins to wait for the link.
    pub(super) fn ordered_waits(&self) -> OrderedWaits {
        self.load.send_modify(|load| load.ordered += 1);
        OrderedWaits(self.load.clone())
    }

    /// Gives back what a message of the target makes free.
    pub(super) fn handle_message(&self, message: &TargetMessage) {
        match &message.body {
            Some(Body::PartDurable(durable)) if durable.kind() == PartKind::Bulk => {
                let (group, phase, part) = (durable.group.clone(), durable.phase, durable.part);
                self.taken().remove(&Key { group, phase, part });
            }
            Some(Body::GroupOpened(opened)) => {
                self.taken().retain(|key, _| key.group != opened.group || key.phase == opened.phase);
            }
            Some(Body::GroupRefused(refused)) => self.taken().retain(|key, _| key.group != refused.group),
            Some(Body::GroupLost(lost)) => self.taken().retain(|key, _| key.group != lost.group),
            _ => {}
        }
    }

    /// Each change is whole when the lock is let go.
    fn taken(&self) -> MutexGuard<'_, HashMap<Key, Place>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proto::replication::{GroupLost, GroupOpened, GroupRefused, PartDurable};

    use super::*;

    const ALL: u64 = limits::BULK_IN_FLIGHT_KIB as u64 * 1024;

    fn begin(group: &str, phase: u64, part: u32) -> PartBegin {
        PartBegin { group: group.to_owned(), phase, kind: PartKind::Bulk.into(), number: 0, part, marks: 0 }
    }

    fn durable(group: &str, phase: u64, part: u32, kind: PartKind) -> TargetMessage {
        PartDurable { group: group.to_owned(), phase, kind: kind.into(), part, ..PartDurable::default() }.into()
    }

    fn free(room: &BulkRoom) -> (usize, usize) {
        (room.streams.available_permits(), room.kib.available_permits())
    }

    #[tokio::test]
    async fn room_comes_back_when_the_part_is_durable_and_not_before() {
        let room = BulkRoom::default();
        let all = free(&room);
        room.take(&begin("web", 1, 0), ALL).await;
        for other in [durable("db", 1, 0, PartKind::Bulk), durable("web", 2, 0, PartKind::Bulk)] {
            room.handle_message(&other);
        }
        room.handle_message(&durable("web", 1, 0, PartKind::Ordered));
        assert_eq!(free(&room), (all.0 - 1, 0));
        room.handle_message(&durable("web", 1, 0, PartKind::Bulk));
        assert_eq!(free(&room), all);
        room.handle_message(&durable("web", 1, 0, PartKind::Bulk));
        assert_eq!(free(&room), all, "a second acknowledgement frees nothing");
    }

    #[tokio::test]
    async fn a_part_larger_than_the_room_waits_for_all_of_it_and_gets_it() {
        let room = BulkRoom::default();
        room.take(&begin("web", 1, 0), 1).await;
        let huge = begin("web", 1, 1);
        let mut waiting = std::pin::pin!(room.take(&huge, ALL * 3));
        let now = std::task::Waker::noop();
        assert!(waiting.as_mut().poll(&mut std::task::Context::from_waker(now)).is_pending());
        room.handle_message(&durable("web", 1, 0, PartKind::Bulk));
        waiting.await;
        assert_eq!(free(&room).1, 0);
    }

    #[tokio::test]
    async fn beside_ordered_parts_that_wait_there_is_room_for_one_bulk_part() {
        let room = BulkRoom::default();
        let waiting = (room.ordered_waits(), room.ordered_waits());
        room.take(&begin("web", 1, 0), 4096).await;
        let (second, third) = (begin("web", 1, 1), begin("web", 1, 2));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut one = std::pin::pin!(room.take(&second, 4096));
        let mut two = std::pin::pin!(room.take(&third, 4096));
        assert!(one.as_mut().poll(&mut cx).is_pending() && two.as_mut().poll(&mut cx).is_pending());
        room.handle_message(&durable("web", 1, 0, PartKind::Bulk));
        assert!(one.as_mut().poll(&mut cx).is_ready() && two.as_mut().poll(&mut cx).is_pending());
        drop(waiting.0);
        assert!(two.as_mut().poll(&mut cx).is_pending(), "one still waits");
        drop(waiting.1);
        assert!(two.as_mut().poll(&mut cx).is_ready(), "nothing ordered waits any more");
    }

    #[tokio::test]
    async fn a_new_phase_or_a_refusal_frees_what_will_never_be_acknowledged() {
        let room = BulkRoom::default();
        let all = free(&room);
        for (group, phase) in [("web", 1), ("web", 2), ("db", 1)] {
            room.take(&begin(group, phase, 0), 4096).await;
        }
        room.handle_message(&GroupOpened { group: "web".to_owned(), phase: 2, ..GroupOpened::default() }.into());
        assert_eq!(free(&room), (all.0 - 2, all.1 - 8));
        room.handle_message(&GroupLost { group: "web".to_owned(), ..GroupLost::default() }.into());
        room.handle_message(&GroupRefused { group: "db".to_owned(), ..GroupRefused::default() }.into());
        assert_eq!(free(&room), all);
    }
}
