//! How the rest of the agent reaches a group's thread, and how people reach the agent.
//!
//! A group's thread owns its state alone. What others want of it goes into its mailbox
//! ([`mailbox()`]), what they may see of it is a [`Snapshot`] that the thread refreshes. The control
//! server answers `status`, `point` and `verify` from these over gRPC on a unix socket, and shows the jobs, which `sync_jobs` and
//! `verify_job` begin; nothing here touches data.

mod label;
mod mailbox;
mod server;
mod snapshot;
mod sync_jobs;
mod verify_job;
mod wake;

pub use label::{LabelError, check_label};
pub use mailbox::{
    COMMANDS_MAX, Command, Frozen, GroupHandle, Inbox, Mailbox, PointOrder, PointReplier, VerifyNews, VerifyReplier,
    mailbox,
};
pub use server::{ControlServer, service};
pub use snapshot::{DiskSnapshot, GroupState, Snapshot, Use};
pub use sync_jobs::watch as watch_syncs;
pub use wake::WakeCell;
