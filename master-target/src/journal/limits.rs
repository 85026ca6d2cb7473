//! The bounds of a journal: what one generation, segment, batch and record may grow to.

use proto::limits::{RECORD_HEADER_BYTES_MAX, RECORD_PAYLOAD_BYTES_MAX};

/// Unit of undo, of first-touch bits and of writes to the disks (rule S13).
pub const BLOCK_BYTES: u64 = 4096;

/// Unit of sets and of look-ups (rule S13).
pub const SECTOR_BYTES: u64 = 512;

/// Sectors of a block.
pub const BLOCK_SECTORS: u64 = BLOCK_BYTES / SECTOR_BYTES;

/// Bytes after which a segment is followed by the next. Pruning frees whole segments, and an open has to verify the
/// last ones completely: 256 MiB is read in well under a second.
pub const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// Bytes of a segment on a small volume: below, most of it would be heads and commits.
pub const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// Bytes that are gathered in memory before they are appended to a segment.
pub const APPEND_BUFFER_BYTES: usize = 1 << 20;

/// Blocks of one undo record: what fits its payload.
pub const UNDO_BLOCKS_MAX: usize = RECORD_PAYLOAD_BYTES_MAX / BLOCK_BYTES as usize;

/// Runs of one undo record. Blocks that were zero take no payload, so the payload alone does not bound them.
pub const UNDO_RUNS_MAX: usize = 512;

/// Bytes of one run in the header of an undo record: tags, lengths and varints of disk, block and count.
const UNDO_RUN_BYTES_MAX: usize = 2 + 3 + 6 + 11 + 6 + 2 + 3;

/// Blocks of one round of apply: content before and after of 16 MiB each is in memory at a time.
pub const ROUND_BLOCKS_MAX: usize = 4096;

/// Bytes of redo that one batch of apply takes; a batch has one sync of the disks.
pub const BATCH_BYTES_MAX: u64 = 64 << 20;

/// Decoded bytes of redo that are merged in memory before they go to the disks.
pub const PIECE_BYTES_MAX: u64 = 16 << 20;

/// Bytes of one read or write of a disk.
pub const DISK_IO_BYTES_MAX: u64 = 1 << 20;

/// Bytes that always stay free on the retention volume, so that marks and manifests can be written when it is full: this,
/// or 1/16 of a small volume.
pub const RESERVE_BYTES: u64 = 64 << 20;

/// Undo that a zero range reserves at most before its set is accepted: it is a hole on most disks, and a record of 40
/// bytes must not claim a terabyte.
pub const ZERO_RESERVE_BYTES_MAX: u64 = 64 << 20;

/// Undo and redo records of one generation. Each takes some 100 bytes of memory while its generation is looked up.
pub const GENERATION_RECORDS_MAX: u64 = 1 << 20;

/// Generations of a journal, each some 100 bytes of the manifest: a year of five-minute ones that are thinned to hours, and
/// more. Beyond, points with labels end no generation.
pub const GENERATIONS_MAX: usize = 16_384;

/// Bytes of one generation: 1/16 of this or of the volume, whichever is smaller, ends it (rule J10).
pub const GENERATION_SHARE: u64 = 16;

/// Extents of redo, or runs of undo, after which a segment is followed by the next: an index is made in memory, of some
/// 100 bytes for each, and so is the stand-in for one that is not made yet.
pub const SEGMENT_EXTENTS_MAX: u64 = 1 << 18;

/// Bytes of a page of an index.
pub const INDEX_PAGE_BYTES: usize = 4096;

/// Pages of indexes that a journal keeps in memory: 8 MiB.
pub const INDEX_CACHE_PAGES: usize = 2048;

/// Bytes that have to be free before an index is made: more than 40 for each extent.
pub const INDEX_ROOM_BYTES: u64 = 16 << 20;

/// How often an index is made in the life of a process: one that was damaged twice is left alone.
pub const INDEX_BUILDS_MAX: u32 = 2;

/// Sets beyond the last complete one that may be in the making. The source keeps far fewer in flight.
pub const PENDING_SETS_MAX: usize = 4096;

/// Frames that a point reader keeps decoded, at up to 1 MiB each.
pub const READER_FRAMES_MAX: usize = 16;

/// Headers of undo records that a point reader keeps, of some kilobytes each.
pub const READER_SAVED_MAX: usize = 32;

/// Sectors that are looked up at a time where only places are wanted: 64 MiB, of 16,384 blocks.
pub const LOOKUP_SECTORS_MAX: u64 = (64 << 20) / SECTOR_BYTES;

/// Highest number of a set, counter or generation: what is higher was never counted up to, and sums of a few of them
/// do not overflow.
pub const NUMBER_MAX: u64 = 1 << 62;

/// Bytes of a manifest: some 30 bytes for each of the segments of a volume of 16 TiB, and more.
pub const MANIFEST_BYTES_MAX: u64 = 16 << 20;

const _: () = {
    assert!(UNDO_RUNS_MAX * UNDO_RUN_BYTES_MAX + UNDO_BLOCKS_MAX * 4 + 64 <= RECORD_HEADER_BYTES_MAX);
    assert!(ROUND_BLOCKS_MAX as u64 * BLOCK_BYTES <= PIECE_BYTES_MAX);
    assert!(DISK_IO_BYTES_MAX.is_multiple_of(BLOCK_BYTES) && BLOCK_BYTES.is_multiple_of(SECTOR_BYTES));
    assert!(SEGMENT_EXTENTS_MAX * 48 <= INDEX_ROOM_BYTES);
    assert!(SEGMENT_BYTES_MAX > APPEND_BUFFER_BYTES as u64);
};
