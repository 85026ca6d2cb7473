//! Memory for direct I/O: aligned to 4,096 bytes, always initialised, recycled through a pool.
//!
//! A buffer is filled by a socket or a disk, frozen into [`Bytes`], shared by change sets and
//! frames without copies, and returns to its pool when the last of them is dropped. The pool
//! counts the capacity that is out, so that budgets can count whole buffers (rule S19).
//!
//! Small buffers are cut from slabs: an allocator that aligns each of them to a page spends another page on its own
//! header, and a budget of 256 MiB in buffers of 4 KiB took 512 MiB of memory.
//!
//! It sets no limit on what is out: that is the business of whoever takes.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::poison;

/// Alignment of every buffer's first byte. 4,096 is the strictest that DIOALIGN reports in practice.
pub const BUF_ALIGN: usize = 4096;

/// Capacities that the pool keeps for reuse; a larger buffer is allocated exactly and freed.
const CLASSES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Memory that is allocated at once for small buffers. 64 of them share the allocator's overhead, and all must be
/// dropped before it goes back.
const SLAB_BYTES: usize = 256 << 10;
/// Capacity up to which buffers are cut from slabs.
const SLICED_MAX: usize = 16 << 10;

/// Owned bytes whose memory starts at a multiple of [`BUF_ALIGN`].
pub struct AlignedBuf {
    memory: Memory,
    len: usize,
    pool: Option<Arc<Shared>>,
}

impl AlignedBuf {
    /// A buffer of `len` zero bytes outside any pool.
    pub fn zeroed(len: usize) -> Self {
        Self { memory: Memory::zeroed(capacity_for(len)), len, pool: None }
    }

    /// Shortens the buffer to `len` bytes; longer than it is changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes the buffer `len` bytes long; what is gained keeps whatever the memory held.
    ///
    /// # Panics
    /// If `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes do not fit a buffer of {}", self.capacity());
        self.len = len;
    }

    /// How many bytes the memory holds.
    pub fn capacity(&self) -> usize {
        self.memory.capacity
    }

    /// Turns the buffer into shared bytes without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory holds `capacity >= len` initialised bytes (zeroed when allocated, only
        // ever overwritten with bytes) and is owned by `self`, which is borrowed for the slice's life.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `self` is borrowed mutably, so there is no other reference.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give_back(std::mem::replace(&mut self.memory, Memory::EMPTY));
        }
    }
}

/// A source of buffers that keeps what comes back, up to a bound.
///
/// New memory has to be zeroed, and the kernel zeroes it once more when it is touched first: recycling costs neither.
#[derive(Clone)]
pub struct BufPool {
    shared: Arc<Shared>,
}

