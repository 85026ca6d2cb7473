//! Why a target can't be opened: which one, what is in the way, and what to do.

use std::{io, path::PathBuf};

use blockio::{IoError, LockError};

use super::FolderError;
use crate::vmdk::{CreateError, SparseError, StampError, Unsupported};

/// A target can't be opened or released.
#[derive(Debug, thiserror::Error)]
#[error("target {target}: {fault}")]
pub struct TargetError {
    /// The target as configured.
    pub target: String,
    /// What is in the way.
    pub fault: TargetFault,
}

/// What is in the way of a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetFault {
    /// It doesn't exist, and can't be created before the source's size is known.
    #[error("{0} doesn't exist yet; it is created when its source has told its size")]
    Missing(PathBuf),
    /// A device that isn't there; a device is never created.
    #[error("there is no device {0}: attach it, or correct its path")]
    NoDevice(PathBuf),
    /// The folder of a raw file isn't there.
    #[error("its folder {0} doesn't exist: create it, or correct the path")]
    NoFolder(PathBuf),
    /// The datastore's name isn't configured.
    #[error("there is no datastore named {name:?} (configured: {known}): add a [[datastore]], or correct the name")]
    NoDatastore {
        /// The name.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// A directory, socket or other thing that holds no disk.
    #[error("{0} is neither a regular file nor a block device: name one of these")]
    NotADisk(PathBuf),
    /// The path leads out of the datastore, or nowhere.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Smaller than its source.
    #[error("its size is {size} bytes, but its source has {source_size}: grow it, or name a target that is as large")]
    TooSmall {
        /// The target's size.
        size: u64,
        /// The source's.
        source_size: u64,
    },
    /// A VMDK of a kind that isn't written.
    #[error("{path} can't be a target: {why}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Which kind, and what to do.
        why: Unsupported,
    },
    /// Another format, or a flat disk's data.
    #[error("{path} is {what}, not a VMDK's descriptor: {remedy}")]
    NotAVmdk {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A snapshot stands on this disk.
    #[error("{snapshot} is a snapshot of it, and would be corrupted: delete (consolidate) the machine's snapshots")]
    HasSnapshot {
        /// The snapshot's descriptor.
        snapshot: PathBuf,
    },
    /// The data file isn't there.
    #[error("its data file {0} is missing: restore it, or remove the descriptor so that the disk is created anew")]
    NoExtent(PathBuf),
    /// The data file is the descriptor itself.
    #[error("its descriptor {0} names itself as data file: the descriptor is damaged, restore it")]
    SelfExtent(PathBuf),
    /// A data file stands for two parts of the disk.
    #[error("its data file {0} is named twice: the descriptor is damaged, restore it")]
    ExtentTwice(PathBuf),
    /// A sparse file whose tables can't be trusted.
    #[error("{path} can't be a target: {why}")]
    Sparse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: SparseError,
    },
    /// The data file ends before the disk does.
    #[error(
        "its data file {path} has {size} bytes, but the descriptor needs {needed}: restore the file, or correct the descriptor"
    )]
    ShortExtent {
        /// The data file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// Offset and size of the disk in it.
        needed: u64,
    },
    /// Somebody else uses it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A block device that is mounted, or held by another program.
    #[error("{0} is in use (mounted, part of LVM or md, or open in another program): release it first")]
    DeviceBusy(PathBuf),
    /// A new VMDK can't be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The descriptor can't be used or stamped.
    #[error(transparent)]
    Stamp(#[from] StampError),
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A folder or file beside the target can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The path.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
}

impl TargetError {
    /// Whether the target can be opened once its source's size is known.
    pub fn is_missing(&self) -> bool {
        matches!(self.fault, TargetFault::Missing(_))
    }
}
