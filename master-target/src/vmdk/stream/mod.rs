//! `streamOptimized`: one compressed file, written from start to end; for transport, never a target.
//!
//! `header` (first sector, footer and markers), `map` (the tables as they gather), `io` (the writer). `docs/vmdk.md` draws it.

mod header;
mod io;
mod map;

pub use io::{StreamError, StreamWriter};
