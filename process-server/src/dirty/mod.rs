//! What must be known of the protected disks after a crash: which regions may differ from the target, and whether the
//! disks are the ones that were replicated.
//!
//! `intent` decides (a state machine without I/O): a region is marked durably before a write to it is submitted, and
//! unmarked once its content is on the target for good. `page` is the format of the marks on the state volume,
//! `marks_file` the file, `exact` the record of a clean stop that says more than the marks do, `identity` what a disk is
//! recognised by. docs/tracking.md has the rules (S7, S10, S12, L1) with what goes wrong without them.

mod exact;
mod identity;
mod intent;
mod marks_file;
mod page;

pub use exact::{Exact, ExactError, Run};
pub use identity::{Identity, Sight};
pub use intent::{Commit, Intent, Key, Layout, REGION_BYTES};
pub use marks_file::{LOCK_PATIENCE, Marks, MarksError};
pub use page::PAGE_BYTES;
