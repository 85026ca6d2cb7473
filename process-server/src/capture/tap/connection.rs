//! One NBD connection in transmission: bytes in, requests and payloads out; replies in, bytes out.
//!
//! Payloads land in aligned buffers that later go to the disk and into change sets without another copy, except for
//! the part of a payload that arrived behind other requests in one read: that is copied once out of the receive buffer.
//! Knows the framing; carries nothing out.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use blockio::{AlignedBuf, BufPool, IO_BYTES_MAX};
use bytes::Bytes;
use rustix::io::{Errno as SysErrno, IoSlice, IoSliceMut};

use nbd::{Connected, Export, ProtocolError, Request, Session};

/// Receive buffer: 31 requests of 4 KiB with their heads in one system call.
const RECEIVE_BYTES: usize = 128 << 10;
/// Pieces handed to one `writev`.
const SEND_PIECES_MAX: usize = 64;
/// Reply heads are gathered in buffers of this size.
const HEAD_BYTES: usize = 4096;

/// What the connection has received.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing complete.
    Wait,
    /// A request. If it has a payload, `expect` or `discard` must be called before the next step.
    Request(Request),
    /// A piece of a write's payload.
    Piece(Piece),
    /// The whole payload of this refused write has passed by.
    Discarded(usize),
}

/// At most 1 MiB of a write, in an aligned buffer rounded out to the disk's alignment.
#[derive(Debug)]
pub(super) struct Piece {
    /// The request it belongs to, as given to `expect`.
    pub(super) request: usize,
    /// Byte offset on the disk of the buffer's first byte.
    pub(super) offset: u64,
    /// Bytes before the payload that are not the client's.
    pub(super) lead: usize,
    /// Bytes of payload.
    pub(super) len: usize,
    /// The buffer.
    pub(super) buf: AlignedBuf,
}

#[derive(Debug)]
enum Payload {
    None,
    Discard { request: usize, left: u32 },
    Into { request: usize, offset: u64, left: u32, piece: Option<(Piece, usize)> },
}

#[derive(Debug)]
enum Out {
    Head(Vec<u8>),
    Data(Bytes),
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Connected,
    /// Index of the disk in the group.
    pub(super) disk: usize,
    pub(super) session: Session,
    pool: BufPool,
    alignment: u64,
    received: Box<[u8]>,
    start: usize,
    end: usize,
    payload: Payload,
    out: VecDeque<Out>,
    sent_of_first: usize,
    /// Requests taken and not yet answered.
    pub(super) outstanding: usize,
    /// No more requests are read: the client has said goodbye or broke the protocol, or its socket is gone.
    pub(super) closing: bool,
    /// Reading is suspended until memory or request slots are free again.
    pub(super) paused: bool,
    pub(super) watched: (bool, bool),
    /// How often flushes of the disk had begun to fail when the client was last told, or came.
    pub(super) flush_failures: u64,
}

