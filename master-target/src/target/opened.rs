//! [`Opened`]: a target that is open and locked, what told it from others when it was found, and how it is let go.
//!
//! The order of releasing is rule L7's: content synced, a new content id, then the locks. In between nothing may write
//! to the disk; seeing to that is the caller's part, as is remembering the [`Identity`].

use std::{os::unix::fs::MetadataExt, sync::Arc};

use blockio::BlockFile;

use super::{Disk, TargetError, error::TargetFault};
use crate::vmdk::{Cid, DescriptorFile};

/// What tells whether a target is the one that was left, and as it was left (REVIEW L2).
///
/// Equal after a clean release: nobody honest wrote in between. Raw files and devices have no content id, and can
/// only be told by size and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The content id, of a VMDK.
    pub cid: Option<Cid>,
    /// The disk's size in bytes.
    pub size: u64,
    /// Device number of the file system that holds the data, or of the block device itself.
    pub device: u64,
    /// Inode of the data file, or a number made of those of all; 0 for a block device, whose node is made anew at each
    /// start.
    pub inode: u64,
}

impl Identity {
    /// The identity of a disk whose data lies in these files.
    pub(super) fn of_files(files: &[Arc<BlockFile>], size: u64, cid: Option<Cid>) -> Result<Identity, TargetFault> {
        let mut identity = Identity { cid, size, device: 0, inode: 0 };
        for (index, file) in files.iter().enumerate() {
            let read_error = |source| TargetFault::Read { path: file.path().to_owned(), source };
            let found = file.path().metadata().map_err(read_error)?;
            // A regular file has no device number of its own.
            let (device, inode) = if found.rdev() == 0 { (found.dev(), found.ino()) } else { (found.rdev(), 0) };
            identity.device = device;
            // One file counts as it is; of several each one, and their order.
            identity.inode = if index == 0 { inode } else { identity.inode.rotate_left(7) ^ inode };
        }
        Ok(identity)
    }
}

/// An open, locked target.
pub struct Opened {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Whether it was made by this opening, and so reads as zeroes.
    pub created: bool,
    /// What the operator should know; the disk works all the same.
    pub notices: Vec<String>,
    pub(super) identity: Identity,
    pub(super) descriptor: Option<DescriptorFile>,
    pub(super) data: Vec<Arc<BlockFile>>,
}

impl Opened {
    /// The identity: as found, and after each stamp with the new content id.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The content id, of a VMDK.
    pub fn cid(&self) -> Option<Cid> {
        self.identity.cid
    }

    /// When the data was last written, microseconds since 1970; 0 where the system doesn't tell, as of a block device.
    pub fn written_us(&self) -> u64 {
        let of_file = |file: &Arc<BlockFile>| {
            let found = file.path().metadata().ok().filter(|found| found.rdev() == 0)?;
            Some(u64::try_from(found.mtime()).unwrap_or(0) * 1_000_000 + found.mtime_nsec() as u64 / 1000)
        };
        self.data.iter().filter_map(of_file).max().unwrap_or(0)
    }

    /// An id for [`Opened::stamp`], to be remembered before it is on disk; `None` if the target has none.
    ///
    /// # Errors
    /// The system has no random number.
    pub fn draw_cid(&self) -> Result<Option<Cid>, TargetError> {
        let drawn = self.descriptor.as_ref().map(DescriptorFile::draw).transpose();
        drawn.map_err(|e| self.error(e.into()))
    }

    /// Durably puts an id that [`Opened::draw_cid`] has given into the descriptor.
    ///
    /// # Errors
    /// The descriptor can't be written, or was changed by somebody else.
    ///
    /// # Panics
    /// The target has no content id, or the id wasn't drawn for it.
    pub fn stamp(&mut self, cid: Cid) -> Result<(), TargetError> {
        let descriptor = self.descriptor.as_mut().expect("only a VMDK has a content id");
        let stamped = descriptor.stamp(cid);
        stamped.map_err(|e| self.error(e.into()))?;
        self.identity.cid = Some(cid);
        Ok(())
    }

    /// Gives a VMDK a new content id, durably, and returns it: at open, before the first write, and at release.
    ///
    /// # Errors
    /// As of [`Opened::draw_cid`] and [`Opened::stamp`].
    pub fn stamp_cid(&mut self) -> Result<Option<Cid>, TargetError> {
        let drawn = self.draw_cid()?;
        if let Some(cid) = drawn {
            self.stamp(cid)?;
        }
        Ok(drawn)
    }

    /// Makes the content durable, gives the locks back, and returns the identity to find the target by again.
    ///
    /// A clone of [`Opened::disk`] that outlives this must not be written any more.
    ///
    /// # Errors
    /// The content can't be made durable (the locks stay), or the system refuses to unlock.
    pub fn release(self) -> Result<Identity, TargetError> {
        self.disk.sync().map_err(|e| self.error(e.into()))?;
        for file in &self.data {
            file.unlock().map_err(|e| self.error(e.into()))?;
        }
        if let Some(descriptor) = &self.descriptor {
            descriptor.unlock().map_err(|e| self.error(e.into()))?;
        }
        Ok(self.identity)
    }

    fn error(&self, fault: TargetFault) -> TargetError {
        TargetError { target: self.disk.describe(), fault }
    }
}
