//! From the network to the group: connections, the control conversation, part streams.
//!
//! Reading order: `listener`, `connection` (one peer), `conversation` (its messages), `part` (one part stream), `delta`
//! (frames that need what the disks hold), `spares`, `admission` (who may open a group). Content is checked here and handed
//! to the group's threads; nothing is stored.

pub mod admission;
mod connection;
mod conversation;
mod delta;
mod listener;
mod part;
mod peers;
mod ports;
mod refusals;
mod spares;

pub use delta::{BaseNeeded, Encoders, base_needed};
pub use listener::{listen, shut};
pub use part::{Piece, check, end_of, frame_of};
pub use peers::Peers;
