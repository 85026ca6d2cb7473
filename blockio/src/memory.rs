//! How much freed memory the process keeps for itself. Frames of 128 KiB and more come and go thousands of times a
//! second; by its defaults glibc gives such memory back to the kernel, which zeroes it again page by page when it is
//! next touched. In a virtual machine each such page costs microseconds.

/// Blocks below this come from the heap: records and frames of up to 1 MiB do.
#[cfg(target_env = "gnu")]
const HEAP_BLOCK_BYTES: libc::c_int = 4 << 20;
/// Free memory at the end of a heap that is kept. A few frames of each stream; buffers of disks have pools of their own.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 16 << 20;
/// Heaps of the process: their number bounds what they keep, and two processors need no more.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: libc::c_int = 4;

/// Keeps freed memory for reuse, within bounds. To be called once, before threads are started.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, HEAP_BLOCK_BYTES),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
        (libc::M_ARENA_MAX, HEAPS_MAX),
    ] {
        // SAFETY: it sets a number in the allocator, which takes its own lock; memory that was given out stays as it is.
        // A refusal leaves the default.
        unsafe { libc::mallopt(parameter, value) };
    }
}
