//! The engine on io_uring: one `io_uring_enter` per turn submits everything and waits.
//!
//! - `ring`: the ring itself, its set-up flags and the thread that owns it.
//! - `flight`: an operation in the kernel, which owns its memory and file until it has ended.
//! - `watches`: descriptors under poll.
//! - `backend`: puts them together.

mod backend;
mod flight;
mod ring;
mod watches;

pub(super) use backend::Uring;
