//! Requests that were taken from a client and are not answered yet.

use bytes::Bytes;

use nbd::{Errno, Request};
use proto::ids::DiskIndex;

use crate::group::FlushId;

/// Progress of one request.
#[derive(Debug)]
pub(super) struct Pending {
    /// The connection it came from. Connections have names that are never used again.
    pub(super) connection: u64,
    pub(super) request: Request,
    /// Pieces (of payload, of zeroes, of a read) that are not done.
    pub(super) pieces: u32,
    /// Payload that has not arrived yet.
    pub(super) payload_left: u32,
    /// The first error.
    pub(super) error: Option<(Errno, &'static str)>,
    /// Data of a read, in order of the pieces.
    pub(super) data: Vec<Bytes>,
    /// Bytes of buffers it has in use.
    pub(super) bytes: usize,
    /// The flush that ends the request, while it is under way.
    pub(super) flush: Option<(DiskIndex, FlushId)>,
}

impl Pending {
    pub(super) fn new(connection: u64, request: Request) -> Self {
        Self {
            connection,
            request,
            pieces: 0,
            payload_left: request.payload_bytes(),
            error: None,
            data: Vec::new(),
            bytes: 0,
            flush: None,
        }
    }

    pub(super) fn fail(&mut self, errno: Errno, reason: &'static str) {
        self.error.get_or_insert((errno, reason));
    }
}

/// The table of pending requests; a slot is used again once its request has been answered.
#[derive(Debug, Default)]
pub(super) struct Requests {
    slots: Vec<Option<Pending>>,
    free: Vec<usize>,
}

impl Requests {
    pub(super) fn insert(&mut self, pending: Pending) -> usize {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(pending);
                slot
            }
            None => {
                self.slots.push(Some(pending));
                self.slots.len() - 1
            }
        }
    }

    pub(super) fn at(&mut self, slot: usize) -> &mut Pending {
        self.slots[slot].as_mut().expect("a request is pending until it is answered")
    }

    pub(super) fn remove(&mut self, slot: usize) -> Pending {
        self.free.push(slot);
        self.slots[slot].take().expect("a request is answered once")
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
