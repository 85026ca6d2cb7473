//! Why sets could not be applied.

use blockio::IoError;

use crate::journal::JournalError;

/// Why content did not reach the disks. After any of these but a full journal the applier has to be made anew.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] IoError),
    /// The point that a rollback puts onto the disks.
    #[error("{0}")]
    Point(String),
    /// An earlier write or sync of a disk failed.
    #[error(
        "nothing is written to the disks after a failure, before the journal and the disks are opened again and checked"
    )]
    Stopped,
}
