//! Going back: reading points out of the journal and the disks, restoring them into files, failing a group back.
//!
//! `reader` is the look-up of the journal's rules. `restore` copies one disk of a point. `steps` is the order of a
//! failback without I/O, `failback` drives it, `put_point` and `digest` are two of its steps, `record` and `report` what
//! it keeps; `desk` is where commands begin or join one.

pub mod desk;
mod digest;
pub mod failback;
mod point_content;
mod put_point;
mod reader;
mod record;
mod report;
pub mod restore;
pub mod steps;

pub use put_point::{PutPointError, put_point};
pub use reader::{PointReader, ReadError};
pub use record::RecoveryState;
