//! Targets: the disks that are written, found by their configured names, created when missing, and locked.
//!
//! A configured string (`spec`) becomes a path that stays in its datastore (`folder`), and an open, locked disk
//! ([`open_or_create`]). Every kind of disk has one shape, [`Disk`]; [`DiskIo`] moves data to and from it in batches.
//! What a VMDK's descriptor means is the `vmdk` folder's part; what is written, and in what order, is `apply`'s.

mod batch;
mod beside;
mod disk;
mod error;
mod folder;
mod inspect;
mod io;
mod linear;
mod open;
mod opened;
mod spec;

pub use beside::open_beside;
pub use disk::{Disk, Location, Thickness};
pub use error::{TargetError, TargetFault};
pub use folder::{FolderError, inside};
pub use inspect::{Inspected, inspect};
pub use io::DiskIo;
pub use linear::LinearDisk;
pub use open::{LOCK_PATIENCE, open_or_create, open_or_create_within};
pub use opened::{Identity, Opened};
pub use spec::{Datastore, SpecError, TargetSpec};
