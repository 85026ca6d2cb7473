//! Locks on disks and images, in a language that QEMU understands (rules S14 and J14).
//!
//! QEMU puts shared OFD locks on byte 100 + n for each thing n that it does with an image and on
//! 200 + n for each that it forbids others (n = 1: writing), and asks with GETLK whether somebody
//! holds the opposite. We hold 101 ("I write") and 201 ("nobody else may") in the same way, and byte
//! 300, which QEMU does not know, exclusively against other agents of ours.
//!
//! QEMU's locks are all shared, so they are granted beside one another. After taking ours we look
//! for anybody else's, as QEMU does; whoever locks and looks second sees the first. Two that do both
//! at once may both give up, never both go on.
//!
//! A lock belongs to the very descriptor that does the I/O: it lasts until the last write of a
//! killed process has landed, which is what the next agent waits for. ESXi and `mount` see none of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::IoError;
use crate::file::BlockFile;

/// QEMU's "I write".
const WRITING: libc::off_t = 101;
/// QEMU's "nobody else may write".
const FORBIDDING_WRITES: libc::off_t = 201;
/// The byte by which our agents exclude each other.
const AGENT: libc::off_t = 300;

/// How often what is held is tried again while waiting.
const RETRY: Duration = Duration::from_millis(20);

/// What is locked, and so which of QEMU's bytes are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockRole {
    /// A protected disk: its machine writes through us; others may read it.
    SourceDisk,
    /// The data of a target: raw file, block device or extent of a VMDK.
    TargetExtent,
    /// The text file that names a VMDK's extents.
    TargetDescriptor,
    /// A file that one of our agents keeps its state in; QEMU has nothing to do with it.
    State,
}

impl LockRole {
    fn shared_bytes(self) -> &'static [libc::off_t] {
        match self {
            // 101 alone would let in writers that don't mind others, such as qemu-io.
            Self::SourceDisk | Self::TargetExtent => &[WRITING, FORBIDDING_WRITES],
            Self::TargetDescriptor => &[FORBIDDING_WRITES],
            Self::State => &[],
        }
    }
}

/// Why a file could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error("{} is in use: {hint}", path.display())]
    Held {
        /// The file.
        path: PathBuf,
        /// Who it may be, and what to do.
        hint: &'static str,
    },
    /// The lock could not be asked for.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl LockError {
    /// Whether trying again later can help.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }
}

/// Who has a file locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// An agent of ours.
    Agent,
    /// QEMU, or a program with its locks, that writes it.
    Writer,
    /// QEMU, or a program with its locks, that forbids others to write it.
    Reader,
}

/// Who has a file or device locked, without taking a lock or disturbing who has one. It may be another a moment later.
pub fn lock_holder(path: &Path) -> Result<Option<Holder>, IoError> {
    let failed = |source| IoError::new("ask for the locks of", path, source);
    // Asked before it is opened: opening a FIFO waits for who writes it.
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(None);
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    for (byte, holder) in [(AGENT, Holder::Agent), (WRITING, Holder::Writer), (FORBIDDING_WRITES, Holder::Reader)] {
        let found = fcntl_lock(file.as_fd(), libc::F_OFD_GETLK, libc::F_WRLCK, byte).map_err(failed)?;
        if i32::from(found.l_type) != libc::F_UNLCK {
            return Ok(Some(holder));
        }
    }
    Ok(None)
}

const HINT_AGENT: &str = "a process-server or master-target has it open, perhaps one that was \
                          killed and whose last writes are still on their way; stop it, or wait";
const HINT_WRITER: &str = "QEMU or a program with its locks has it open for writing; shut that machine down";
const HINT_READER: &str = "QEMU or qemu-img has it open and forbids others to write it; wait until \
                           it is done, or shut that machine down";

impl BlockFile {
    /// Locks the file for `role`, or says who is in the way. The file must be open for writing. A
    /// failed attempt leaves it unlocked.
    pub fn lock(&self, role: LockRole) -> Result<(), LockError> {
        lock_file(self.as_fd(), self.path(), role)
    }

    /// As [`BlockFile::lock`], but waits up to `patience` for another holder to go.
    pub fn lock_within(&self, role: LockRole, patience: Duration) -> Result<(), LockError> {
        until_free(patience, LockError::is_held, || self.lock(role))
    }

    /// Gives all locks of this descriptor back. Closing it does the same.
    pub fn unlock(&self) -> Result<(), IoError> {
        unlock_file(self.as_fd(), self.path())
    }
}

/// Tries until something is not held any more, for at most `patience`.
#[expect(clippy::disallowed_methods, reason = "it waits in real time")]
pub(crate) fn until_free<T, E>(
    patience: Duration,
    is_held: impl Fn(&E) -> bool,
    try_it: impl Fn() -> Result<T, E>,
) -> Result<T, E> {
    let deadline = Instant::now() + patience;
    loop {
        match try_it() {
            Err(error) if is_held(&error) && Instant::now() < deadline => std::thread::sleep(RETRY),
            other => return other,
        }
    }
}

/// [`BlockFile::lock`] for a file of any size, such as the descriptor of a VMDK. `path` is for
/// messages. The lock lasts as long as the descriptor `fd` and its duplicates, and does not go over
/// to a file that is renamed over this one.
pub fn lock_file(fd: BorrowedFd<'_>, path: &Path, role: LockRole) -> Result<(), LockError> {
    let locked = try_lock(fd, path, role);
    if locked.is_err() {
        // The error that made us give up says more than one of giving back.
        let _ = unlock_file(fd, path);
    }
    locked
}

/// [`BlockFile::unlock`] for a file of any size.
pub fn unlock_file(fd: BorrowedFd<'_>, path: &Path) -> Result<(), IoError> {
    for byte in [WRITING, FORBIDDING_WRITES, AGENT] {
        fcntl_lock(fd, libc::F_OFD_SETLK, libc::F_UNLCK, byte)
            .map_err(|source| IoError::new("unlock", path, source))?;
    }
    Ok(())
}

fn try_lock(fd: BorrowedFd<'_>, path: &Path, role: LockRole) -> Result<(), LockError> {
    take(fd, path, libc::F_WRLCK, AGENT, HINT_AGENT)?;
    for &byte in role.shared_bytes() {
        take(fd, path, libc::F_RDLCK, byte, HINT_WRITER)?;
    }
    for (byte, hint) in [(WRITING, HINT_WRITER), (FORBIDDING_WRITES, HINT_READER)] {
        let found = fcntl_lock(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte)
            .map_err(|source| IoError::new("ask for the locks of", path, source))?;
        if i32::from(found.l_type) != libc::F_UNLCK {
            return Err(held(path, hint));
        }
    }
    Ok(())
}

fn take(fd: BorrowedFd<'_>, path: &Path, kind: i32, byte: libc::off_t, hint: &'static str) -> Result<(), LockError> {
    match fcntl_lock(fd, libc::F_OFD_SETLK, kind, byte) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Err(held(path, hint)),
        Err(source) => Err(IoError::new("lock", path, source).into()),
    }
}

fn fcntl_lock(fd: BorrowedFd<'_>, command: i32, kind: i32, byte: libc::off_t) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        // OFD locks ask for zero here.
        l_pid: 0,
    };
    loop {
        // SAFETY: the descriptor is open as long as its borrow, and the two commands take a pointer
        // to a `flock`, which outlives the call.
        let answer = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) };
        if answer >= 0 {
            return Ok(lock);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn held(path: &Path, hint: &'static str) -> LockError {
    LockError::Held { path: path.to_owned(), hint }
}
