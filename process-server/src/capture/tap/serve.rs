//! Carries out what clients ask: requests become reads, flushes and admitted writes; completions become replies.

use blockio::{Event, IoError, Op};
use bytes::Bytes;
use proto::ids::DiskIndex;
use tracing::{info, warn};

use super::complaints::Trouble;
use super::connection::{Connection, Piece, Step};
use super::request::Pending;
use super::thread::{Tap, Token};
use crate::group::{Admitted, Change, WriteId};
use nbd::{Allocation, Command, Errno, Request, reply};

/// Bytes of one zero range that is admitted at a time.
const ZERO_PIECE_BYTES: u64 = 64 << 20;
/// Requests of one connection in progress.
const OUTSTANDING_MAX: usize = 256;
/// Bytes of buffers of requests in progress in one group. Change sets have their own budget and never get these.
const BYTES_IN_PROGRESS_MAX: usize = 64 << 20;

/// How an admitted write reaches the disk.
#[derive(Debug)]
pub(super) enum WriteKind {
    /// The core's buffer, as it is.
    Data,
    /// Not aligned to the disk: the rest of the range is read first, and `piece` laid over it.
    ReadModifyWrite(Piece),
    /// A hole where the file system can.
    Punch,
    /// Zeroes that stay allocated.
    Zero,
}

/// A write between admission and completion.
#[derive(Debug)]
pub(super) struct WriteJob {
    pub(super) request: usize,
    pub(super) kind: WriteKind,
}

impl Tap {
    /// A client's socket is ready.
    pub(super) fn socket_ready(&mut self, name: u64, readable: bool, hangup: bool) {
        let Some(mut connection) = self.connections.remove(&name) else { return };
        if (readable || hangup) && !connection.closing && !connection.paused {
            match connection.receive() {
                Ok(true) => self.take_steps(name, &mut connection),
                Ok(false) => connection.closing = true,
                Err(error) => {
                    info!(group = %self.name, peer = connection.peer(), %error, "an NBD client was lost");
                    connection.closing = true;
                }
            }
        }
        if connection.closing {
            self.abandon_payload(&mut connection);
        }
        self.connections.insert(name, connection);
    }

    /// A client that reads or sends no more: what has arrived of its last write counts, the rest never comes.
    pub(super) fn abandon_payload(&mut self, connection: &mut Connection) {
        if let Some(slot) = connection.abandon() {
            let pending = self.requests.at(slot);
            pending.payload_left = 0;
            pending.fail(Errno::Io, "the client left in the middle of the write");
            self.finish_if_done(slot, Some(connection));
        }
    }

    /// Goes on with a connection that was suspended.
    pub(super) fn resume(&mut self, name: u64) {
        let Some(mut connection) = self.connections.remove(&name) else { return };
        connection.paused = false;
        self.take_steps(name, &mut connection);
        if connection.closing {
            self.abandon_payload(&mut connection);
        }
        self.connections.insert(name, connection);
    }

    /// Whether another request may be taken from a connection.
    pub(super) fn has_room(&self, connection: &Connection) -> bool {
        connection.outstanding < OUTSTANDING_MAX && self.bytes_in_progress < BYTES_IN_PROGRESS_MAX
    }

    fn take_steps(&mut self, name: u64, connection: &mut Connection) {
        while !connection.closing {
            if !self.has_room(connection) {
                connection.paused = true;
                return;
            }
            match connection.step() {
                Ok(Step::Wait) => return,
                Ok(Step::Request(request)) => self.take_request(name, connection, request),
                Ok(Step::Piece(piece)) => self.take_piece(connection, piece),
                Ok(Step::Discarded(slot)) => self.finish(slot, Some(connection)),
                Err(error) => {
                    warn!(group = %self.name, peer = connection.peer(), %error, "an NBD client is disconnected");
                    connection.closing = true;
                }
            }
        }
    }