impl BufPool {
    /// A pool that keeps at most `cached_bytes_max` bytes of idle memory.
    pub fn new(cached_bytes_max: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                idle: Default::default(),
                idle_bytes: AtomicUsize::new(0),
                idle_bytes_max: cached_bytes_max,
                all_bytes_max: None,
                pinned_bytes: AtomicU64::new(0),
            }),
        }
    }

    /// A pool that keeps all that comes back, as long as what is out and what is idle are `bytes_max` together. For an
    /// owner with a budget: idle memory costs nothing that the budget does not allow anyway.
    pub fn within(bytes_max: usize) -> Self {
        let mut pool = Self::new(bytes_max);
        let shared = Arc::get_mut(&mut pool.shared).expect("nobody has a new pool");
        shared.all_bytes_max = Some(bytes_max);
        pool
    }

    /// A buffer of `len` bytes with unspecified (but initialised) content.
    pub fn take(&self, len: usize) -> AlignedBuf {
        let capacity = capacity_for(len);
        let memory = self.shared.take_idle(capacity).unwrap_or_else(|| self.shared.allocate(capacity));
        self.shared.pinned_bytes.fetch_add(memory.capacity as u64, Ordering::Relaxed);
        AlignedBuf { memory, len, pool: Some(Arc::clone(&self.shared)) }
    }

    /// The capacity of all buffers that are out now, frozen ones included.
    pub fn pinned_bytes(&self) -> u64 {
        self.shared.pinned_bytes.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufPool")
            .field("pinned_bytes", &self.pinned_bytes())
            .field("idle_bytes", &self.shared.idle_bytes.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

struct Shared {
    idle: [Mutex<Vec<Memory>>; CLASSES.len()],
    idle_bytes: AtomicUsize,
    idle_bytes_max: usize,
    /// Bound of idle and pinned memory together.
    all_bytes_max: Option<usize>,
    pinned_bytes: AtomicU64,
}

impl Shared {
    fn take_idle(&self, capacity: usize) -> Option<Memory> {
        let memory = poison::lock(self.class(capacity)?).pop()?;
        self.idle_bytes.fetch_sub(capacity, Ordering::Relaxed);
        Some(memory)
    }

    /// New memory. What is left of a slab becomes idle; a pool that could not keep it takes single buffers.
    fn allocate(&self, capacity: usize) -> Memory {
        if capacity > SLICED_MAX || self.idle_bytes_max < 2 * SLAB_BYTES {
            return Memory::zeroed(capacity);
        }
        let mut pieces = Memory::sliced(capacity);
        let first = pieces.pop().expect("a slab is larger than what is cut from it");
        pieces.into_iter().for_each(|piece| self.keep(piece));
        first
    }

    fn give_back(&self, memory: Memory) {
        self.pinned_bytes.fetch_sub(memory.capacity as u64, Ordering::Relaxed);
        self.keep(memory);
    }

    /// Keeps idle memory for reuse, as far as the bound allows.
    fn keep(&self, memory: Memory) {
        let capacity = memory.capacity;
        let Some(class) = self.class(capacity) else {
            return;
        };
        // Reserved before it is stored, so that two threads can't exceed the bound together.
        let idle = self.idle_bytes.fetch_add(capacity, Ordering::Relaxed) + capacity;
        if idle > self.idle_bytes_room() && !self.shed(class, idle) {
            self.idle_bytes.fetch_sub(capacity, Ordering::Relaxed);
            return;
        }
        poison::lock(class).push(memory);
    }

    /// Bytes that may be idle now.
    fn idle_bytes_room(&self) -> usize {
        let pinned = self.pinned_bytes.load(Ordering::Relaxed) as usize;
        self.all_bytes_max.map_or(self.idle_bytes_max, |all| all.saturating_sub(pinned))
    }

    /// Frees idle memory of other classes than `kept` until what is idle, `idle` with the newcomer, fits. Load that
    /// changes its size must not find the room taken by what nobody takes any more. False if that is not enough.
    fn shed(&self, kept: &Mutex<Vec<Memory>>, mut idle: usize) -> bool {
        for class in self.idle.iter().rev().filter(|class| !std::ptr::eq(*class, kept)) {
            while idle > self.idle_bytes_room() {
                let Some(freed) = poison::lock(class).pop() else { break };
                idle = self.idle_bytes.fetch_sub(freed.capacity, Ordering::Relaxed) - freed.capacity;
            }
        }
        idle <= self.idle_bytes_room()
    }

    fn class(&self, capacity: usize) -> Option<&Mutex<Vec<Memory>>> {
        let index = CLASSES.iter().position(|&class| class == capacity)?;
        Some(&self.idle[index])
    }
}

/// The smallest class that holds `len`, or `len` rounded up to whole pages.
fn capacity_for(len: usize) -> usize {
    match CLASSES.iter().find(|&&class| class >= len) {
        Some(&class) => class,
        None => len.next_multiple_of(BUF_ALIGN),
    }
}

/// `capacity` initialised bytes, an allocation of their own or a piece of a slab; none at all when the capacity is zero.
struct Memory {
    start: NonNull<u8>,
    capacity: usize,
    slab: Option<Arc<Slab>>,
}

/// An allocation that is freed with the last of its pieces.
struct Slab(NonNull<u8>);

// SAFETY: a slab is only an address to be freed; its bytes are reached through the pieces, each by one owner.
unsafe impl Send for Slab {}
// SAFETY: as above, nothing can be done through a shared reference.
unsafe impl Sync for Slab {}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: allocated in `sliced` with this same layout; the last piece is gone, and only it kept this alive.
        unsafe { dealloc(self.0.as_ptr(), layout(SLAB_BYTES)) }
    }
}

