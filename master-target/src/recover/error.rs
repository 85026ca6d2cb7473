//! Why a failback, or what follows it, did not begin or stopped: one sentence each, with the way out.

use super::put_point::PutPointError;
use super::taking_back::CompareError;
use crate::group::{GroupError, WorksError};
use crate::journal::JournalError;

/// Why a failback did not begin, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum FailbackError {
    /// The group or what it works with.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Opening journal or disks.
    #[error(transparent)]
    Works(#[from] WorksError),
    /// The journal.
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    /// The point is not there.
    #[error(transparent)]
    Resolve(#[from] crate::retention::ResolveError),
    /// Writing the disks.
    #[error("apply: {0}")]
    Apply(#[from] crate::apply::ApplyError),
    /// Putting the point.
    #[error(transparent)]
    PutPoint(#[from] PutPointError),
    /// No random numbers for a new lineage.
    #[error("the system gave no random numbers: {0}; repeat the command")]
    Random(getrandom::Error),
    /// No engine to read the disks with.
    #[error("the I/O engine can't be made: {0}; free memory and repeat the command")]
    Engine(std::io::Error),
    /// There is nothing to go back to.
    #[error("group \"{0}\" has no recovery point yet: its first synchronisation is not finished")]
    NoPoint(String),
    /// The source has to be fenced, and is not there.
    #[error(
        "{source_name}, the source of group \"{group}\", is not connected, so it can't be fenced and drained: connect it, or \
         give up what it has not sent with --without-source"
    )]
    NoSource {
        /// The group.
        group: String,
        /// Name of its process-server.
        source_name: String,
    },
    /// Not all of the point is there.
    #[error("point {point} is damaged: the target had rotted before it was saved, {what}: choose another point")]
    Damaged {
        /// The point.
        point: u64,
        /// Where.
        what: String,
    },
    /// Nothing can be put on one of its disks.
    #[error(transparent)]
    Closed(#[from] super::ClosedDisk),
    /// The choice is final.
    #[error(
        "the failback of group \"{group}\" to point {point} is committed, its choice is final: `master-target reprotect` \
         protects the machine again"
    )]
    Committed {
        /// The group.
        group: String,
        /// Its point.
        point: String,
    },
    /// Nothing that could be committed or left.
    #[error("group \"{0}\" is not failed back: see `master-target status`")]
    NotFailedBack(String),
    /// A failback is under way.
    #[error(
        "group \"{0}\" is failing back: wait until that is done, repeat `master-target failback` if it has stopped, or end it \
         with `master-target failback --cancel`"
    )]
    UnderWay(String),
    /// There is none that could be cancelled.
    #[error("group \"{0}\" has no failback that could be cancelled")]
    NoneToCancel(String),
    /// The disks were a machine's in between.
    #[error(
        "the disks of group \"{0}\" were handed over before, so this can't be cancelled: choose a point, or protect the group \
         again with `master-target reprotect`"
    )]
    NotCancelled(String),
    /// Another choice than what was asked for.
    #[error("group \"{group}\" is failed back to point {point} now: look at what would be discarded, and confirm that")]
    OtherPoint {
        /// The group.
        group: String,
        /// The point that its disks hold.
        point: String,
    },
    /// Something else holds its points.
    #[error("restores or mounts of group \"{0}\" are under way: wait for them, or end them (`master-target jobs`)")]
    Busy(String),
    /// A machine wrote what the point needs.
    #[error(
        "{what}; what stands there is not the group's, and point {point} of group \"{group}\" needs it: choose a point that \
         changed these places, bring the disks back as they were (the machine's snapshot from before its start), or copy all \
         from the source with `master-target reprotect --discard-points`"
    )]
    Spoilt {
        /// The group.
        group: String,
        /// What was written.
        what: String,
        /// The point.
        point: String,
    },
    /// A machine wrote the disks, and the points are to stay.
    #[error(
        "{what}; older points of group \"{group}\" can't be kept with that: bring the disks back as they were (the machine's \
         snapshot from before its start), or give the points up with --discard-points"
    )]
    PointsSpoilt {
        /// The group.
        group: String,
        /// What was written.
        what: String,
    },
    /// Reading a point.
    #[error("reading the point: {0}")]
    Read(#[from] super::ReadError),
    /// Comparing the disks, or their checksums.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// The durable record is not what this agent writes.
    #[error("the failback record of group \"{group}\" can't be read ({what}): restore the retention volume")]
    Record {
        /// The group.
        group: String,
        /// What is wrong.
        what: String,
    },
}
