//! Where the writes of a protected disk are seen: the first step of their way to the target.
//!
//! [`nbd`] speaks the protocol with the clients. It knows nothing of groups, change sets or the backing disk.
//! [`tap`] is the thread that owns a group's clients and disks and puts the two together.

pub mod nbd;
pub mod tap;
