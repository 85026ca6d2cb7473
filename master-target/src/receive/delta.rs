//! Frames with deltas: made whole before anything else sees them.
//!
//! A source that knows what the target has of a block may send what its new content differs in. The base is read by the
//! thread that writes the disks, after it has applied the set that the source names. The frame is encoded anew, whole: the
//! journal holds nothing that needs something else to be read. A base that is not what the source meant (its checksum
//! says so) means that a disk has rotted, or a mistake: the part is refused, and no more deltas are asked for.

use proto::frame::{Compression, DecodedFrame, Encoder, FrameError, delta_ranges, parse_header};
use proto::record::Record;
use proto::replication::{PartBegin, PartKind};

use super::spares::Spares;

/// The journal's redo is compressed as if it had come whole.
const LEVEL: Compression = Compression::Zstd(1);
/// Encoders that wait for the next frame.
const ENCODERS_KEPT: usize = 4;

/// What has to be read before a frame can be decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct BaseNeeded {
    /// What this set, and those before it, left there.
    pub set: u64,
    /// Disk, first sector, sectors.
    pub ranges: Vec<(u32, u64, u32)>,
}

/// What a frame of this part needs to be decoded, where it has deltas. Bulk content has none: it is refused when it is decoded.
pub fn base_needed(begin: &PartBegin, record: &Record) -> Result<Option<BaseNeeded>, FrameError> {
    let header = parse_header(record)?;
    let ranges: Vec<_> = delta_ranges(&header).collect();
    let needs = !ranges.is_empty() && begin.kind() == PartKind::Ordered;
    Ok(needs.then_some(BaseNeeded { set: header.base_set, ranges }))
}

/// Encoders that parts share.
#[derive(Default)]
pub struct Encoders(Spares<Encoder, ENCODERS_KEPT>);

impl Encoders {
    /// The frame as a record that needs no base.
    pub fn whole(&self, frame: &DecodedFrame) -> Result<Record, FrameError> {
        let (number, part) = (frame.header.number, frame.header.part);
        let encoded = self.0.with(|encoder| encoder.encode(number, part, &frame.to_raw(), LEVEL));
        Ok(encoded?.to_record())
    }
}
