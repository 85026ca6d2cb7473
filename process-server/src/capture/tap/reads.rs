//! Reads of the protected disks: for clients, in pieces of at most 1 MiB, and for the group core.

use blockio::{AlignedBuf, IO_BYTES_MAX, IoError, Op};
use proto::ids::DiskIndex;
use tracing::warn;

use super::complaints::Trouble;
use super::serve::cut;
use super::thread::{Tap, Token};
use crate::group::{ReadId, ReadOutcome};
use nbd::{Errno, Request};

/// Where a piece of a client's read lies: (first byte to be read, bytes to be read, bytes before the client's, its bytes).
fn piece(request: &Request, unit: u64, index: u32) -> Option<(u64, usize, usize, usize)> {
    let piece_max = IO_BYTES_MAX as u64;
    let end = request.offset + u64::from(request.length);
    // Pieces end at multiples of 1 MiB, so that rounding out never makes them longer.
    let from = if index == 0 { request.offset } else { (request.offset / piece_max + u64::from(index)) * piece_max };
    if from >= end {
        return None;
    }
    let to = ((from / piece_max + 1) * piece_max).min(end);
    let base = from / unit * unit;
    let whole = to.next_multiple_of(unit) - base;
    Some((base, whole as usize, (from - base) as usize, (to - from) as usize))
}

impl Tap {
    pub(super) fn start_client_read(&mut self, slot: usize, disk: usize, request: Request) {
        let unit = self.disks[disk].alignment;
        let mut index = 0;
        while let Some((base, whole, _, _)) = piece(&request, unit, index) {
            let buf = self.pool.take(whole);
            let pending = self.requests.at(slot);
            pending.pieces += 1;
            pending.bytes += whole;
            pending.data.push(bytes::Bytes::new());
            self.bytes_in_progress += whole;
            let file = self.disks[disk].file.clone();
            let token = Token::ClientRead { slot, piece: index };
            self.engine.submit(token.encode(), Op::Read { file, offset: base, buf });
            index += 1;
        }
    }

    pub(super) fn client_read_done(
        &mut self,
        slot: usize,
        index: u32,
        result: Result<(), IoError>,
        buf: Option<AlignedBuf>,
    ) {
        let pending = self.requests.at(slot);
        pending.pieces -= 1;
        let disk = self.connections.get(&pending.connection).map(|connection| connection.disk);
        let unit = disk.map_or(blockio::SECTOR, |disk| self.disks[disk].alignment);
        match (result, buf, piece(&pending.request, unit, index)) {
            (Ok(()), Some(buf), Some((_, whole, lead, len))) if whole == buf.len() => {
                pending.data[index as usize] = cut(buf, lead, len);
            }
            // The client is gone, and with it the disk that the piece was cut for: nobody will see the answer.
            (Ok(()), _, _) => {}
            (Err(error), _, _) => {
                let now = self.clock.now().mono;
                if let Some(left_out) = self.complaints.is_due(disk.unwrap_or(0), Trouble::Read, now) {
                    warn!(group = %self.name, %error, left_out, "guest reads fail, and the guest is told: check the disk");
                }
                pending.fail(Errno::Io, "the disk behind the export could not be read");
            }
        }
        self.finish_if_done(slot, None);
    }

    /// Reads for the group core; a range that is a hole as a whole is answered without a read.
    pub(super) fn start_core_read(&mut self, id: ReadId, disk: DiskIndex, offset: u64, len: u32, may_be_hole: bool) {
        let file = self.disks[disk.0 as usize].file.clone();
        let len = u64::from(len);
        // Where the file system can't tell, the range is read.
        if may_be_hole && file.is_hole(offset, len).unwrap_or(false) {
            self.group.read_done(id, ReadOutcome::Hole);
            return;
        }
        let buf = self.pool.take(len as usize);
        self.engine.submit(Token::CoreRead(id).encode(), Op::Read { file, offset, buf });
    }

    pub(super) fn core_read_done(&mut self, id: ReadId, result: Result<(), IoError>, buf: Option<AlignedBuf>) {
        let outcome = match (result, buf) {
            (Ok(()), Some(buf)) => ReadOutcome::Data(buf.freeze()),
            (Ok(()), None) => ReadOutcome::Failed,
            (Err(error), _) => {
                let disk = self.group.read_of(id).map_or(0, |disk| disk.0 as usize);
                if let Some(left_out) = self.complaints.is_due(disk, Trouble::CoreRead, self.clock.now().mono) {
                    warn!(
                        group = %self.name, disk = self.disks[disk].name(), %error, left_out,
                        "a protected disk can't be read for replication; the target keeps what it has there: check the disk"
                    );
                }
                ReadOutcome::Failed
            }
        };
        self.group.read_done(id, outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd::Command;

    fn request(offset: u64, length: u32) -> Request {
        Request { flags: 0, command: Command::Read, cookie: 0, offset, length }
    }

    #[test]
    fn an_unaligned_read_is_rounded_out_to_the_disks_unit() {
        assert_eq!(piece(&request(513, 10), 512, 0), Some((512, 512, 1, 10)));
        assert_eq!(piece(&request(513, 10), 512, 1), None);
        assert_eq!(piece(&request(4000, 200), 4096, 0), Some((0, 8192, 4000, 200)));
    }

    #[test]
    fn pieces_follow_each_other_without_gaps_and_never_exceed_a_mebibyte() {
        let request = request((1 << 20) - 100, (3 << 20) + 7);
        let mut at = request.offset;
        for index in 0.. {
            let Some((base, whole, lead, len)) = piece(&request, 512, index) else { break };
            assert_eq!(base + lead as u64, at);
            assert!(whole <= 1 << 20);
            at += len as u64;
        }
        assert_eq!(at, request.offset + u64::from(request.length));
    }
}
