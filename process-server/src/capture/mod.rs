//! Where the writes of a protected disk are seen: the first step of their way to the target.
//!
//! [`nbd`] speaks the protocol with the clients. It knows nothing of groups, change sets or the backing disk.

pub mod nbd;
