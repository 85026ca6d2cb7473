//! The bounds of everything that a peer, a journal or a configuration may declare.
//!
//! Every length read from outside is compared with one of these before memory is allocated by its word. The
//! assertions at the end tie the bounds to each other, so that one can't be changed without the rest.

use crate::digest;

/// Version of the conversation. Peers with another version refuse each other in words.
pub const PROTOCOL_VERSION: u32 = 1;

/// Bytes of a sector, the unit of extents.
pub const SECTOR_BYTES: u64 = 512;

/// Largest disk: 64 TiB, one step above the 62 TiB that VMFS allows.
pub const DISK_BYTES_MAX: u64 = 1 << 46;

/// Largest disk, in sectors.
pub const DISK_SECTORS_MAX: u64 = DISK_BYTES_MAX / SECTOR_BYTES;

/// Disks of one group. 60 attached disks is what a master target VM can hold.
pub const DISKS_PER_GROUP_MAX: usize = 64;

/// Ranges that a target names as missing at most: its journal lists no more.
pub const MISSING_RUNS_MAX: usize = 2048;

/// Groups that two agents talk about on one connection.
pub const GROUPS_PER_CONNECTION_MAX: usize = 1024;

/// Bytes of a group, disk or agent name.
pub const NAME_BYTES_MAX: usize = 63;

/// Bytes of the label of a recovery point.
pub const LABEL_BYTES_MAX: usize = 256;

/// Bytes of a reason code or of a sentence for people.
pub const TEXT_BYTES_MAX: usize = 2048;

/// Bytes of a protobuf message on the control stream, without its length prefix.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Parts that `GroupOpened` may list as durable.
pub const DURABLE_PARTS_MAX: usize = 16_384;

/// Most bytes that one `PartKey` takes inside `GroupOpened`: two tags with lengths and two varints.
const PART_KEY_BYTES_MAX: usize = 2 + 11 + 6;

/// Most bytes that one `DiskSpec` takes inside `OpenGroup`.
const DISK_SPEC_BYTES_MAX: usize = 2 + 2 + NAME_BYTES_MAX + 11 + 6;

/// Most bytes that one `SourceGroupBeat` takes inside `SourceHeartbeat`.
const GROUP_BEAT_BYTES_MAX: usize = 3 + 2 + NAME_BYTES_MAX + 3 * 11 + 2;

/// Ranges of one `CompareBlocks`. The source makes one of each extent that it read.
pub const COMPARE_RUNS_MAX: usize = 256;

/// Units of all ranges of one `CompareBlocks`: 1 GiB of content, or one zero extent of the largest size.
pub const COMPARE_UNITS_MAX: usize = 16_384;

/// Most bytes that one `CompareRun` takes inside `CompareBlocks`, without its digests: two tags with lengths and three
/// varints with theirs.
const COMPARE_RUN_BYTES_MAX: usize = 5 + 6 + 11 + 6 + 5;

/// Bytes of a record before its header.
pub const RECORD_PREFIX_BYTES: usize = 24;

/// Bytes of the protobuf header of a record.
pub const RECORD_HEADER_BYTES_MAX: usize = 64 << 10;

/// Bytes of the payload of a record. Content that zstd doesn't shrink is sent raw, so no encoding needs more.
pub const RECORD_PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Bytes of a whole record.
pub const RECORD_BYTES_MAX: usize = RECORD_PREFIX_BYTES + RECORD_HEADER_BYTES_MAX + RECORD_PAYLOAD_BYTES_MAX;

/// Bytes of the data of one frame once decoded.
pub const FRAME_RAW_BYTES_MAX: usize = 1 << 20;

/// Bytes of data up to which small extents are gathered in one frame. zstd has found nearly all there is to find
/// in 128 KiB, and a frame is what is decoded to read one sector of a point.
pub const FRAME_GATHER_BYTES: usize = 128 << 10;

/// Extents of one frame.
pub const FRAME_EXTENTS_MAX: usize = 1024;

/// Most bytes that one `Extent` takes inside `FrameHeader`.
const EXTENT_BYTES_MAX: usize = 2 + 6 + 11 + 6 + 5 + 2;

