//! [`LinearDisk`]: a disk whose bytes lie in order in one file: raw files, block devices, flat and VMFS extents.

use std::sync::Arc;

use blockio::{BlockFile, IoError};

use super::{Disk, Location, Thickness};

/// A disk at one offset of one file.
pub struct LinearDisk {
    file: Arc<BlockFile>,
    start: u64,
    size: u64,
    thickness: Thickness,
    name: String,
}

impl LinearDisk {
    /// The disk `name` of `size` bytes from byte `start` of `file`, which must hold it.
    pub fn new(name: String, file: Arc<BlockFile>, start: u64, size: u64, thickness: Thickness) -> Self {
        assert!(start.checked_add(size).is_some_and(|end| end <= file.size()), "{name}: the disk exceeds its file");
        LinearDisk { file, start, size, thickness, name }
    }
}

impl Disk for LinearDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn alignment(&self) -> u32 {
        self.file.alignment()
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn locate(&self, offset: u64, len: u64) -> Result<Location, IoError> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.size),
            "{}: {len} bytes at {offset} exceed the disk of {} bytes",
            self.name,
            self.size
        );
        Ok(Location::File { file: Arc::clone(&self.file), offset: self.start + offset, len })
    }

    fn prepare(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), IoError> {
        self.file.sync()
    }

    fn thickness(&self) -> Thickness {
        self.thickness
    }
}
