//! [`SparseDisk`]: a sparse extent as a disk that grows with what is written.
//!
//! Where a byte lies, and what a loss of power leaves, is the part of `tables`. Zeroed ranges become holes in the file and
//! keep their entries. Who may write, and when, is `apply`'s part.

use std::{ops::Range, sync::Arc};

use blockio::{BlockFile, IoError, SECTOR};

use super::{Damage, Header, SparseError, header::HEADER_BYTES, tables::Tables};
use crate::target::{Disk, Location};

/// Reads the header of an open file.
///
/// # Errors
/// The file is too short, no sparse disk of a kind that is written, or unreadable.
pub fn read_header(file: &BlockFile) -> Result<Header, SparseError> {
    if file.size() < HEADER_BYTES as u64 {
        return Err(Damage::Header("the file is shorter").into());
    }
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Header::parse(&bytes)?)
}

/// A disk in a sparse extent. The file must be locked for as long as it lives.
pub struct SparseDisk {
    name: String,
    tables: Tables<Arc<BlockFile>>,
}

impl SparseDisk {
    /// Surveys a locked file and makes it fit to be written: `tables` says what that changes. Returns the disk and how many
    /// redundant tables differed.
    ///
    /// # Errors
    /// The tables can't be trusted, or the file can't be read or written.
    pub fn open(name: String, file: Arc<BlockFile>, header: Header) -> Result<(SparseDisk, usize), SparseError> {
        let (tables, differing) = Tables::open(file, header)?;
        Ok((SparseDisk { name, tables }, differing))
    }

    /// The grains that a range touches.
    fn grains(&self, offset: u64, len: u64) -> Range<u64> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.size()),
            "{}: {len} bytes at {offset} exceed the disk of {} bytes",
            self.name,
            self.size()
        );
        let grain_bytes = self.tables.header().grain_bytes();
        offset / grain_bytes..(offset + len).div_ceil(grain_bytes)
    }
}

impl Disk for SparseDisk {
    fn size(&self) -> u64 {
        self.tables.header().capacity * SECTOR
    }

    fn alignment(&self) -> u32 {
        self.tables.file().alignment()
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn locate(&self, offset: u64, len: u64) -> Result<Location, IoError> {
        let grain_bytes = self.tables.header().grain_bytes();
        let within = offset % grain_bytes;
        let (place, run) = self.tables.run(self.grains(offset, len))?;
        let len = len.min(run * grain_bytes - within);
        Ok(match place {
            Some(sector) => {
                let file = Arc::clone(self.tables.file());
                Location::File { file, offset: sector * SECTOR + within, len }
            }
            None => Location::Hole { len },
        })
    }

    fn prepare(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.tables.allot(self.grains(offset, len))
    }

    fn sync(&self) -> Result<(), IoError> {
        self.tables.sync()
    }
}
