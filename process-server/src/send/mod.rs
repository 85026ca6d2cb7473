//! The link: one QUIC connection to the master-target, shared by all groups of this agent.
//!
//! Reading order: [`port`](mod@port) is what a group sees. [`link`] makes the connection, again and again;
//! [`session`] runs on one; [`parts`] takes parts from a group's queue, has them encoded by
//! [`encode`] and writes each on a stream of its own, bulk as far as [`bulk_room`] lets it; [`compare`]
//! digests what the target may hold already. [`bandwidth`] keeps the cap of the link as the schedule has it.
//! [`compress`], [`backoff`] and [`liveness`] are
//! the decisions, without I/O. Which content is sent, and what is sent again after a session has
//! ended, is the group's business.

pub mod backoff;
mod bandwidth;
mod bulk_room;
mod compare;
pub mod compress;
mod effort;
mod encode;
mod error;
pub mod limits;
mod link;
pub mod liveness;
mod occupied;
mod parts;
mod peer;
mod port;
mod session;
mod turns;
mod zeroes;

pub use backoff::Backoff;
pub use compare::run_of;
pub use error::LinkError;
pub use link::{Link, LinkConfig};
pub use parts::frames_of;
pub use peer::PeerView;
pub use port::{CompareJob, FromLink, GroupPort, LinkPort, Outbox, PartJob, PortError, ToLink, port};
