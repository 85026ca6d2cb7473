//! A replication group as the agent runs it: its session with the source, its journal and its disks.
//!
//! Reading order: `session` (one stretch of conversation), `works` (journal, disks and their two threads: what each
//! decides is `journal_core` and `apply_core`), `runtime` (how
//! they open and close), `sessions` (how sessions do), `roster` and `changing` (which disks it has, and how they change), `upkeep` (what happens after a fault), `board` and `state` (what others see of it). What may be opened is decided in `receive`,
//! failback in `recover`.

mod apply_core;
mod apply_thread;
pub mod board;
mod changing;
mod effect;
mod hand_over;
mod journal_core;
mod journal_thread;
mod remembered;
mod report;
mod retention;
mod roster;
mod runtime;
pub mod session;
mod sessions;
pub mod state;
mod target_disks;
mod upkeep;
mod works;

pub use apply_core::{ApplyCore, Idle};
pub use apply_thread::ToApply;
pub use effect::Effect;
pub use hand_over::{HandedDisk, LockedDisks, by_index};
pub use journal_core::{JournalCore, Patience, Taken};
pub use journal_thread::ToJournal;
pub use remembered::Remembered;
pub use retention::PinningError;
pub use roster::{Member, Places, Roster};
pub use runtime::{Group, GroupError, Slot, blocking};
pub use sessions::{Port, answer_of, enter};
pub use target_disks::TargetDisks;
pub use works::{FRAME_KIB_MIN, GroupApplier, GroupJournal, Site, Works, WorksError};
