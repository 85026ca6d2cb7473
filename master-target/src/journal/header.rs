//! Headers of the records that only journals have (docs/journal-format.md), and the names of segment files.
//!
//! Frames stand in a journal as they were received and seals as the source sent them; what is here is what a target
//! adds on its own.

use std::fmt;

use prost::Message;

/// First record of every segment: which journal, and which place in it, the file belongs to.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SegmentHeader {
    /// 16 random bytes of the journal, for as long as it lives.
    #[prost(bytes = "vec", tag = "1")]
    pub journal: Vec<u8>,
    /// 0 for redo, else the generation whose undo it is.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// Running number among the segments of its kind.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// Redo: the phase that its frames belong to.
    #[prost(uint64, tag = "4")]
    pub phase: u64,
}

/// Closes a part in redo: like the `PartEnd` of the wire, and which part it is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PartClosed {
    /// Frames of the part: the last so many of it before this record.
    #[prost(uint32, tag = "1")]
    pub frames: u32,
    /// Sum of the sectors of their extents.
    #[prost(uint64, tag = "2")]
    pub sectors: u64,
    /// Set number.
    #[prost(uint64, tag = "3")]
    pub number: u64,
    /// Index in the set.
    #[prost(uint32, tag = "4")]
    pub part: u32,
}

/// Stands before each group commit of a segment, and in an undo segment after each sync of the disks.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CommitHeader {
    /// The counter of rule L1 that the acknowledgement of this commit carries.
    #[prost(uint64, tag = "1")]
    pub counter: u64,
    /// Bytes of this segment that an earlier sync has made durable: a bad record among them is damage.
    #[prost(uint64, tag = "2")]
    pub synced_bytes: u64,
    /// Applied marks: all sets up to this one are on the disks, durably.
    #[prost(uint64, tag = "3")]
    pub applied: u64,
    /// 16 random bytes of the journal: content of a guest that happens to look like a record does not have them.
    #[prost(bytes = "vec", tag = "4")]
    pub journal: Vec<u8>,
    /// What is durable of the open segment of the other kind: redo vouches for undo, and undo for redo (rule J16).
    #[prost(message, optional, tag = "5")]
    pub other: Option<SegmentBytes>,
}

/// A segment and how many of its bytes count.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SegmentBytes {
    /// 0 for redo, else the generation whose undo it is.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    /// Its index.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Bytes that count.
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
}

impl SegmentBytes {
    /// So many bytes of a segment.
    #[must_use]
    pub fn of(id: SegmentId, bytes: u64) -> Self {
        Self { generation: id.generation, index: id.index, bytes }
    }

    /// The segment.
    #[must_use]
    pub fn id(&self) -> SegmentId {
        SegmentId { generation: self.generation, index: self.index }
    }
}

/// Content of blocks from before they were overwritten for the first time in a generation. The payload has the blocks
/// of all runs that are not zero, one after the other.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UndoHeader {
    /// Runs in payload order.
    #[prost(message, repeated, tag = "1")]
    pub runs: Vec<UndoRun>,
}

/// Blocks of one disk that follow each other.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UndoRun {
    /// Index of the disk.
    #[prost(uint32, tag = "1")]
    pub disk: u32,
    /// First block, 4 KiB each.
    #[prost(uint64, tag = "2")]
    pub block: u64,
    /// Number of blocks; the last block of a disk may be short.
    #[prost(uint32, tag = "3")]
    pub blocks: u32,
    /// All of them were zero: no payload and no CRCs.
    #[prost(bool, tag = "4")]
    pub zero: bool,
    /// CRC-32 of each block.
    #[prost(fixed32, repeated, tag = "5")]
    pub crcs: Vec<u32>,
    /// The disk had rotted: what was saved is not what was written, and its CRCs are wrong on purpose.
    #[prost(bool, tag = "6")]
    pub damaged: bool,
}

/// A segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// 0 for redo, else the generation whose undo it is.
    pub generation: u64,
    /// Running number among the segments of its kind, from 1.
    pub index: u64,
}

impl SegmentId {
    /// The redo segment of this index.
    #[must_use]
    pub fn redo(index: u64) -> Self {
        Self { generation: 0, index }
    }

    /// True for redo, false for undo.
    #[must_use]
    pub fn is_redo(self) -> bool {
        self.generation == 0
    }

    /// The segment of a file name; `None` for other files.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
        let id = match name.split_once('-')? {
            ("redo", index) => Self::redo(number(index)?),
            ("undo", rest) => {
                let (generation, index) = rest.split_once('-')?;
                Self { generation: number(generation)?, index: number(index)? }
            }
            _ => return None,
        };
        (id.to_string() == name).then_some(id)
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_redo() {
            write!(f, "redo-{:08}", self.index)
        } else {
            write!(f, "undo-{:08}-{:08}", self.generation, self.index)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_names_read_back() {
        for id in [SegmentId::redo(7), SegmentId { generation: 3, index: 1_234_567_890 }] {
            assert_eq!(SegmentId::of_name(&id.to_string()), Some(id));
        }
    }

    #[test]
    fn other_names_are_no_segments() {
        for name in [
            "manifest",
            "redo-",
            "redo-0",
            "redo-1",
            "redo-00000000",
            "undo-00000001",
            "redo-0000000x",
            "lock",
            "undo-00000001-00000001.tmp",
        ] {
            assert_eq!(SegmentId::of_name(name), None, "{name}");
        }
    }
}
