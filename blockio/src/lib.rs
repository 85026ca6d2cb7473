//! The kernel's edge of Backhaul, and the only crate with `unsafe` in it.
//!
//! Both agents stand on it: aligned memory ([`buf`]), files and block devices opened past the page
//! cache ([`mod@file`]), the I/O engine of one owner thread ([`engine`]), locks that QEMU honours
//! ([`lock`]), small files replaced durably ([`durable`]), extent maps ([`extents`]), dirty bitmaps
//! ([`dirty`]) and checksums ([`crc`]).
//!
//! It knows nothing of groups, sets, the wire or the journal, logs nothing, and keeps no global
//! state but two caches of memory for bouncing and zeroing.

pub mod buf;
pub mod crc;
pub mod dirty;
pub mod durable;
pub mod engine;
pub mod error;
pub mod extents;
pub mod file;
pub mod lock;
pub mod memory;
mod poison;
pub mod priority;

pub use buf::{AlignedBuf, BufPool};
pub use crc::{crc32, crc32_combine, is_zero};
pub use dirty::{DirtyMap, LeafPool};
pub use engine::{Engine, EngineKind, Event, Interest, Op, Waker};
pub use error::IoError;
pub use extents::{ExtentMap, Slice};
pub use file::{Access, BlockFile, Run};
pub use lock::{Holder, LockError, LockRole, lock_file, lock_holder, unlock_file};

/// The unit of sets and look-ups, and of every size in Backhaul, in bytes.
pub const SECTOR: u64 = 512;
/// The unit of bitmaps, undo and copy before write, in bytes.
pub const BLOCK: u64 = 4096;
/// The unit of write intent, in bytes.
pub const REGION: u64 = 1 << 20;
/// The largest piece that one guest request, frame or bounce buffer holds, in bytes.
pub const IO_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(BLOCK.is_multiple_of(SECTOR));
const _: () = assert!(REGION.is_multiple_of(BLOCK));
const _: () = assert!((IO_BYTES_MAX as u64).is_multiple_of(BLOCK));
