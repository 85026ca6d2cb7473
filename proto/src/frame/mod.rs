//! Frames: the extents of a part of a change set as records, and back.
//!
//! The source gathers extents into frames ([`split_frames`]) and encodes them ([`Encoder`]); the target checks and
//! decodes what arrives ([`Decoder`]), and again what it reads from its journal. A frame's payload is its data
//! extents one after the other, raw or as one zstd frame. Each data extent carries the CRC that its bytes had when
//! they were captured; it is checked before encoding and after decoding (P6). Nothing here does I/O.

mod decode;
mod delta;
mod encode;
mod parcel;
mod sample;
mod split;

#[cfg(test)]
mod tests;

pub use decode::{DecodedFrame, Decoder, parse_header};
pub use delta::{BASE_BYTES, Base, Bases, ranges as delta_ranges};
pub use encode::{Compression, EncodedFrame, Encoder, RawContent, RawExtent};
pub use parcel::{EncodedBatch, Keep, PARCEL_BYTES_MAX, Parcel, ParcelRun};
pub use split::split_frames;

use thiserror::Error;

use crate::ids::DiskIndex;
use crate::record::{RecordError, RecordKind};

/// Why extents can't be a frame, or bytes are not one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Another kind of record stands where a frame is expected.
    #[error("a {found:?} record stands where a frame belongs")]
    Kind {
        /// The kind that is there.
        found: RecordKind,
    },
    /// The record or its header is malformed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The header contradicts itself or goes beyond a bound.
    #[error("a frame header is refused: {what}")]
    Header {
        /// What is wrong with it.
        what: String,
    },
    /// An extent is empty, too long, or beyond the end of a disk.
    #[error("disk {disk}, sector {sector}: the extent is refused: {what}")]
    Extent {
        /// Index of the disk in its group.
        disk: DiskIndex,
        /// First sector of the extent.
        sector: u64,
        /// What is wrong with it.
        what: String,
    },
    /// Content differs from what was captured.
    #[error("disk {disk}, sector {sector}: content is damaged: its CRC is {found:#010x} instead of {expected:#010x}")]
    ExtentCrc {
        /// Index of the disk in its group.
        disk: DiskIndex,
        /// First sector of the extent.
        sector: u64,
        /// CRC that the extent carries.
        expected: u32,
        /// CRC of the bytes.
        found: u32,
    },
    /// The payload does not decode to the declared length.
    #[error("the payload of a frame can't be decoded: {what}")]
    Payload {
        /// What is wrong with it.
        what: String,
    },
    /// A delta is laid over something else than its source meant.
    #[error("disk {disk}, sector {sector}: a delta came over content that the disk does not hold")]
    Base {
        /// Index of the disk in its group.
        disk: DiskIndex,
        /// First sector of the first delta of the frame.
        sector: u64,
    },
    /// zstd could not make a context: out of memory.
    #[error("zstd has no context: {what}")]
    Context {
        /// What zstd says.
        what: String,
    },
}
