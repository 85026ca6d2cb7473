//! The command line: arguments, the commands that ask a running agent, and how answers are shown.
//!
//! `run` and `pki` are not here: they are the agent itself and `proto::pki`. Reading order: `args`, `commands`,
//! `failback`, `jobs`, `tables`, `progress`.

pub mod args;
pub mod commands;
pub mod failback;
pub mod jobs;
mod progress;
mod tables;

pub use args::{Cli, Command};
pub use commands::CommandError;
