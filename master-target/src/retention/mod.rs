//! What history there is to go back to, and when it ends.
//!
//! [`points`](self) lists and resolves recovery points; pruning removes the oldest generations whole. Neither copies
//! nor reads content: that is `crate::recover`.

mod points;
mod prune;

pub use points::{PointInfo, ResolveError};
