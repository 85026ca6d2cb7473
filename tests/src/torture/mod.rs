//! Scenarios that hurt: each is a function with a length, so that `make test` runs a short form of what `make torture`
//! runs at length (`src/bin/torture.rs`). A scenario panics on the first thing that is wrong, after it has said its seed.

pub mod capped;
pub mod history;
pub mod kill_loop;
pub mod link_faults;
pub mod shaped;
pub mod table;
