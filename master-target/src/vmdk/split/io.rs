//! [`SplitDisk`]: flat files one behind the other as one disk.

use std::sync::Arc;

use blockio::{BlockFile, IoError};

use super::map::PartMap;
use crate::target::{Disk, Location, Thickness};

/// A part of a disk, in a file that is locked for as long as the disk lives.
pub struct SplitPart {
    /// The file.
    pub file: Arc<BlockFile>,
    /// Where the part begins in it, in bytes.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// A disk in several files.
pub struct SplitDisk {
    name: String,
    parts: Vec<SplitPart>,
    map: PartMap,
    thickness: Thickness,
}

impl SplitDisk {
    /// The disk `name` of these parts, in order; each file must hold its part.
    pub fn new(name: String, parts: Vec<SplitPart>, thickness: Thickness) -> Self {
        for part in &parts {
            let fits = part.start.checked_add(part.size).is_some_and(|end| end <= part.file.size());
            assert!(fits, "{name}: a part exceeds {}", part.file.path().display());
        }
        let map = PartMap::new(parts.iter().map(|part| part.size));
        SplitDisk { name, parts, map, thickness }
    }
}

impl Disk for SplitDisk {
    fn size(&self) -> u64 {
        self.map.size()
    }

    fn alignment(&self) -> u32 {
        self.parts.iter().map(|part| part.file.alignment()).max().unwrap_or(blockio::SECTOR as u32)
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn locate(&self, offset: u64, len: u64) -> Result<Location, IoError> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.size()),
            "{}: {len} bytes at {offset} exceed the disk of {} bytes",
            self.name,
            self.size()
        );
        let (part, within, len) = self.map.locate(offset, len);
        let part = &self.parts[part];
        Ok(Location::File { file: Arc::clone(&part.file), offset: part.start + within, len })
    }

    fn prepare(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), IoError> {
        // All of them, also after a failure: the error tells of one file, the next sync of all.
        let mut outcome = Ok(());
        for part in &self.parts {
            outcome = outcome.and(part.file.sync());
        }
        outcome
    }

    fn thickness(&self) -> Thickness {
        self.thickness
    }
}
