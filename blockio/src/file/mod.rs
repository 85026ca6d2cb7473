//! A regular file or block device as a disk: fixed size, offsets in bytes, O_DIRECT where it can.
//!
//! - `open`: opening and creating, and what direct I/O asks of offsets and memory.
//! - `transfer`: blocking reads and writes of any offset and length, and the rule by which
//!   short ones are continued.
//! - `sync`: making writes durable, and remembering a failure.
//! - `ranges`: punching, zeroing and asking what is allocated.
//!
//! The I/O engine works on the same [`BlockFile`] without blocking its owner.

mod open;
mod ranges;
mod sync;
mod transfer;

pub use open::{Access, BlockFile};
pub use ranges::{RUNS_MAX, Run};

pub(crate) use ranges::zeroes;
pub(crate) use transfer::{Progress, Step, bounce_pool};
