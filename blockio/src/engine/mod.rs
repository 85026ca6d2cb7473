//! The I/O engine: one owner thread submits, waits and polls; the kernel does the rest.
//!
//! A group's thread runs a loop around [`Engine::wait`]: sockets that became ready, disk operations
//! that finished and wake-ups from other threads all come out of that one call, and everything
//! queued since the last turn goes in with it, in one system call.
//!
//! - `op`: what can be asked and what comes back.
//! - `driver`: the queue, bounds and rules that both kinds share.
//! - `syncs`: one sync per file at a time.
//! - `uring`: the io_uring kind.
//! - `blocking`: epoll and a small pool of threads, where io_uring is forbidden.
//! - `waker`: waking the owner from elsewhere.
//!
//! The engine orders nothing: two operations in flight on one range end in any order, and a sync
//! covers only what was reported as done before it was submitted. Its owner keeps overlaps apart.

mod blocking;
mod driver;
mod op;
mod syncs;
mod uring;
mod waker;

pub use driver::{DEPTH_MAX, Engine, EngineKind};
pub use op::{Event, Interest, Op};
pub use waker::Waker;
