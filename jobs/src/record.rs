//! A job as it is kept and shown.

use serde::{Deserialize, Serialize};

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The first synchronisation of a group.
    InitialSync,
    /// A group catches up.
    Resync,
    /// Source and target are compared.
    Verify,
    /// A disk at a point is copied into a file.
    Restore,
    /// A point is exported over NBD.
    Mount,
    /// Journals are read and checked.
    Scrub,
    /// A point is put on the disks.
    Failback,
    /// The choice of a failback becomes final.
    Commit,
    /// A group that was failed back is protected again.
    Reprotect,
}

impl Kind {
    /// The word of the contract.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InitialSync => "initial-sync",
            Self::Resync => "resync",
            Self::Verify => "verify",
            Self::Restore => "restore",
            Self::Mount => "mount",
            Self::Scrub => "scrub",
            Self::Failback => "failback",
            Self::Commit => "commit",
            Self::Reprotect => "reprotect",
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Under way.
    Running,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed,
    /// Ended because somebody asked for it.
    Cancelled,
    /// The agent ended before it.
    Interrupted,
}

impl State {
    /// The word of the contract.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }
}

/// How a job ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Well; the text says in one line what came of it.
    Done(String),
    /// With an error, in one line.
    Failed(String),
    /// Since somebody asked for it.
    Cancelled,
    /// The agent stops; the work may go on after its next start.
    Interrupted,
}

/// Whether somebody may ask a job to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// It looks at its job, and ends.
    Taken,
    /// It can't be ended; the text says what to do instead.
    Refused(&'static str),
}

/// What is kept of a job. Fields that a later release adds are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: u64,
    pub group: Option<String>,
    pub kind: Kind,
    pub state: State,
    /// Microseconds since the Unix epoch.
    pub began_us: u64,
    pub ended_us: Option<u64>,
    pub error: Option<String>,
    pub result: Option<String>,
    #[serde(default)]
    pub step: String,
    #[serde(default)]
    pub done_bytes: u64,
    #[serde(default)]
    pub total_bytes: u64,
}
