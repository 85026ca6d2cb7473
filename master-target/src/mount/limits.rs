//! The bounds of mounts.

use std::time::Duration;

/// Mounts of a group at a time.
pub(super) const MOUNTS_MAX: usize = 16;

/// Clients of a mount at a time; each has a thread, and a buffer for the longest request.
pub(super) const CLIENTS_MAX: usize = 16;

/// Longest read or write. The kernel's NBD client sends up to 1,280 KiB, whatever it is told.
pub(super) const BLOCK_BYTES_MAX: u32 = 4 << 20;

/// Readers of a mount's point, each with a few frames and an I/O engine: so many reads go on at a time.
pub(super) const READERS_MAX: usize = 4;

/// Room for what clients write where `--quota` says nothing.
pub(super) const QUOTA_BYTES_DEFAULT: u64 = 4 << 30;

/// Largest `--quota`: the map of 64 GiB of scattered blocks takes some 2 GiB of memory.
pub(super) const QUOTA_BYTES_MAX: u64 = 64 << 30;

/// Bytes of the volume of `state_dir` that overlays leave free, for the agent's own records.
pub(super) const OVERLAY_RESERVE_BYTES: u64 = 64 << 20;

/// Ranges of zeroes that an overlay may hold besides a range for each block of its quota.
pub(super) const ZERO_RANGES_MAX: usize = 64 << 10;

/// Log lines of a mount about reads that failed: a client may try for ever.
pub(super) const ERROR_LINES_MAX: u32 = 20;

/// How often a mount looks whether its point is still there.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);
