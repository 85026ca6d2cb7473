//! Going back: reading points out of the journal and the disks, restoring them into files, failing a group back.
//!
//! `lookup` is the content rule of the journal, `reader` reads by it, `contents` what stands in the journal. `restore` copies one disk of a point. `desk` is where commands begin or
//! join a failback; `steps` is its order without I/O, `failback` drives it, `orders` change it; `put_point` and `digest` are
//! two of its steps, `record` and `report` what it keeps. `released` and `taking_back` tell what somebody else wrote to
//! disks that were handed over (`ranges`). `estimate` says beforehand what it takes, `commit` and `reprotect` end it.

mod commit;
mod contents;
pub mod desk;
mod digest;
mod error;
mod estimate;
mod failback;
mod lookup;
mod orders;
mod point_disks;
mod put_point;
mod ranges;
mod reader;
mod record;
mod released;
mod report;
mod reprotect;
pub mod restore;
pub mod steps;
mod taking_back;

pub use commit::Commit;
pub(crate) use digest::UNIT_BYTES;
pub use error::FailbackError;
pub use point_disks::{ChooseError, ClosedDisk, PointDisks, PointDisksError, chosen_disks};
pub use put_point::{PutPointError, put_point};
pub use ranges::{Range, Ranges};
pub use reader::{PointReader, ReadError};
pub use record::RecoveryState;
pub(crate) use released::Released;
