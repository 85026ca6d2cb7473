//! Target agent: journals change sets, writes them to VMDKs and recovers any point.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod target;
pub mod vmdk;
