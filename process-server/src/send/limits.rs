//! The bounds of the link, and why each has its value.

/// Messages and parts of one group that wait to be taken by the session. Parts are bounded in bytes
/// by the group's own memory budget; this bounds their number.
pub const TO_LINK_QUEUE: usize = 64;

/// Bulk parts of one group that wait to be taken by the session.
pub const BULK_QUEUE: usize = 16;

/// Messages to one group. Acknowledgements of all parts in progress fit several times over.
pub const FROM_LINK_QUEUE: usize = 4096;

/// Messages that wait for the control stream, all groups together.
pub const CONTROL_QUEUE: usize = 256;

/// Parts of one group and kind between "taken from the group" and "handed to the connection as a whole".
/// The oldest one bounds the window: nothing overtakes it by more than this many parts.
pub const PARTS_WINDOW: usize = 8;

/// Comparisons of one group between "taken from the group" and "handed to the control stream": enough to keep the
/// workers of a usual machine busy.
pub const COMPARES_WINDOW: usize = 8;

/// Bytes of content that one worker digests at a time, half a millisecond: what an ordered part may have to wait for.
pub const DIGEST_BATCH_BYTES: usize = proto::limits::FRAME_RAW_BYTES_MAX;

/// Bulk content of all groups that is not yet durable on the target, KiB. Half of the connection's windows
/// (64 MiB): ordered parts always find room in the other half.
pub const BULK_IN_FLIGHT_KIB: u32 = 32 * 1024;

/// Streams of bulk parts of all groups: half of what the target lets be open at a time.
pub const BULK_STREAMS: usize = proto::limits::PARTS_IN_FLIGHT_MAX as usize / 2;

/// Raw bytes that one encoding job takes at most, unless a single frame has more. Large enough to make the hop
/// to a worker thread (about 20 us) cheap, small enough that an ordered part waits a few milliseconds.
pub const ENCODE_BATCH_BYTES: u64 = 512 << 10;

/// Batches of one part that may be encoded ahead of the one being written.
pub const BATCHES_AHEAD: usize = 4;

const _: () = assert!(FROM_LINK_QUEUE >= 4 * PARTS_WINDOW);
const _: () = assert!(BULK_STREAMS > 0 && BULK_STREAMS < proto::limits::PARTS_IN_FLIGHT_MAX as usize);
