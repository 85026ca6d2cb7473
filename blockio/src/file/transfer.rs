//! Blocking reads and writes of any offset and length, and how a transfer in pieces goes on.
//!
//! What direct I/O can't take as it is goes through a bounce buffer; the two ends of an unaligned
//! write are read, changed and written back. Those ends exclude each other within one [`BlockFile`],
//! but not an aligned write of somebody else to the same block: who writes blocks concurrently keeps
//! them apart (rule S2).

use std::io;
use std::sync::LazyLock;

use rustix::io::Errno;

use super::BlockFile;
use crate::IO_BYTES_MAX;
use crate::buf::BufPool;
use crate::error::IoError;
use crate::poison;

/// How often a transfer may be interrupted or move nothing, one time after the other, before it fails.
const STALLS_MAX: u32 = 64;

/// Idle memory kept for bouncing, process-wide.
const BOUNCE_BYTES_CACHED_MAX: usize = 4 << 20;

/// The pool that bounce buffers come from.
pub(crate) fn bounce_pool() -> &'static BufPool {
    static POOL: LazyLock<BufPool> = LazyLock::new(|| BufPool::new(BOUNCE_BYTES_CACHED_MAX));
    &POOL
}

/// How far a transfer has come that the kernel may carry out in several pieces.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Bytes done.
    pub(crate) done: usize,
    total: usize,
    /// Pieces end at multiples of this, so that the next one can be direct.
    granule: usize,
    stalls: u32,
    at_end: io::ErrorKind,
}

/// What to do after one piece.
pub(crate) enum Step {
    /// Transfer the rest, from `done` on.
    Again,
    /// All is done.
    Finished,
    /// It failed.
    Failed(io::Error),
}

impl Progress {
    /// A read of `total` bytes from `file`.
    pub(crate) fn of_read(file: &BlockFile, total: usize) -> Self {
        Self::new(file, total, io::ErrorKind::UnexpectedEof)
    }

    /// A write of `total` bytes to `file`.
    pub(crate) fn of_write(file: &BlockFile, total: usize) -> Self {
        Self::new(file, total, io::ErrorKind::WriteZero)
    }

    fn new(file: &BlockFile, total: usize, at_end: io::ErrorKind) -> Self {
        let granule = if file.is_direct() { file.alignment() as usize } else { 1 };
        Self { done: 0, total, granule, stalls: 0, at_end }
    }

    /// Takes note of one piece: how many bytes it moved, or why none.
    pub(crate) fn advance(&mut self, piece: Result<usize, Errno>) -> Step {
        let before = self.done;
        match piece {
            Ok(0) if self.done < self.total => return Step::Failed(self.at_end.into()),
            Ok(moved) => {
                let reached = self.done + moved;
                assert!(reached <= self.total, "the kernel moved more than was asked for");
                self.done = if reached == self.total { reached } else { reached / self.granule * self.granule };
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Step::Failed(errno.into()),
        }
        if self.done == self.total {
            return Step::Finished;
        }
        if self.done > before {
            self.stalls = 0;
        } else {
            self.stalls += 1;
            if self.stalls >= STALLS_MAX {
                return Step::Failed(io::ErrorKind::TimedOut.into());
            }
        }
        Step::Again
    }
}

impl BlockFile {
    /// Fills `buf` from byte `offset` on.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        self.check_range("read", offset, buf.len() as u64)?;
        if self.takes_as_it_is(buf, offset) {
            return self.read_aligned(buf, offset);
        }
        let mut done = 0;
        while done < buf.len() {
            let window = self.window(offset + done as u64, buf.len() - done);
            let mut bounce = bounce_pool().take(window.len);
            self.read_aligned(&mut bounce, window.start)?;
            buf[done..done + window.wanted].copy_from_slice(&bounce[window.skip..window.skip + window.wanted]);
            done += window.wanted;
        }
        Ok(())
    }

