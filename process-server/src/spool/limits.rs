//! The bounds of the spool, and why each has its value.

use std::time::Duration;

use blockio::{BLOCK, IO_BYTES_MAX};

/// Room is taken in whole multiples of this: what direct I/O asks for everywhere.
pub const SPOOL_UNIT: u64 = BLOCK;

/// Bytes of captured content that are written at a time: one large write costs a disk little more than one of 4 KiB.
/// A write of a guest has at most as much, so each fits.
pub const CHUNK_BYTES_MAX: u64 = IO_BYTES_MAX as u64;

/// Writes to the spool at a time. Each has a copy of its content that no budget counts: 4 MiB. Enough to keep a disk
/// busy, few enough that guests' writes in the same engine never queue behind them.
pub const WRITES_IN_FLIGHT_MAX: usize = 4;

/// Records of one part are read together across gaps of at most this: reading over it costs less than another read.
pub const READ_GAP_MAX: u64 = 32 << 10;

/// Reads of on-disk blocks of one set, when it is captured fully for the spool, at a time.
pub const CAPTURES_IN_FLIGHT_MAX: usize = 8;

/// Extents that are looked at again for one chunk, because they were with the link before. Bounds the time of a turn.
pub const LATE_LOOKS_MAX: usize = 256;

/// Time before a cache volume that failed is tried again, doubled with each failure...
pub const RETRY_MIN: Duration = Duration::from_secs(1);
/// ...up to this. A volume that is full or read-only stays so for minutes; one try per minute costs nothing.
pub const RETRY_MAX: Duration = Duration::from_secs(60);
/// A volume that worked this long starts the sequence anew.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);

const _: () = assert!(CHUNK_BYTES_MAX.is_multiple_of(SPOOL_UNIT));
const _: () = assert!(READ_GAP_MAX < CHUNK_BYTES_MAX);
const _: () = assert!(RETRY_MIN.as_millis() * 2 <= RETRY_MAX.as_millis());
const _: () = assert!(HEALTHY_AFTER.as_millis() >= RETRY_MAX.as_millis(), "failures a minute apart are one trouble");
