//! Change sets: what one epoch of a replication group changed, on all its disks.
//!
//! Filled by the group core when writes complete, cut at a point in time, sealed when no write of its epoch or an
//! older one is unfinished, then sent in parts and kept until the target has acknowledged it durably.

mod content;
mod part;
mod set;
mod spooled;

pub use content::{Captured, Content};
pub use part::{PartPlan, PlannedRange};
pub use set::{ChangeSet, CutMark, EXTENT_COST, SET_COST};
pub use spooled::{Record, Spooled};
