//! The spool: a bounded file on the cache volume that takes captured content when memory runs short (P4).
//!
//! It is memory, not state: emptied at every start, never synced, read only by the process that wrote it. When what goes
//! there and comes back is decided by the group core (`crate::group`); this folder knows where there is room (`space`)
//! and makes the file (`file`). docs/catching-up.md has the rules.

mod file;
pub mod limits;
mod space;

pub use file::{SpoolFileError, make_file};
pub use space::Space;
