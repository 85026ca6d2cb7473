//! New content of the disks, merged from extents: a later one replaces what it overlaps.

use blockio::{ExtentMap, Slice};
use bytes::Bytes;
use proto::frame::DecodedFrame;
use proto::replication::{Content, FrameHeader};

use crate::journal::limits::SECTOR_BYTES;

/// Memory that an extent takes beside its data, with its place in the map.
const EXTENT_BYTES: u64 = 128;

/// Content of a range of sectors.
#[derive(Debug, Clone)]
pub(super) enum Fresh {
    /// These bytes.
    Data(Bytes),
    /// Zeroes.
    Zero,
    /// Something that is lost: the journal had it and it rotted there.
    Lost,
}

impl Slice for Fresh {
    fn slice(&self, from: u64, len: u64) -> Self {
        match self {
            Self::Data(bytes) => {
                let from = (from * SECTOR_BYTES) as usize;
                Self::Data(bytes.slice(from..from + (len * SECTOR_BYTES) as usize))
            }
            Self::Zero => Self::Zero,
            Self::Lost => Self::Lost,
        }
    }
}

/// New content by disk and sector.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub disks: Vec<ExtentMap<Fresh>>,
    /// Bytes of memory held, roughly.
    pub bytes: u64,
}

impl Merged {
    /// Adds a frame over what is there. Extents that could not be read leave the old content (rule S17).
    pub fn add(&mut self, frame: &DecodedFrame) {
        for (extent, data) in frame.extents() {
            let fresh = match (extent.content(), data) {
                (Content::Data, Some(data)) => Fresh::Data(data),
                (Content::Zero, _) => Fresh::Zero,
                _ => continue,
            };
            self.insert(extent.disk, extent.sector, u64::from(extent.sectors), fresh);
        }
        self.bytes += frame.raw.len() as u64 + frame.header.extents.len() as u64 * EXTENT_BYTES;
    }

    /// Adds a frame whose payload is lost over what is there.
    pub fn add_lost(&mut self, header: &FrameHeader) {
        for extent in &header.extents {
            let fresh = match extent.content() {
                Content::Data => Fresh::Lost,
                Content::Zero => Fresh::Zero,
                Content::Unreadable => continue,
            };
            self.insert(extent.disk, extent.sector, u64::from(extent.sectors), fresh);
        }
        self.bytes += header.extents.len() as u64 * EXTENT_BYTES;
    }

    /// Adds one range over what is there.
    pub fn insert(&mut self, disk: u32, sector: u64, sectors: u64, fresh: Fresh) {
        let disk = disk as usize;
        if self.disks.len() <= disk {
            self.disks.resize_with(disk + 1, ExtentMap::new);
        }
        self.disks[disk].insert(sector, sectors, fresh);
    }

    /// True where there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.disks.iter().all(ExtentMap::is_empty)
    }
}
