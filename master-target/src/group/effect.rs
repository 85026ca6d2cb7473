//! What the cores of a group's two threads ask for: answers to the source, and work for the other thread.
//!
//! The cores (`journal_core`, `apply_core`) wait for nothing. Their threads carry out what they ask for, in order; so does
//! a simulation, in one thread.

use proto::replication::target_message::Body;

use super::session::Pass;

/// Something to be carried out.
pub enum Effect {
    /// Tell the source. A session that has ended meanwhile is told nothing.
    Answer(Pass, Body),
    /// Have the apply thread look for sets. It may be dropped where that thread has enough to do: it looks then anyway.
    Wake,
    /// Have the apply thread sync the disks for the set that closes a catching-up.
    SyncBulk(Pass),
    /// Have the journal thread commit the set that closes a catching-up: the disks are synced.
    Commit(Pass),
}
