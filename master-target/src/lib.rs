//! The target agent of Backhaul: receives change sets, journals them on the retention volume, writes them to the
//! target disks, and recovers any point.
//!
//! Folders follow the data: `receive` (sessions and parts) -> `journal` -> `apply` -> `target` and `vmdk`; `retention`
//! and `recover` read what was written, `mount` exports it. `group` runs one replication group with its threads, `agent` the whole,
//! `control` and `cli` are how operators reach it. ARCHITECTURE.md has the way of one guest write.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
mod amount;
pub mod apply;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod group;
pub mod journal;
pub mod mount;
pub mod receive;
pub mod recover;
pub mod retention;
pub mod target;
pub mod vmdk;
