//! The error of every operation on a file or device: what was done, where, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// An operation on a file, directory or block device failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op} {}{}: {source}{}", .path.display(), At(*.offset), Remedy(.source))]
pub struct IoError {
    /// What was attempted, as a verb: "read", "write", "sync".
    pub op: &'static str,
    /// The file or device.
    pub path: PathBuf,
    /// Where in the file, in bytes, for operations that have a place.
    pub offset: Option<u64>,
    /// What the system answered.
    #[source]
    pub source: io::Error,
}

impl IoError {
    /// An error of `op` on the whole of `path`.
    pub fn new(op: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { op, path: path.to_owned(), offset: None, source: source.into() }
    }

    /// An error of `op` at byte `offset` of `path`.
    pub fn at(op: &'static str, path: &Path, offset: u64, source: impl Into<io::Error>) -> Self {
        Self { offset: Some(offset), ..Self::new(op, path, source) }
    }

    /// The kind of the underlying error.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// The errno of the underlying error, if the system gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// The same failure once more, for each of several that waited for one operation.
    pub(crate) fn duplicate(&self) -> Self {
        let source = match self.source.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(self.source.kind(), self.source.to_string()),
        };
        Self { op: self.op, path: self.path.clone(), offset: self.offset, source }
    }
}

struct At(Option<u64>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(offset) => write!(f, " at byte {offset}"),
            None => Ok(()),
        }
    }
}

struct Remedy<'a>(&'a io::Error);

impl fmt::Display for Remedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.raw_os_error() {
            Some(libc::ENOSPC) => "; free space on its volume",
            Some(libc::EDQUOT) => "; raise its disk quota",
            Some(libc::EROFS) => "; mount its file system writable",
            Some(libc::EACCES | libc::EPERM) => "; give the agent's user access to it",
            Some(libc::ENOENT) => "; check the path",
            Some(libc::EBUSY) => "; unmount it or stop the program that holds it",
            Some(libc::EIO) => "; check the device's health in the kernel log",
            Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open files",
            _ => "",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_operation_path_place_cause_and_remedy() {
        let error = IoError::at("write", Path::new("/d/os.vmdk"), 4096, io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(
            error.to_string(),
            "cannot write /d/os.vmdk at byte 4096: No space left on device (os error 28); free \
             space on its volume"
        );
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn a_duplicate_keeps_errno_and_text() {
        let path = Path::new("/x");
        let of_system = IoError::new("sync", path, io::Error::from_raw_os_error(libc::EIO));
        assert_eq!(of_system.duplicate().raw_os_error(), Some(libc::EIO));
        let own = IoError::new("read", path, io::Error::other("beyond the end"));
        assert_eq!(own.duplicate().to_string(), own.to_string());
    }
}
