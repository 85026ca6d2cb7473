//! Application-consistent points: the group's hook quiesces the protected machines while a point is cut.
//!
//! In the order of events: `schedule` says when, [`Quiescer`] takes the point, `record` remembers durably that machines may be
//! frozen, `guard` is the process of its own that freezes and thaws, whatever becomes of the agent, and `command`
//! runs a command of the hook. docs/app-consistent.md says why machines never stay frozen.

mod command;
mod guard;
mod quiescer;
mod record;
mod schedule;

pub use guard::{GuardArgs, run as run_guard};
pub use quiescer::{Hook, QuiesceError, Quiescer};
pub use schedule::keep_taking;
