//! The command line: `run`, and what asks a running agent.
//!
//! Exit codes: 0 done, 1 failed with one line on standard error, 2 wrong usage. Standard output carries
//! results only; the log of `run` goes to standard error.

mod args;
mod client;
mod entry;
mod error;
mod groups;
mod jobs;
mod run;
mod shutdown;
mod table;
mod thread;
mod verify;

pub use entry::{Capture, main};
pub use error::{CliError, RunError};
pub use run::{GroupArgs, SpawnGroup, SpawnedGroup, run};
pub use thread::GroupThread;
