//! The agent's configuration: `process-server.toml` as checked values.
//!
//! [`load`] reads the file and checks what can be known from it alone; [`load_for_run`] also looks at
//! this machine: do sources, certificates and folders exist, is a disk named twice. An error names
//! file, line and remedy. `process-server.toml.example` documents every key. Nothing is opened for writing here and nothing is created.

mod file;
mod host;
mod quiesce;
mod schedule;
mod throttle;
mod values;

#[cfg(test)]
mod tests;

pub use schedule::{Days, MINUTES_PER_DAY, Moment, Schedule, Weekday, Window};
pub use values::{Config, DiskConfig, GroupConfig, MasterTargetConfig, NbdTlsConfig, load, load_for_run};
