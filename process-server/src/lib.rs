//! The source agent: captures what guests write to protected disks and streams it to a master-target.
//!
//! A guest's write travels [`capture`] -> [`changeset`] -> [`send`]; [`group`] holds the rules, [`dirty`] what must
//! survive a crash, [`spool`] takes what memory can't, [`quiesce`] is the hook of application-consistent points.
//! [`config`], [`control`] and [`cli`] are the agent around it.
#![forbid(unsafe_code)]

pub mod capture;
pub mod changeset;
pub mod cli;
pub mod config;
pub mod control;
pub mod dirty;
pub mod group;
pub mod quiesce;
// For the simulation of both agents, in another crate; in a release there is nothing to switch.
#[doc(hidden)]
pub mod rules;
pub mod send;
pub mod spool;
