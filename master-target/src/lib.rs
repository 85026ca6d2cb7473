//! The target agent: journals change sets, writes them to VMDKs and recovers any point.
#![forbid(unsafe_code)]

pub mod apply;
pub mod journal;
pub mod recover;
pub mod retention;