impl Connection {
    pub(super) fn new(socket: Connected, disk: usize, export: &Export, alignment: u64, pool: BufPool) -> Self {
        Self {
            session: socket.session(export),
            socket,
            disk,
            pool,
            alignment,
            received: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            payload: Payload::None,
            out: VecDeque::new(),
            sent_of_first: 0,
            outstanding: 0,
            closing: false,
            paused: false,
            watched: (false, false),
            flush_failures: 0,
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.fd.as_raw_fd()
    }

    pub(super) fn peer(&self) -> &str {
        &self.socket.peer
    }

    /// Reads once what the socket has. False at its end.
    pub(super) fn receive(&mut self) -> io::Result<bool> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 {
            self.received.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let buffered = self.end;
        let spare = &mut self.received[buffered..];
        // With nothing buffered, a payload's bytes can go straight to where they belong.
        let (direct, direct_len) = match &mut self.payload {
            Payload::Into { piece: Some((piece, filled)), .. } if buffered == 0 => {
                let room = &mut piece.buf[piece.lead + *filled..piece.lead + piece.len];
                let len = room.len();
                (Some((room, filled)), len)
            }
            _ => (None, 0),
        };
        let read = match direct {
            Some((room, filled)) => {
                let read = rustix::io::readv(&self.socket.fd, &mut [IoSliceMut::new(room), IoSliceMut::new(spare)]);
                if let Ok(read) = read {
                    *filled += read.min(direct_len);
                }
                read
            }
            None => rustix::io::read(&self.socket.fd, spare),
        };
        match read {
            Ok(0) => Ok(false),
            Ok(read) => {
                self.end += read.saturating_sub(direct_len);
                Ok(true)
            }
            Err(SysErrno::AGAIN | SysErrno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// The next thing among what was received.
    pub(super) fn step(&mut self) -> Result<Step, ProtocolError> {
        match &mut self.payload {
            Payload::None => self.next_request(),
            Payload::Discard { request, left } => {
                let take = (*left as usize).min(self.end - self.start);
                self.start += take;
                *left -= take as u32;
                if *left > 0 {
                    return Ok(Step::Wait);
                }
                let request = *request;
                self.payload = Payload::None;
                Ok(Step::Discarded(request))
            }
            Payload::Into { .. } => Ok(self.next_piece()),
        }
    }

    fn next_request(&mut self) -> Result<Step, ProtocolError> {
        let bytes = &self.received[self.start..self.end];
        let Some(head) = bytes.first_chunk::<{ Request::BYTES }>() else { return Ok(Step::Wait) };
        let request = Request::parse(head)?;
        self.start += Request::BYTES;
        Ok(Step::Request(request))
    }

    fn next_piece(&mut self) -> Step {
        let Payload::Into { request, offset, left, piece } = &mut self.payload else { return Step::Wait };
        let (current, filled) = match piece {
            Some(current) => (&mut current.0, &mut current.1),
            None => {
                let len = piece_len(*offset, *left);
                let lead = (*offset % self.alignment) as usize;
                let whole = (lead + len).next_multiple_of(self.alignment as usize);
                let buf = self.pool.take(whole);
                let new = Piece { request: *request, offset: *offset - lead as u64, lead, len, buf };
                let current = piece.insert((new, 0));
                (&mut current.0, &mut current.1)
            }
        };
        let take = (current.len - *filled).min(self.end - self.start);
        let at = current.lead + *filled;
        current.buf[at..at + take].copy_from_slice(&self.received[self.start..self.start + take]);
        self.start += take;
        *filled += take;
        if *filled < current.len {
            return Step::Wait;
        }
        *offset += current.len as u64;
        *left -= current.len as u32;
        let last = *left == 0;
        let done = piece.take().map(|(piece, _)| piece);
        if last {
            self.payload = Payload::None;
        }
        done.map_or(Step::Wait, Step::Piece)
    }

    /// The client is gone: the request whose payload was still arriving, if there is one, gets no more of it.
    pub(super) fn abandon(&mut self) -> Option<usize> {
        match std::mem::replace(&mut self.payload, Payload::None) {
            Payload::None => None,
            Payload::Discard { request, .. } | Payload::Into { request, .. } => Some(request),
        }
    }

    /// The payload of the request just returned belongs to `request` and goes to `offset`.
    pub(super) fn expect(&mut self, request: usize, offset: u64, len: u32) {
        self.payload = Payload::Into { request, offset, left: len, piece: None };
    }

    /// The payload of the request just returned, `request`, is not wanted.
    pub(super) fn discard(&mut self, request: usize, len: u32) {
        self.payload = Payload::Discard { request, left: len };
    }

    /// Appends to the heads of replies.
    pub(super) fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        match self.out.back_mut() {
            Some(Out::Head(head)) if head.len() < HEAD_BYTES => write(head),
            _ => {
                let mut head = Vec::with_capacity(HEAD_BYTES);
                write(&mut head);
                self.out.push_back(Out::Head(head));
            }
        }
    }

    /// Appends the data of a read.
    pub(super) fn reply_data(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.out.push_back(Out::Data(data));
        }
    }

    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Sends what the socket takes.
    pub(super) fn send(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            let mut skip = self.sent_of_first;
            let slices: Vec<IoSlice<'_>> = self
                .out
                .iter()
                .take(SEND_PIECES_MAX)
                .map(|out| {
                    let bytes = &out.bytes()[skip..];
                    skip = 0;
                    IoSlice::new(bytes)
                })
                .collect();
            match rustix::io::writev(&self.socket.fd, &slices) {
                Ok(sent) => self.forget(sent),
                Err(SysErrno::AGAIN) => return Ok(()),
                Err(SysErrno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn forget(&mut self, mut sent: usize) {
        while let Some(first) = self.out.front() {
            let rest = first.bytes().len() - self.sent_of_first;
            if sent < rest {
                self.sent_of_first += sent;
                return;
            }
            sent -= rest;
            self.sent_of_first = 0;
            self.out.pop_front();
        }
    }
}

impl Out {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Head(head) => head,
            Self::Data(data) => data,
        }
    }
}

/// Bytes of the piece at `offset`: up to the next multiple of 1 MiB, so that rounding never exceeds it.
fn piece_len(offset: u64, left: u32) -> usize {
    let room = IO_BYTES_MAX - (offset % IO_BYTES_MAX as u64) as usize;
    room.min(left as usize)
}

#[cfg(test)]
mod tests {
    use super::piece_len;

    #[test]
    fn a_write_is_cut_at_multiples_of_a_mebibyte() {
        assert_eq!(piece_len(0, 32 << 20), 1 << 20);
        assert_eq!(piece_len((1 << 20) - 512, 4096), 512);
        assert_eq!(piece_len(4096, 4096), 4096);
    }
}
