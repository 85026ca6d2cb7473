//! An operation in the kernel: the next piece of it to submit, and what its completion means.
//!
//! Reads and writes may take several pieces; zeroing falls back to writing zeroes. The operation
//! keeps its buffer and file at fixed addresses until the kernel is done with them.

use std::os::fd::AsRawFd;

use io_uring::{opcode, squeue, types};
use rustix::io::Errno;

use super::ring::Outcome;
use crate::IO_BYTES_MAX;
use crate::buf::AlignedBuf;
use crate::engine::op::{Completion, Op};
use crate::error::IoError;
use crate::file::{Progress, Step, bounce_pool, zeroes};

/// Most bytes of one piece: a submission has 32 bits for the length, the kernel stops below 2 GiB.
const PIECE_BYTES_MAX: usize = 1 << 30;

pub(super) struct Flight {
    token: u64,
    op: Op,
    progress: Progress,
    /// Copy of data whose memory direct I/O can't take.
    bounce: Option<AlignedBuf>,
    /// A `Zero` that writes, because the file can't do it otherwise.
    is_writing_zeroes: bool,
}

/// What to do after a completion.
pub(super) enum Next {
    /// Submit the next piece.
    Again,
    /// All of it has ended.
    Ended(Result<(), IoError>),
}

impl Flight {
    pub(super) fn new(token: u64, op: Op) -> Self {
        let mut bounce = None;
        let progress = match &op {
            Op::Read { file, buf, .. } => Progress::of_read(file, buf.len()),
            Op::Write { file, data, .. } => {
                if !(data.as_ptr() as usize).is_multiple_of(file.memory_align()) {
                    let mut copy = bounce_pool().take(data.len());
                    copy.copy_from_slice(data);
                    bounce = Some(copy);
                }
                Progress::of_write(file, data.len())
            }
            Op::Sync { file } | Op::Punch { file, .. } | Op::Zero { file, .. } => {
                // All or nothing: one step.
                Progress::of_write(file, 1)
            }
        };
        Self { token, op, progress, bounce, is_writing_zeroes: false }
    }

    /// The next piece. Its pointers are into memory owned by `self`, on the heap or static, so the
    /// flight may move but must live until the completion.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        let done = self.progress.done;
        let fd = types::Fd(self.op.file().as_raw_fd());
        match &mut self.op {
            Op::Read { offset, buf, .. } => {
                let piece = &mut buf[done..];
                let len = piece.len().min(PIECE_BYTES_MAX) as u32;
                opcode::Read::new(fd, piece.as_mut_ptr(), len).offset(*offset + done as u64).build()
            }
            Op::Write { offset, data, .. } => {
                let piece = match &self.bounce {
                    Some(bounce) => &bounce[done..],
                    None => &data[done..],
                };
                let len = piece.len().min(PIECE_BYTES_MAX) as u32;
                opcode::Write::new(fd, piece.as_ptr(), len).offset(*offset + done as u64).build()
            }
            Op::Sync { .. } => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Op::Punch { offset, len, .. } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd, *len).offset(*offset).mode(mode).build()
            }
            Op::Zero { offset, len, .. } if self.is_writing_zeroes => {
                let left = *len - done as u64;
                let piece = &zeroes()[..left.min(IO_BYTES_MAX as u64) as usize];
                opcode::Write::new(fd, piece.as_ptr(), piece.len() as u32).offset(*offset + done as u64).build()
            }
            Op::Zero { offset, len, .. } => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd, *len).offset(*offset).mode(mode).build()
            }
        }
    }

    /// Takes note of a completion.
    pub(super) fn handle(&mut self, outcome: Outcome) -> Next {
        let piece = match usize::try_from(outcome) {
            Ok(moved) => Ok(moved),
            Err(_) => Err(Errno::from_raw_os_error(outcome.saturating_neg())),
        };
        if let Op::Sync { file } = &self.op
            && !matches!(piece, Err(Errno::INTR | Errno::AGAIN))
        {
            return Next::Ended(file.conclude_sync(piece.map(drop)));
        }
        if self.falls_back_to_writing(piece) {
            return Next::Again;
        }
        let step = match &self.op {
            Op::Read { .. } | Op::Write { .. } => self.progress.advance(piece),
            Op::Zero { .. } if self.is_writing_zeroes => self.progress.advance(piece),
            Op::Sync { .. } | Op::Punch { .. } | Op::Zero { .. } => self.progress.advance(piece.map(|_| 1)),
        };
        match step {
            Step::Again => Next::Again,
            Step::Finished => Next::Ended(Ok(())),
            Step::Failed(source) => Next::Ended(Err(self.op.error(self.progress.done, source))),
        }
    }

    fn falls_back_to_writing(&mut self, piece: Result<usize, Errno>) -> bool {
        let Op::Zero { file, len, .. } = &self.op else {
            return false;
        };
        if self.is_writing_zeroes || piece != Err(Errno::OPNOTSUPP) {
            return false;
        }
        self.progress = Progress::of_write(file, *len as usize);
        self.is_writing_zeroes = true;
        true
    }

    pub(super) fn complete(self, result: Result<(), IoError>) -> Completion {
        Completion { token: self.token, op: self.op, result }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::file::{Access, BlockFile};

    const LEN: usize = 3 << 20;

    fn file() -> (tempfile::NamedTempFile, Arc<BlockFile>) {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        temporary.as_file().set_len(LEN as u64).unwrap();
        let file = BlockFile::open(temporary.path(), Access::ReadWrite).unwrap();
        (temporary, Arc::new(file))
    }

    fn ended(next: Next) -> Result<(), IoError> {
        match next {
            Next::Ended(result) => result,
            Next::Again => panic!("not ended"),
        }
    }

    #[test]
    fn a_short_read_goes_on_and_an_early_end_is_an_error_with_its_place() {
        let (_temporary, file) = file();
        let read = || {
            let buf = AlignedBuf::zeroed(LEN);
            let file = Arc::clone(&file);
            Flight::new(7, Op::Read { file, offset: 0, buf })
        };
        let mut flight = read();
        assert!(matches!(flight.handle(1 << 20), Next::Again));
        assert!(matches!(flight.handle(-libc::EINTR), Next::Again));
        ended(flight.handle(2 << 20)).unwrap();
        let mut flight = read();
        assert!(matches!(flight.handle(1 << 20), Next::Again));
        let error = ended(flight.handle(0)).unwrap_err();
        assert_eq!(error.offset, Some(1 << 20));
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        let error = ended(read().handle(-libc::EIO)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn zeroing_falls_back_to_writing_in_pieces_but_punching_fails() {
        let (_temporary, file) = file();
        let len = LEN as u64;
        let zero = Op::Zero { file: Arc::clone(&file), offset: 0, len };
        let mut flight = Flight::new(7, zero);
        assert!(matches!(flight.handle(-libc::EOPNOTSUPP), Next::Again));
        for _ in 0..2 {
            assert!(matches!(flight.handle(1 << 20), Next::Again));
        }
        ended(flight.handle(1 << 20)).unwrap();
        let mut flight = Flight::new(7, Op::Punch { file, offset: 0, len });
        let error = ended(flight.handle(-libc::EOPNOTSUPP)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn a_failed_sync_fails_the_syncs_after_it() {
        let (_temporary, file) = file();
        let sync = || Flight::new(7, Op::Sync { file: Arc::clone(&file) });
        assert!(matches!(sync().handle(-libc::EINTR), Next::Again));
        ended(sync().handle(0)).unwrap();
        ended(sync().handle(-libc::EIO)).unwrap_err();
        ended(sync().handle(0)).unwrap_err();
    }
}
