//! Mounts: the disks of a group as they were at a point, exported over NBD at once, while replication goes on.
//!
//! ```text
//! NBD client --> nbd::Listener --> client (a thread for each) --> image --> overlay, where it was written since
//!                                                                   \-----> recover::PointReader
//! ```
//!
//! `open` checks a request and makes a mount, `mounts` is the list of a group and ends them, `client` speaks the
//! transmission phase, `image` puts together what a client sees, `overlay` keeps what it writes until the mount ends.
//! A mount lives as long as the agent, at most; nothing of it is durable. docs/mount.md has the rules.

mod client;
mod image;
mod limits;
mod mounts;
mod open;
mod overlay;

pub use mounts::{Mounts, NoMount};
pub use open::{MountError, open};