    fn take_request(&mut self, name: u64, connection: &mut Connection, request: Request) {
        if request.command == Command::Disconnect {
            connection.closing = true;
            return;
        }
        connection.outstanding += 1;
        let slot = self.requests.insert(Pending::new(name, request));
        if let Err(refusal) = request.check(&connection.session) {
            self.requests.at(slot).fail(refusal.errno, refusal.reason);
            self.refuse(slot, connection);
            return;
        }
        let disk = connection.disk;
        match request.command {
            Command::Write if request.length > 0 => connection.expect(slot, request.offset, request.length),
            Command::Read if request.length > 0 => self.start_client_read(slot, disk, request),
            Command::Flush => self.start_flush(slot, disk),
            Command::Trim | Command::WriteZeroes if request.length > 0 => self.take_zeroes(slot, connection, request),
            Command::BlockStatus => self.answer_block_status(slot, connection, request),
            _ => self.finish(slot, Some(connection)),
        }
    }

    fn refuse(&mut self, slot: usize, connection: &mut Connection) {
        let pending = self.requests.at(slot);
        let payload = std::mem::take(&mut pending.payload_left);
        if payload > 0 {
            connection.discard(slot, payload);
        } else {
            self.finish(slot, Some(connection));
        }
    }

    /// A piece of a write has arrived as a whole: it is admitted.
    fn take_piece(&mut self, connection: &mut Connection, piece: Piece) {
        let slot = piece.request;
        let bytes = piece.buf.len();
        let pending = self.requests.at(slot);
        pending.payload_left -= piece.len as u32;
        pending.bytes += bytes;
        self.bytes_in_progress += bytes;
        let (offset, aligned) = (piece.offset, piece.len == bytes);
        let (change, kind) = if aligned {
            (Change::Data(piece.buf.freeze()), WriteKind::Data)
        } else {
            (Change::Later, WriteKind::ReadModifyWrite(piece))
        };
        self.admit(slot, connection.disk, offset, bytes as u64, change, kind);
        self.finish_if_done(slot, Some(connection));
    }

    /// Zeroes and trims: whole units as ranges, in pieces; what is left at the ends is written (or, of a trim, left).
    fn take_zeroes(&mut self, slot: usize, connection: &mut Connection, request: Request) {
        let unit = self.disks[connection.disk].alignment;
        let trim = request.command == Command::Trim;
        if !trim && request.no_hole() && request.fast_zero() {
            // Whether this file system can zero an allocated range without writing it is not known beforehand.
            self.requests.at(slot).fail(Errno::NotSup, "fast zeroing without a hole is not supported");
            self.finish(slot, Some(connection));
            return;
        }
        let (start, end) = (request.offset, request.offset + u64::from(request.length));
        let (first, last) = (start.next_multiple_of(unit), end / unit * unit);
        let kind = || if request.no_hole() && !trim { WriteKind::Zero } else { WriteKind::Punch };
        let mut at = first;
        while at < last {
            let len = ZERO_PIECE_BYTES.min(last - at);
            self.admit(slot, connection.disk, at, len, Change::Zero, kind());
            at += len;
        }
        if !trim {
            let ends = if first > last { vec![(start, end)] } else { vec![(start, first), (last, end)] };
            for (from, to) in ends.into_iter().filter(|(from, to)| from < to) {
                self.admit_zero_bytes(slot, connection.disk, unit, from, to);
            }
        }
        self.finish_if_done(slot, Some(connection));
    }

    /// Fewer bytes than a unit, to be zeroed inside what is there; they may touch two units.
    fn admit_zero_bytes(&mut self, slot: usize, disk: usize, unit: u64, from: u64, to: u64) {
        let base = from / unit * unit;
        let len = (to.next_multiple_of(unit) - base) as usize;
        let (lead, zeroes) = ((from - base) as usize, (to - from) as usize);
        let mut buf = self.pool.take(len);
        buf[lead..lead + zeroes].fill(0);
        let piece = Piece { request: slot, offset: base, lead, len: zeroes, buf };
        self.admit(slot, disk, base, len as u64, Change::Later, WriteKind::ReadModifyWrite(piece));
    }

    fn admit(&mut self, slot: usize, disk: usize, offset: u64, len: u64, change: Change, kind: WriteKind) {
        let disk = DiskIndex(disk as u32);
        match self.group.admit(disk, offset / blockio::SECTOR, len / blockio::SECTOR, change) {
            Ok(admitted) => {
                self.requests.at(slot).pieces += 1;
                let (Admitted::Submit(id) | Admitted::Wait(id)) = admitted;
                let index = id.0 as usize;
                if index >= self.writes.len() {
                    self.writes.resize_with(index + 1, || None);
                }
                self.writes[index] = Some(WriteJob { request: slot, kind });
                if admitted == Admitted::Submit(id) {
                    self.submit(id);
                }
            }
            Err(_fenced) => {
                self.requests.at(slot).fail(Errno::Shutdown, "the group is fenced: the machine is failed back");
            }
        }
    }

