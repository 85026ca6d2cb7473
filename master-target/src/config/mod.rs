//! The configuration of the agent: `master-target.toml` as a checked value.
//!
//! `file` is the shape of the file, `check` turns it into a [`Config`] or says file, line and remedy. The command
//! line loads it as well, to find the control socket.

mod check;
mod file;
mod retention;
mod values;

pub use values::{Config, DiskConfig, GroupConfig};
