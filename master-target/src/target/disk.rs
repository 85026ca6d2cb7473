//! [`Disk`]: the one shape of everything that can be a target.
//!
//! A disk says where its bytes lie ([`Disk::locate`]); it moves none itself. So one batch of [`super::DiskIo`] can hold
//! pieces of several files, and apply, restore and the point reader don't know formats.

use std::sync::Arc;

use blockio::{BlockFile, IoError};

/// Where a piece of a disk lies.
#[derive(Clone)]
pub enum Location {
    /// In a file, from `offset`.
    File {
        /// The file.
        file: Arc<BlockFile>,
        /// Where the piece begins in the file, in bytes.
        offset: u64,
        /// How much of the range lies there in one run, in bytes.
        len: u64,
    },
    /// Nowhere: it reads as zeroes, and [`Disk::prepare`] must give it a place before it is written.
    Hole {
        /// How much of the range this is, in bytes.
        len: u64,
    },
}

impl Location {
    /// Length of the piece in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Location::File { len, .. } | Location::Hole { len } => *len,
        }
    }

    /// Whether the piece is empty, which no disk returns for a range that isn't.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether zeroes keep their place on the datastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thickness {
    /// Zeroed ranges give their place back.
    Thin,
    /// Zeroed ranges keep it: the disk was given all of its place, and must not lose it to others.
    Thick,
}

/// A disk that replication writes. Offsets and lengths are bytes, multiples of 512.
pub trait Disk: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// What offsets and lengths must be multiples of to be written without reading first, 512 or more.
    fn alignment(&self) -> u32;

    /// The disk as configured, for messages.
    fn describe(&self) -> String;

    /// The first piece of a range: never longer than the range, never empty unless the range is.
    ///
    /// # Errors
    /// The disk's own tables can't be read.
    fn locate(&self, offset: u64, len: u64) -> Result<Location, IoError>;

    /// Makes a range writable in place, so that [`Disk::locate`] finds no hole in it. Linear disks have nothing to do.
    ///
    /// # Errors
    /// The place can't be had.
    fn prepare(&self, offset: u64, len: u64) -> Result<(), IoError>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// The sync failed: nothing written since the last good one may be relied upon.
    fn sync(&self) -> Result<(), IoError>;

    /// What becomes of the place of zeroed ranges.
    fn thickness(&self) -> Thickness {
        Thickness::Thin
    }
}
