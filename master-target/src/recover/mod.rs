//! Going back: reading points out of the journal and the disks.

mod point_content;
mod reader;

pub use reader::{PointReader, ReadError};