// SAFETY: `Memory` owns its bytes alone, like a `Vec<u8>`; nothing in it is tied to a thread.
unsafe impl Send for Memory {}
// SAFETY: through a shared reference only the address and the capacity can be read.
unsafe impl Sync for Memory {}

impl Memory {
    const EMPTY: Self = Self { start: NonNull::dangling(), capacity: 0, slab: None };

    fn zeroed(capacity: usize) -> Self {
        Self { start: allocate(capacity), capacity, slab: None }
    }

    /// A slab cut into pieces of `capacity`, which divides it and keeps each aligned.
    fn sliced(capacity: usize) -> Vec<Self> {
        assert!(SLAB_BYTES.is_multiple_of(capacity) && capacity.is_multiple_of(BUF_ALIGN));
        let start = allocate(SLAB_BYTES);
        let slab = Arc::new(Slab(start));
        let piece = |at: usize| {
            // SAFETY: `at` is below the length of the allocation.
            let start = unsafe { start.add(at) };
            Self { start, capacity, slab: Some(Arc::clone(&slab)) }
        };
        (0..SLAB_BYTES).step_by(capacity).map(piece).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.capacity > 0 && self.slab.is_none() {
            // SAFETY: allocated in `zeroed` with this same layout and freed only here.
            unsafe { dealloc(self.start.as_ptr(), layout(self.capacity)) }
        }
    }
}

fn allocate(capacity: usize) -> NonNull<u8> {
    let layout = layout(capacity);
    // SAFETY: `layout` never gives one without a size.
    let start = unsafe { alloc_zeroed(layout) };
    NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
}

