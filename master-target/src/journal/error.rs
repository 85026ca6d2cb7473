//! What can go wrong with a journal, and what the caller can do about it.

use super::volume::VolumeError;
use crate::amount::amount;

/// Why a journal can't do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The volume failed. A journal that was writing must be opened again before it writes more.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// An earlier write or sync failed: nothing is written until the journal is opened again and checked (rule J13).
    #[error("the journal stopped after a failure ({reason}): it is opened again and checked before it goes on")]
    Stopped {
        /// The failure.
        reason: String,
    },
    /// No room, also after everything was given up that may be. Nothing was written; try again when there is room.
    #[error(
        "the retention volume is full: {} are needed, {} are free: make room on it, enlarge it, or set a shorter retention; \
         the group goes on by itself", amount(*needed), amount(*free)
    )]
    Full {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// Bytes that were durable have changed or are gone. The journal refuses to go on rather than to lose silently.
    #[error(
        "the journal is damaged: {file} at offset {offset}: {what}: bring the file back from a copy, or move the \
         group's folder away to start over with a full synchronisation"
    )]
    Damaged {
        /// The file.
        file: String,
        /// Bytes from its beginning.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The configured disks are not those of the journal.
    #[error(
        "{what}: put the configuration back, or move the group's folder away from the retention volume to start over"
    )]
    WrongDisks {
        /// The difference.
        what: String,
    },
    /// The peer sent what does not fit the conversation: close the session.
    #[error("the source broke the protocol: {what}")]
    Protocol {
        /// What it did.
        what: String,
    },
    /// The point that a failback is to put went before the failback was durable.
    #[error("point {set} went a moment ago, by age or for want of room: choose another of `master-target points`")]
    PointGone {
        /// Its set.
        set: u64,
    },
    /// The journal is in a state that does not allow the call.
    #[error("not possible now: {what}")]
    State {
        /// What stands against it.
        what: &'static str,
    },
}

/// Result of an operation of a journal.
pub type JournalResult<T> = Result<T, JournalError>;

/// Why a source may not speak for a group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PhaseError {
    /// Two sources claim to be the same one (rule L6).
    #[error(
        "a source with start {given} wants to write, but start {known} was here before: one of them is a copy or was \
         restored: stop the copy; if this source is the right one, `process-server claim --past {known}` lets it go on"
    )]
    Clone {
        /// Start count of the source that asks.
        given: u64,
        /// Highest start count seen.
        known: u64,
    },
    /// A conversation that is over.
    #[error("phase {given} is over, phase {known} is the newest")]
    Over {
        /// The phase asked for.
        given: u64,
        /// The newest phase.
        known: u64,
    },
    /// The journal itself failed.
    #[error("{0}")]
    Journal(String),
}

impl From<JournalError> for PhaseError {
    fn from(error: JournalError) -> Self {
        Self::Journal(error.to_string())
    }
}
