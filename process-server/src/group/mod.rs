//! The replication group's core: admission, epochs, cuts, copy before write, catching up, sending, acknowledgements.
//!
//! A state machine without I/O, clock or randomness. The group thread (`capture::tap`) feeds it arrivals,
//! completions, link messages and `Now`, and carries out the `Action`s it gives back. One owner, no locks. The rules it
//! keeps are S1-S20 and L1-L3 of the protocol; docs/rules.md has each with what goes wrong without it.
//!
//! One write's way: `admit` (block queue, epoch, dirty bits) - `Action::Submit` once earlier overlapping writes are
//! done, old content is saved and its regions are marked - `write_done` (captured into the set of its epoch) - cut - seal - parts to the link -
//! durable acknowledgement - gone.

mod action;
mod admission;
mod assembly;
mod bases;
mod catchup;
mod compare;
mod core;
mod cut;
mod epochs;
mod fence;
mod findings;
mod flushes;
mod inflight;
mod limits;
mod marks;
mod moving;
mod overload;
mod peer;
mod queue;
mod recent;
mod rounds;
mod sending;
mod snapshot;
mod spool;
mod unreadable;
mod verify;
mod void;

pub use self::core::{Group, GroupOptions};
pub use action::{Action, Change, Now, PointAsked, PointOutcome, ReadId, ReadOutcome, WriteId};
pub use admission::{AdmitError, Admitted};
pub use catchup::CatchUpReason;
pub use findings::{Difference, VerifiedDisk};
pub use flushes::FlushId;
pub use marks::Tracking;
pub use rounds::{FailedCut, RoundReport};
pub use snapshot::GroupSnapshot;

#[cfg(test)]
mod tests;