fn layout(capacity: usize) -> Layout {
    assert!(capacity > 0);
    Layout::from_size_align(capacity, BUF_ALIGN).expect("a buffer's size fits the address space")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_starts_at_a_multiple_of_4096() {
        let pool = BufPool::new(1 << 20);
        for len in [0, 1, 512, 4096, 4097, 65_536, 1 << 20, (1 << 20) + 1] {
            for buf in [AlignedBuf::zeroed(len), pool.take(len)] {
                assert_eq!(buf.len(), len);
                assert_eq!(buf.as_ptr() as usize % BUF_ALIGN, 0);
                assert_eq!(buf.capacity() % BUF_ALIGN, 0);
                assert!(buf.capacity() >= len.max(1));
            }
        }
    }

    #[test]
    fn a_fresh_buffer_is_zero_and_a_longer_one_keeps_what_was_there() {
        let mut buf = AlignedBuf::zeroed(5000);
        assert!(buf.iter().all(|&byte| byte == 0));
        buf.fill(7);
        buf.truncate(10);
        buf.truncate(4000);
        assert_eq!(buf.len(), 10);
        buf.set_len(5001);
        assert_eq!((buf[4999], buf[5000]), (7, 0));
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn a_buffer_never_grows_beyond_its_capacity() {
        AlignedBuf::zeroed(1).set_len(4097);
    }

    #[test]
    fn memory_is_pinned_until_the_last_clone_of_the_frozen_bytes_is_dropped() {
        let pool = BufPool::new(1 << 20);
        let mut buf = pool.take(5000);
        buf[4999] = 9;
        let start = buf.as_ptr();
        let bytes = buf.freeze();
        assert_eq!(bytes.as_ptr(), start);
        assert_eq!(pool.pinned_bytes(), 16 << 10);
        let tail = bytes.slice(4999..);
        drop(bytes);
        assert_eq!((tail[0], pool.pinned_bytes()), (9, 16 << 10));
        drop(tail);
        assert_eq!(pool.pinned_bytes(), 0);
        assert_eq!(pool.take(16 << 10).as_ptr(), start);
    }

    #[test]
    fn idle_memory_is_kept_up_to_the_bound_and_never_above_a_mebibyte() {
        let pool = BufPool::new(8 << 10);
        let three: Vec<_> = (0..3).map(|_| pool.take(4096)).collect();
        drop(three);
        assert_eq!(pool.shared.idle_bytes.load(Ordering::Relaxed), 8 << 10);
        let pool = BufPool::new(1 << 30);
        drop(pool.take((1 << 20) + 1));
        assert_eq!(pool.shared.idle_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_pool_with_a_budget_keeps_what_the_budget_leaves() {
        let pool = BufPool::within(4 << 20);
        let idle = |pool: &BufPool| pool.shared.idle_bytes.load(Ordering::Relaxed);
        let mut out: Vec<_> = (0..6).map(|_| pool.take(1 << 20)).collect();
        drop(out.pop());
        assert_eq!(idle(&pool), 0, "5 MiB are out: nothing is kept beside them");
        out.truncate(2);
        assert_eq!(idle(&pool), 2 << 20, "2 MiB are out, 2 idle");
        drop(out);
        assert_eq!((idle(&pool), pool.pinned_bytes()), (4 << 20, 0));
    }

    #[test]
    fn idle_memory_of_one_size_makes_room_for_another() {
        let pool = BufPool::within(4 << 20);
        drop((0..4).map(|_| pool.take(1 << 20)).collect::<Vec<_>>());
        let first: Vec<_> = (0..8).map(|_| pool.take(256 << 10)).collect();
        let mut starts: Vec<_> = first.iter().map(|buf| buf.as_ptr() as usize).collect();
        drop(first);
        assert!(pool.shared.idle_bytes.load(Ordering::Relaxed) <= 4 << 20);
        let again: Vec<_> = (0..8).map(|_| pool.take(256 << 10)).collect();
        let mut starts_again: Vec<_> = again.iter().map(|buf| buf.as_ptr() as usize).collect();
        starts.sort_unstable();
        starts_again.sort_unstable();
        assert_eq!(starts, starts_again, "the same memory, recycled");
    }

    #[test]
    fn small_buffers_share_slabs_and_never_bytes() {
        let pool = BufPool::new(1 << 20);
        let mut bufs: Vec<_> = (0..200).map(|index| pool.take(if index % 3 == 0 { 16 << 10 } else { 4096 })).collect();
        for (index, buf) in bufs.iter_mut().enumerate() {
            buf.fill(index as u8);
        }
        let mut ranges: Vec<_> =
            bufs.iter().map(|buf| buf.as_ptr() as usize).zip(bufs.iter().map(|b| b.len())).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "no two overlap");
        assert!(bufs.iter().enumerate().all(|(index, buf)| buf.iter().all(|byte| *byte == index as u8)));
        let kept = bufs.swap_remove(77);
        drop((bufs, pool));
        assert!(kept.iter().all(|byte| *byte == 77), "a piece outlives the others of its slab, and the pool");
    }

    #[test]
    fn threads_share_a_pool() {
        let pool = BufPool::new(1 << 20);
        std::thread::scope(|scope| {
            for seed in 0..4u8 {
                let pool = &pool;
                scope.spawn(move || {
                    for round in 0..500usize {
                        let mut buf = pool.take(1 + round * 31 % 70_000);
                        buf.fill(seed);
                        let bytes = buf.freeze();
                        assert!(bytes.iter().all(|&byte| byte == seed));
                    }
                });
            }
        });
        assert_eq!(pool.pinned_bytes(), 0);
    }
}