    /// Writes all of `buf` from byte `offset` on. Durable only after [`BlockFile::sync`].
    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.check_range("write", offset, buf.len() as u64)?;
        if self.takes_as_it_is(buf, offset) {
            return self.write_aligned(buf, offset);
        }
        let mut done = 0;
        while done < buf.len() {
            let window = self.window(offset + done as u64, buf.len() - done);
            let part = &buf[done..done + window.wanted];
            let mut bounce = bounce_pool().take(window.len);
            let _edges = (window.wanted < window.len).then(|| poison::lock(&self.edges));
            if window.wanted < window.len {
                self.read_aligned(&mut bounce, window.start)?;
            }
            bounce[window.skip..window.skip + window.wanted].copy_from_slice(part);
            self.write_aligned(&bounce, window.start)?;
            done += window.wanted;
        }
        Ok(())
    }

    fn takes_as_it_is(&self, buf: &[u8], offset: u64) -> bool {
        !self.is_direct()
            || (self.is_aligned(offset, buf.len() as u64)
                && (buf.as_ptr() as usize).is_multiple_of(self.memory_align()))
    }

    /// The aligned range around the first bytes of `[offset, offset + len)`. It never reaches beyond
    /// the file, whose size is a multiple of the alignment.
    fn window(&self, offset: u64, len: usize) -> Window {
        let align = u64::from(self.alignment());
        let start = offset / align * align;
        let skip = (offset - start) as usize;
        let wanted = len.min(IO_BYTES_MAX - skip);
        Window { start, len: (skip + wanted).next_multiple_of(align as usize), skip, wanted }
    }

    fn read_aligned(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        let mut progress = Progress::of_read(self, buf.len());
        self.in_pieces("read", offset, &mut progress, |done| {
            rustix::io::pread(self, &mut buf[done..], offset + done as u64)
        })
    }

    pub(super) fn write_aligned(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        let mut progress = Progress::of_write(self, buf.len());
        self.in_pieces("write", offset, &mut progress, |done| {
            rustix::io::pwrite(self, &buf[done..], offset + done as u64)
        })
    }

    fn in_pieces(
        &self,
        op: &'static str,
        offset: u64,
        progress: &mut Progress,
        mut piece: impl FnMut(usize) -> Result<usize, Errno>,
    ) -> Result<(), IoError> {
        if progress.total == 0 {
            return Ok(());
        }
        loop {
            let moved = piece(progress.done);
            match progress.advance(moved) {
                Step::Again => {}
                Step::Finished => return Ok(()),
                Step::Failed(source) => {
                    return Err(self.error_at(op, offset + progress.done as u64, source));
                }
            }
        }
    }
}

/// `len` aligned bytes from `start` on, of which `wanted` bytes after the first `skip` are meant.
struct Window {
    start: u64,
    len: usize,
    skip: usize,
    wanted: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(total: usize, granule: usize) -> Progress {
        Progress { done: 0, total, granule, stalls: 0, at_end: io::ErrorKind::UnexpectedEof }
    }

    #[test]
    fn a_short_direct_transfer_goes_on_at_an_aligned_place() {
        let mut transfer = progress(4096, 512);
        assert!(matches!(transfer.advance(Ok(1300)), Step::Again));
        assert_eq!(transfer.done, 1024);
        assert!(matches!(transfer.advance(Ok(3072)), Step::Finished));
        assert_eq!(transfer.done, 4096);
    }

    #[test]
    fn nothing_moved_is_the_end_of_the_file() {
        let mut transfer = progress(10, 1);
        assert!(matches!(transfer.advance(Ok(4)), Step::Again));
        let Step::Failed(error) = transfer.advance(Ok(0)) else {
            panic!("went on at the end");
        };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn interruptions_are_retried_but_not_for_ever() {
        let mut transfer = progress(10, 1);
        for _ in 1..STALLS_MAX {
            assert!(matches!(transfer.advance(Err(Errno::INTR)), Step::Again));
        }
        assert!(matches!(transfer.advance(Ok(1)), Step::Again));
        for _ in 1..STALLS_MAX {
            assert!(matches!(transfer.advance(Err(Errno::AGAIN)), Step::Again));
        }
        assert!(matches!(transfer.advance(Err(Errno::AGAIN)), Step::Failed(_)));
    }

    #[test]
    fn an_error_keeps_its_errno() {
        let Step::Failed(error) = progress(10, 1).advance(Err(Errno::IO)) else {
            panic!("went on after EIO");
        };
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
}
