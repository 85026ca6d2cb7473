//! The process-server: the source agent, which captures the writes of protected disks and streams change sets.
//!
//! The modules follow a guest write: `capture` takes it from the NBD client.

#![forbid(unsafe_code)]

pub mod capture;
