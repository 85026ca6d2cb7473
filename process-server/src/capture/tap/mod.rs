//! The NBD tap: one thread per group that owns its NBD sockets and its protected disks.
//!
//! A guest write goes receive - admit - write - reply in this thread, without a hop to another one; sockets and disk
//! completions share one wait. The decisions are the group core's (`crate::group`); this is its shell: it parses requests
//! (`connection`), carries them out (`serve`), answers the core's actions (`driver`, `spool`), flushes (`flushing`), and keeps
//! what must survive a restart (`state`). It does not negotiate (the crate `nbd`) and does not send (`crate::send`).

mod complaints;
mod connection;
mod driver;
mod flushing;
mod reads;
mod request;
mod serve;
mod spool;
mod start;
mod state;
mod thread;
mod tracking;

pub use start::{StartError, claim, start};
pub use state::{StateError, StateFile};
