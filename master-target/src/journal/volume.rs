//! Where a journal keeps its files: a flat folder of append-only files, tables that are written in place, and one small
//! file that is replaced whole.
//!
//! The journal speaks to its disk through [`Volume`] only, so that the same code runs on a real folder
//! ([`DirVolume`](super::DirVolume)) and, in simulations, on memory that loses and tears what was never synced
//! ([`MemVolume`](super::MemVolume)). A volume knows nothing of records: that is `segment`.

use std::io;

/// A file operation of a volume that failed.
#[derive(Debug, thiserror::Error)]
#[error("can't {op} {file}{}: {source}; {}", at(*offset), remedy(source))]
pub struct VolumeError {
    /// What was attempted, as a verb.
    pub op: &'static str,
    /// The file, with its folder where there is one.
    pub file: String,
    /// Bytes from the beginning of the file.
    pub offset: Option<u64>,
    /// What the system said.
    pub source: io::Error,
}

fn at(offset: Option<u64>) -> String {
    offset.map_or_else(String::new, |offset| format!(" at offset {offset}"))
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on the retention volume",
        io::ErrorKind::ReadOnlyFilesystem => {
            "make the retention volume writable again (see the kernel's log for why it is not)"
        }
        io::ErrorKind::NotFound => "mount the retention volume again, or bring the file back",
        io::ErrorKind::PermissionDenied => "let the agent read and write the retention volume",
        _ => "check the retention volume, its disk and the kernel's log",
    }
}

impl VolumeError {
    /// True where the volume had no room for the operation.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// What the names of files begin with that are written in place: all others are appended to.
pub const PLACED: &str = "sums-";

/// Result of an operation of a volume.
pub type VolumeResult<T> = Result<T, VolumeError>;

/// A folder of files. Every file has one writer at a time; any number of readers may read what was written. A file is
/// either appended to or, where its name begins with [`PLACED`], written in place.
///
/// Only what [`Volume::sync`] (or a durable operation) covered survives a loss of power; what was written later may be
/// there whole, in part, with holes, or not at all.
pub trait Volume: Send + Sync {
    /// Makes an empty file, durably. Fails where the name is taken.
    fn create(&self, name: &str) -> VolumeResult<()>;

    /// Adds bytes at the end. After an error any part of them may have been added.
    fn append(&self, name: &str, bytes: &[u8]) -> VolumeResult<()>;

    /// Writes bytes in place, in a file whose name begins with [`PLACED`]. What lies between the end of the file and
    /// `offset` reads as zeroes. After an error any part of them may have been written.
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> VolumeResult<()>;

    /// Makes all that was written so far durable.
    fn sync(&self, name: &str) -> VolumeResult<()>;

    /// Says that nothing more is going to be appended: what the volume keeps open for the writer may be closed.
    fn finish(&self, name: &str);

    /// Says that a range that is durable is not going to be read soon. Caches may drop it; nothing else changes.
    fn uncache(&self, _name: &str, _offset: u64, _len: u64) {}

    /// Fills `buf` from `offset`; a file that ends before is an error of kind `UnexpectedEof`.
    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> VolumeResult<()>;

    /// Bytes of the file.
    fn len(&self, name: &str) -> VolumeResult<u64>;

    /// Names of all files, in no particular order.
    fn list(&self) -> VolumeResult<Vec<String>>;

    /// Removes a file; whether the removal survives a loss of power is open.
    fn remove(&self, name: &str) -> VolumeResult<()>;

    /// Puts `bytes` in the place of the file, durably and at once: afterwards there is the old content or the new.
    fn replace(&self, name: &str, bytes: &[u8]) -> VolumeResult<()>;

    /// Bytes that can still be written.
    fn free_bytes(&self) -> VolumeResult<u64>;

    /// The file as a person would name it.
    fn describe(&self, name: &str) -> String;
}

impl<V: Volume + ?Sized> Volume for std::sync::Arc<V> {
    fn create(&self, name: &str) -> VolumeResult<()> {
        (**self).create(name)
    }
    fn append(&self, name: &str, bytes: &[u8]) -> VolumeResult<()> {
        (**self).append(name, bytes)
    }
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> VolumeResult<()> {
        (**self).write_at(name, offset, bytes)
    }
    fn sync(&self, name: &str) -> VolumeResult<()> {
        (**self).sync(name)
    }
    fn finish(&self, name: &str) {
        (**self).finish(name);
    }
    fn uncache(&self, name: &str, offset: u64, len: u64) {
        (**self).uncache(name, offset, len);
    }
    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> VolumeResult<()> {
        (**self).read_at(name, offset, buf)
    }
    fn len(&self, name: &str) -> VolumeResult<u64> {
        (**self).len(name)
    }
    fn list(&self) -> VolumeResult<Vec<String>> {
        (**self).list()
    }
    fn remove(&self, name: &str) -> VolumeResult<()> {
        (**self).remove(name)
    }
    fn replace(&self, name: &str, bytes: &[u8]) -> VolumeResult<()> {
        (**self).replace(name, bytes)
    }
    fn free_bytes(&self) -> VolumeResult<u64> {
        (**self).free_bytes()
    }
    fn describe(&self, name: &str) -> String {
        (**self).describe(name)
    }
}
