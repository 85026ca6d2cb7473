//! Where the writes of a protected disk are seen: the first step of their way to the target.
//!
//! The crate `nbd` speaks the protocol with the clients. [`tap`] is the thread that owns a group's clients and disks and
//! puts the two together.

pub mod tap;
