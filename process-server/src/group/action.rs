//! What goes in and out of the group core: identifiers, times, changes and the actions its driver carries out.

use std::time::Duration;

use bytes::Bytes;
use proto::ids::DiskIndex;
use proto::time::Timestamp;

use super::findings::VerifiedDisk;
use super::rounds::RoundReport;
use crate::dirty::Commit;
use crate::send::ToLink;

/// The two clocks a driver reads once per turn.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic time since the driver started: for intervals.
    pub mono: Duration,
    /// Wall-clock time: for the times of points.
    pub wall: Timestamp,
}

/// A guest write (or trim, or write of zeroes) from admission to completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId(pub u32);

/// A read of a protected disk that the core asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadId(pub u64);

/// What a guest request changes.
#[derive(Debug, Clone)]
pub enum Change {
    /// Whole sectors of data, at most 1 MiB.
    Data(Bytes),
    /// Whole sectors of which the driver knows a part only: it reads the rest once the write may be submitted, and
    /// gives the content by `fill` before `write_done`.
    Later,
    /// The range reads as zero afterwards.
    Zero,
}

/// How a read that the core asked for ended.
#[derive(Debug, Clone)]
pub enum ReadOutcome {
    /// The bytes of the whole range.
    Data(Bytes),
    /// The whole range is a hole.
    Hole,
    /// The range could not be read.
    Failed,
}

/// Work for the driver.
#[derive(Debug)]
pub enum Action {
    /// Carry out an admitted write now; answer with `write_done`.
    Submit(WriteId),
    /// Read a range of a protected disk; answer with `read_done`.
    Read {
        /// Names the read in the answer.
        id: ReadId,
        /// Disk of the group.
        disk: DiskIndex,
        /// Byte offset, a multiple of 512.
        offset: u64,
        /// Bytes, a multiple of 512, at most 1 MiB.
        len: u32,
        /// Whether `ReadOutcome::Hole` is a welcome answer.
        may_be_hole: bool,
    },
    /// Write pages of marks in place and sync them, then call `marks_committed`.
    CommitMarks(Commit),
    /// Flush disks, then call `disks_flushed`.
    FlushDisks {
        /// Names the flush in the answer.
        id: u64,
        /// Disks of the group.
        disks: Vec<DiskIndex>,
    },
    /// Make a new, empty file for the spool, then call `spool_opened`.
    OpenSpool,
    /// Write to the spool, the pieces one after the other, then call `spool_written`.
    WriteSpool {
        /// Names the write in the answer.
        id: u64,
        /// Byte offset, whole units.
        offset: u64,
        /// Bytes of the range, whole units; what is behind the pieces does not matter.
        len: u64,
        /// The content.
        pieces: Vec<Bytes>,
    },
    /// Read from the spool, then call `spool_read`.
    ReadSpool {
        /// Names the read in the answer.
        id: u64,
        /// Byte offset, whole units.
        offset: u64,
        /// Bytes, whole units, at most 1 MiB.
        len: u32,
    },
    /// Give the room of the whole spool back to the cache volume, then call `spool_emptied`.
    EmptySpool,
    /// A round of a catching-up has ended; for the log.
    RoundEnded(RoundReport),
    /// Hand a message or part to the link.
    Link(ToLink),
    /// Make the fence durable on the state volume, then call `fence_persisted`.
    PersistFence,
    /// Remove the durable fence, then call `fence_lifted`.
    LiftFence,
    /// The verification has ended: what it found of each disk, or why it could not go on.
    VerifyDone(Result<Vec<VerifiedDisk>, String>),
    /// A point that an operator asked for is durable, or will never be.
    PointDone {
        /// As given to `request_point`.
        token: u64,
        /// What became of it.
        outcome: PointOutcome,
    },
}

/// What kind of point is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointAsked {
    /// As a power cut would leave the disks. While the group catches up it waits for the next ordered moment.
    Crash,
    /// Of machines that are quiesced until `frozen_until`, on the clock of [`Now::mono`]: cut before that and at once, or
    /// not at all.
    App {
        /// When the machines go on by themselves.
        frozen_until: Duration,
    },
}

/// What became of a point that an operator asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PointOutcome {
    /// Durable on the target, under this id.
    Durable(String),
    /// Lost, with the reason in words.
    Lost(String),
}
