//! What an engine can be asked to do, and what it reports.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::buf::AlignedBuf;
use crate::error::IoError;
use crate::file::BlockFile;

/// An operation on a file. It owns its memory and its file until its completion is reported.
///
/// Offsets and lengths are multiples of [`BlockFile::alignment`] and lie within the file; anything
/// else is reported as failed without having touched the file.
#[derive(Debug)]
pub enum Op {
    /// Fills the buffer from `offset` on.
    Read {
        /// Where from.
        file: Arc<BlockFile>,
        /// First byte.
        offset: u64,
        /// Its length is how much is read. Comes back with the event.
        buf: AlignedBuf,
    },
    /// Writes all of the data from `offset` on.
    Write {
        /// Where to.
        file: Arc<BlockFile>,
        /// First byte.
        offset: u64,
        /// What. Memory that direct I/O can't take is copied first; that of a [`crate::BufPool`] never is.
        data: Bytes,
    },
    /// Makes durable what was reported as written before this was submitted.
    Sync {
        /// Which file.
        file: Arc<BlockFile>,
    },
    /// Frees a range so that it reads as zero, or fails.
    Punch {
        /// Which file.
        file: Arc<BlockFile>,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Makes a range read as zero, by writing zeroes if nothing better is to be had.
    Zero {
        /// Which file.
        file: Arc<BlockFile>,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Op {
    /// The file it works on.
    pub fn file(&self) -> &Arc<BlockFile> {
        match self {
            Self::Read { file, .. }
            | Self::Write { file, .. }
            | Self::Sync { file }
            | Self::Punch { file, .. }
            | Self::Zero { file, .. } => file,
        }
    }

    /// First byte and length; nothing for a sync.
    fn range(&self) -> (u64, u64) {
        match self {
            Self::Read { offset, buf, .. } => (*offset, buf.len() as u64),
            Self::Write { offset, data, .. } => (*offset, data.len() as u64),
            Self::Sync { .. } => (0, 0),
            Self::Punch { offset, len, .. } | Self::Zero { offset, len, .. } => (*offset, *len),
        }
    }

    /// What it is called in an error.
    fn verb(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Sync { .. } => "sync",
            Self::Punch { .. } => "punch a hole in",
            Self::Zero { .. } => "zero",
        }
    }

    /// Whether it moves nothing and so is done as soon as it is asked.
    pub(super) fn is_empty(&self) -> bool {
        !matches!(self, Self::Sync { .. }) && self.range().1 == 0
    }

    /// Refuses what the kernel would refuse, or worse, do.
    pub(super) fn check(&self) -> Result<(), IoError> {
        let (offset, len) = self.range();
        let file = self.file();
        file.check_range(self.verb(), offset, len)?;
        if file.is_aligned(offset, len) {
            return Ok(());
        }
        let why = format!("{len} bytes there are not aligned to {}", file.alignment());
        Err(self.error(0, io::Error::new(io::ErrorKind::InvalidInput, why)))
    }

    /// An error `done` bytes into the operation.
    pub(super) fn error(&self, done: usize, source: impl Into<io::Error>) -> IoError {
        let (offset, _) = self.range();
        self.file().error_at(self.verb(), offset + done as u64, source)
    }

    /// The buffer of a read.
    pub(super) fn into_buf(self) -> Option<AlignedBuf> {
        match self {
            Self::Read { buf, .. } => Some(buf),
            _ => None,
        }
    }
}

/// What [`super::Engine::wait`] reports.
#[derive(Debug)]
pub enum Event {
    /// An operation has ended; the kernel no longer touches its memory.
    Done {
        /// As given to `submit`.
        token: u64,
        /// Whether all of it was done.
        result: Result<(), IoError>,
        /// The buffer of a read, filled only if the result is good.
        buf: Option<AlignedBuf>,
    },
    /// A watched descriptor is ready. Reported by every `wait` for as long as it stays so.
    Ready {
        /// As given to `watch`.
        token: u64,
        /// There is something to read, or the end of the stream.
        readable: bool,
        /// There is room to write.
        writable: bool,
        /// The other side is gone, or the descriptor is bad. What is readable may still be read.
        hangup: bool,
    },
    /// Somebody called [`super::Waker::wake`].
    Woken,
}

/// What to watch a descriptor for. With neither, nothing is reported, a hangup included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Report when there is something to read.
    pub readable: bool,
    /// Report when there is room to write.
    pub writable: bool,
}

impl Interest {
    /// Nothing for now, for a peer that is to be slowed down.
    pub const NONE: Self = Self { readable: false, writable: false };
    /// Only reading.
    pub const READ: Self = Self { readable: true, writable: false };
    /// Only writing.
    pub const WRITE: Self = Self { readable: false, writable: true };
    /// Reading and writing.
    pub const BOTH: Self = Self { readable: true, writable: true };
}

/// An operation that has ended, on its way from a backend to the driver.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) token: u64,
    pub(super) op: Op,
    pub(super) result: Result<(), IoError>,
}
