//! Preflight: what would make a failback fail is said before anything is replicated (requirements R5 and R6).
//!
//! Readers gather facts and change nothing: `machine` (mounts, volumes, devices; with `mounts`), `disk_files` (targets, with
//! `vmx`). Judgements over `facts` are pure: `targets`, `retention`. `preflight` puts both together for `master-target
//! check`, and for a group that is about to be accepted; `report` is what comes out. `docs/preflight.md` lists the checks.

mod disk_files;
mod facts;
mod machine;
mod mounts;
mod preflight;
mod report;
mod retention;
mod targets;
mod vmx;

pub use machine::MachineFiles;
pub use preflight::{Preflight, Refused};
pub use report::{Check, GroupReport, Outcome, Report, VolumeReport};
pub use retention::RETENTION_DEFAULT;
pub use vmx::Vmx;