    /// Carries out an admitted write.
    pub(super) fn submit(&mut self, id: WriteId) {
        let Some(job) = &self.writes[id.0 as usize] else { return };
        let (disk, sector, sectors, change) = self.group.write(id);
        let (offset, len) = (sector * blockio::SECTOR, sectors * blockio::SECTOR);
        let file = self.disks[disk.0 as usize].file.clone();
        let op = match (&job.kind, change) {
            (WriteKind::Data, Change::Data(data)) => Op::Write { file, offset, data: data.clone() },
            (WriteKind::ReadModifyWrite(_), Change::Later) => {
                let buf = self.pool.take(len as usize);
                self.engine.submit(Token::ModifyRead(id).encode(), Op::Read { file, offset, buf });
                return;
            }
            (WriteKind::ReadModifyWrite(_), Change::Data(data)) => Op::Write { file, offset, data: data.clone() },
            (WriteKind::Zero, _) => Op::Zero { file, offset, len },
            (WriteKind::Punch, _) => Op::Punch { file, offset, len },
            (kind, change) => unreachable!("a write of kind {kind:?} was admitted as {change:?}"),
        };
        self.engine.submit(Token::Write(id).encode(), op);
    }

    /// What surrounds an unaligned write has been read: the payload is laid over it, and the whole is written.
    pub(super) fn modify_read_done(
        &mut self,
        id: WriteId,
        result: Result<(), IoError>,
        buf: Option<blockio::AlignedBuf>,
    ) {
        let (Ok(()), Some(mut whole)) = (result, buf) else {
            self.write_ended(id, false, Errno::Io, "the block around the write could not be read");
            return;
        };
        if let Some(WriteJob { kind: WriteKind::ReadModifyWrite(piece), .. }) = &self.writes[id.0 as usize] {
            let range = piece.lead..piece.lead + piece.len;
            whole[range.clone()].copy_from_slice(&piece.buf[range]);
        }
        self.group.fill(id, whole.freeze());
        self.submit(id);
    }

    /// A write has reached the disk, or failed.
    pub(super) fn write_done(&mut self, id: WriteId, result: Result<(), IoError>) {
        let Err(error) = result else {
            self.write_ended(id, true, Errno::Io, "");
            return;
        };
        let Some(job) = &mut self.writes[id.0 as usize] else { return };
        let request = self.requests.at(job.request).request;
        if matches!(job.kind, WriteKind::Punch) && is_unsupported(&error) {
            match request.command {
                // A trim is a hint: nothing has changed, and the core reads the range again to be sure.
                Command::Trim => self.end_piece(id, false),
                _ if request.fast_zero() => self.write_ended(id, false, Errno::NotSup, "no fast zeroing on this disk"),
                _ => {
                    job.kind = WriteKind::Zero;
                    self.submit(id);
                }
            }
            return;
        }
        let disk = self.group.write(id).0.0 as usize;
        if let Some(left_out) = self.complaints.is_due(disk, Trouble::Write, self.clock.now().mono) {
            let name = self.disks[disk].name();
            warn!(
                group = %self.name, disk = name, %error, left_out,
                "guest writes fail: the guest is told, and what they left is read again; check the disk and its free space"
            );
        }
        let full = error.kind() == std::io::ErrorKind::StorageFull;
        let errno = if full { Errno::NoSpc } else { Errno::Io };
        self.write_ended(id, false, errno, "the disk behind the export failed");
    }

    fn write_ended(&mut self, id: WriteId, ok: bool, errno: Errno, reason: &'static str) {
        let slot = self.writes[id.0 as usize].as_ref().map(|job| job.request);
        if let (false, Some(slot)) = (ok, slot) {
            self.requests.at(slot).fail(errno, reason);
        }
        self.end_piece(id, ok);
    }

    fn end_piece(&mut self, id: WriteId, ok: bool) {
        let job = self.writes[id.0 as usize].take();
        self.group.write_done(id, ok);
        if let Some(job) = job {
            self.requests.at(job.request).pieces -= 1;
            self.finish_if_done(job.request, None);
        }
    }

