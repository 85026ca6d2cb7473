//! `twoGbMaxExtentFlat`: a disk in flat files of up to 2 GiB, for stores that hold no larger ones.
//!
//! `descriptor` (names and sizes of the files), `map` (which file holds a byte), `io` (the disk).

mod descriptor;
mod io;
mod map;

pub use descriptor::SPLIT_EXTENTS_MAX;
pub(super) use descriptor::extents_of_new_disk;
pub use io::{SplitDisk, SplitPart};
