//! Making writes durable, and never forgetting that it failed once.
//!
//! The kernel reports a failed write-back once per descriptor and then drops the pages: the next
//! sync "succeeds" without the data being anywhere (REVIEW W10, J15). So the first failure sticks to
//! the file, and every later sync fails as well, until the owner has taken the consequences.

use std::io;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::BlockFile;
use crate::error::IoError;

impl BlockFile {
    /// Makes durable every write that has returned (or was reported as done) before this call.
    pub fn sync(&self) -> Result<(), IoError> {
        let synced = rustix::io::retry_on_intr(|| rustix::fs::fdatasync(self));
        self.conclude_sync(synced)
    }

    /// Whether a sync has failed, so that all later ones fail too.
    pub fn sync_has_failed(&self) -> bool {
        self.sync_errno.load(Ordering::Acquire) != 0
    }

    /// Lets syncs succeed again after one failed. Call it only when everything written since the
    /// last good sync is known to need writing, or reading back past the page cache, once more.
    pub fn forgive_failed_sync(&self) {
        self.sync_errno.store(0, Ordering::Release);
    }

    /// Judges the outcome of one sync by those before it.
    pub(crate) fn conclude_sync(&self, outcome: Result<(), Errno>) -> Result<(), IoError> {
        let failure = match outcome {
            Ok(()) => 0,
            Err(errno) => errno.raw_os_error(),
        };
        if failure != 0 {
            // The first failure stays; it is the one that lost data.
            let _ = self.sync_errno.compare_exchange(0, failure, Ordering::AcqRel, Ordering::Acquire);
            let source = io::Error::from_raw_os_error(failure);
            return Err(IoError::new("sync", self.path(), source));
        }
        match self.sync_errno.load(Ordering::Acquire) {
            0 => Ok(()),
            earlier => Err(IoError::new(
                "trust, since an earlier sync failed,",
                self.path(),
                io::Error::from_raw_os_error(earlier),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::Access;

    #[test]
    fn a_failed_sync_is_not_hidden_by_a_later_success() {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        let file = BlockFile::open(temporary.path(), Access::ReadWrite).unwrap();
        file.sync().unwrap();
        let error = file.conclude_sync(Err(Errno::NOSPC)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!(file.conclude_sync(Err(Errno::IO)).is_err());
        let later = file.sync().unwrap_err();
        assert!(file.sync_has_failed());
        assert_eq!(later.raw_os_error(), Some(libc::ENOSPC), "the first failure stays");
        assert!(later.to_string().contains("earlier sync failed"), "{later}");
        file.forgive_failed_sync();
        file.sync().unwrap();
    }
}
