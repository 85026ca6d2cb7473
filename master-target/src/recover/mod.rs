//! Going back: reading points out of the journal and the disks, restoring them into files, failing a group back.
//!
//! `lookup` is the content rule of the journal, `reader` reads by it, `contents` what stands in the journal. `restore` copies one disk of a point. `steps` is the order of a
//! failback without I/O, `failback` drives it, `put_point` and `digest` are two of its steps, `record` and `report` what
//! it keeps; `desk` is where commands begin or join one.

mod contents;
pub mod desk;
mod digest;
pub mod failback;
mod lookup;
mod put_point;
mod reader;
mod record;
mod report;
pub mod restore;
pub mod steps;

pub use reader::{PointReader, ReadError};
pub use record::RecoveryState;
