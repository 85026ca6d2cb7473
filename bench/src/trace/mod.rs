//! What a real program writes to its disk, with content and times: recorded once through NBD, then played to the agents.
//!
//! `recorder` serves a file and keeps what is written, `postgres` is the program, `replay` plays.

mod postgres;
mod recorder;
mod replay;

pub use postgres::record;
pub use replay::{compressed, replay};

use std::time::Duration;

/// One write.
#[derive(Clone, Debug)]
pub struct Write {
    /// Since the recording began.
    pub at: Duration,
    /// Where.
    pub offset: u64,
    /// What.
    pub data: Vec<u8>,
}

/// Bytes of all writes.
pub fn bytes(trace: &[Write]) -> u64 {
    trace.iter().map(|write| write.data.len() as u64).sum()
}