    pub(super) fn finish_if_done(&mut self, slot: usize, connection: Option<&mut Connection>) {
        let pending = self.requests.at(slot);
        if pending.pieces > 0 || pending.payload_left > 0 {
            return;
        }
        let writes = matches!(pending.request.command, Command::Write | Command::WriteZeroes | Command::Trim);
        if writes && pending.request.fua() && pending.error.is_none() && pending.flush.is_none() {
            let name = pending.connection;
            let disk =
                connection.map(|connection| connection.disk).or_else(|| self.connections.get(&name).map(|c| c.disk));
            match disk {
                Some(disk) => self.start_flush(slot, disk),
                // The client is gone; nobody waits for the answer.
                None => self.finish(slot, None),
            }
            return;
        }
        self.finish(slot, connection);
    }

    /// Answers a request. `connection` is its connection where the caller holds it.
    pub(super) fn finish(&mut self, slot: usize, connection: Option<&mut Connection>) {
        let mut pending = self.requests.remove(slot);
        self.bytes_in_progress -= pending.bytes;
        let connection = match connection {
            Some(connection) => connection,
            None => match self.connections.get_mut(&pending.connection) {
                Some(connection) => connection,
                None => return,
            },
        };
        self.to_send.push(pending.connection);
        connection.outstanding -= 1;
        let replies = connection.session.replies;
        let Request { cookie, offset, length, command, .. } = pending.request;
        match pending.error {
            Some((errno, reason)) => connection.reply(|out| reply::failure(out, replies, cookie, errno, reason)),
            None if command == Command::Read => {
                connection.reply(|out| reply::read_head(out, replies, cookie, offset, length));
                for data in pending.data.drain(..) {
                    connection.reply_data(data);
                }
            }
            None if command == Command::BlockStatus => {}
            None => connection.reply(|out| reply::success(out, cookie)),
        }
    }

    fn answer_block_status(&mut self, slot: usize, connection: &mut Connection, request: Request) {
        match self.disks[connection.disk].file.allocated(request.offset, u64::from(request.length)) {
            Ok(runs) => {
                let ranges =
                    runs.iter().map(|run| (run.len, if run.is_data { Allocation::Data } else { Allocation::Hole }));
                connection.reply(|out| {
                    reply::block_status(out, request.cookie, request.length, request.one_extent(), ranges);
                });
            }
            Err(error) => {
                warn!(group = %self.name, %error, "the allocation of a protected disk could not be read");
                self.requests.at(slot).fail(Errno::Io, "the allocation of the disk could not be read");
            }
        }
        self.finish(slot, Some(connection));
    }

    /// A completion or readiness of the engine.
    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Woken => self.woken(),
            Event::Ready { token, readable, hangup, .. } => {
                self.to_send.push(token);
                self.socket_ready(token, readable, hangup);
            }
            Event::Done { token, result, buf } => match Token::decode(token) {
                Token::Write(id) => self.write_done(id, result),
                Token::ModifyRead(id) => self.modify_read_done(id, result, buf),
                Token::Flush(slot) => self.flush_done(slot, result),
                Token::ClientRead { slot, piece } => self.client_read_done(slot, piece, result, buf),
                Token::MarkWrite => self.mark_written(result),
                Token::MarkSync => self.marks_synced(result),
                Token::CoreFlush { id, disk } => self.core_flush_done(id, DiskIndex(disk), result),
                Token::CoreRead(id) => self.core_read_done(id, result, buf),
                Token::SpoolWrite(id) => self.spool_written(id, result),
                Token::SpoolRead(id) => self.spool_read_done(id, result, buf),
                Token::SpoolEmpty => self.spool_emptied(result),
            },
        }
    }
}

fn is_unsupported(error: &IoError) -> bool {
    error.kind() == std::io::ErrorKind::Unsupported
        || error.raw_os_error().is_some_and(|code| code == rustix::io::Errno::OPNOTSUPP.raw_os_error())
}

/// The data of a read, cut out of the aligned buffer it was read into.
pub(super) fn cut(buf: blockio::AlignedBuf, lead: usize, len: usize) -> Bytes {
    buf.freeze().slice(lead..lead + len)
}