/// Sectors of a data extent: it has to fit one frame.
pub const DATA_SECTORS_MAX: u32 = (FRAME_RAW_BYTES_MAX as u64 / SECTOR_BYTES) as u32;

/// Sectors of a zero or unreadable extent, 1 GiB. A header of 30 bytes must not ask the target for a terabyte of work.
pub const RANGE_SECTORS_MAX: u32 = 1 << 21;

/// Parts of one set.
pub const PARTS_PER_SET_MAX: u32 = 1 << 20;

/// Frames of one part.
pub const PART_FRAMES_MAX: u32 = 4096;

/// Bytes of one part on the wire.
pub const PART_BYTES_MAX: u64 = 256 << 20;

/// Bytes of data at which a source closes a part and begins the next: what a lost connection sends again.
pub const PART_AIM_BYTES: u64 = 8 << 20;

/// Part streams that the target lets a source have open at a time, over all groups.
pub const PARTS_IN_FLIGHT_MAX: u32 = 64;

/// Bytes of a configuration file.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a PEM file.
pub const PEM_BYTES_MAX: u64 = 1 << 20;

/// Bytes of the path of a unix socket: `sun_path` is 108 bytes with its terminator.
pub const UNIX_PATH_BYTES_MAX: usize = 107;

const _: () = {
    assert!(DISK_BYTES_MAX.is_multiple_of(SECTOR_BYTES));
    assert!(FRAME_RAW_BYTES_MAX <= RECORD_PAYLOAD_BYTES_MAX, "a raw frame is its payload");
    assert!(FRAME_GATHER_BYTES <= FRAME_RAW_BYTES_MAX);
    assert!(DATA_SECTORS_MAX as u64 * SECTOR_BYTES == FRAME_RAW_BYTES_MAX as u64, "an extent of the largest size fits");
    assert!(FRAME_EXTENTS_MAX * EXTENT_BYTES_MAX + 64 <= RECORD_HEADER_BYTES_MAX, "every legal frame header fits");
    assert!(FRAME_GATHER_BYTES as u64 / SECTOR_BYTES <= FRAME_EXTENTS_MAX as u64, "single sectors fill a frame");
    assert!(DURABLE_PARTS_MAX * PART_KEY_BYTES_MAX + 1024 <= MESSAGE_BYTES_MAX, "every legal GroupOpened fits");
    assert!(DISKS_PER_GROUP_MAX * DISK_SPEC_BYTES_MAX + 1024 <= MESSAGE_BYTES_MAX, "every legal OpenGroup fits");
    assert!(GROUPS_PER_CONNECTION_MAX * GROUP_BEAT_BYTES_MAX + 64 <= MESSAGE_BYTES_MAX, "every legal heartbeat fits");
    let compare_bytes = COMPARE_RUNS_MAX * COMPARE_RUN_BYTES_MAX + COMPARE_UNITS_MAX * digest::DIGEST_BYTES;
    assert!(compare_bytes + 1024 <= MESSAGE_BYTES_MAX, "every legal CompareBlocks fits");
    assert!(COMPARE_UNITS_MAX.is_multiple_of(8) && COMPARE_UNITS_MAX / 8 + 1024 <= MESSAGE_BYTES_MAX);
    assert!(COMPARE_UNITS_MAX as u64 * digest::UNIT_BYTES as u64 >= RANGE_SECTORS_MAX as u64 * SECTOR_BYTES);
    assert!(digest::UNIT_BYTES.is_multiple_of(SECTOR_BYTES as usize));
    assert!(PART_BYTES_MAX >= RECORD_BYTES_MAX as u64, "a part can carry the largest frame");
    // Two neighbouring frames hold more than FRAME_GATHER_BYTES together, or the splitter had joined them.
    assert!(2 * PART_AIM_BYTES / FRAME_GATHER_BYTES as u64 + 1 < PART_FRAMES_MAX as u64, "a part fits its frames");
    assert!(2 * PART_AIM_BYTES < PART_BYTES_MAX);
    assert!(RECORD_BYTES_MAX < u32::MAX as usize);
};
