//! Opening and creating: the checks that make a path a disk.
//!
//! Direct I/O is used when the file system has it and the size is a multiple of what it asks for;
//! otherwise the last block could only be written by changing the size.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use crate::durable;
use crate::error::IoError;
use crate::lock::until_free;
use crate::{BLOCK, SECTOR};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only; says nothing to other programs.
    ReadOnly,
    /// Reads and writes; a block device is opened exclusively, so that it can't be mounted meanwhile.
    ReadWrite,
}

/// A regular file or block device; its size is fixed but for [`BlockFile::resize`].
#[derive(Debug)]
pub struct BlockFile {
    file: File,
    path: PathBuf,
    size: AtomicU64,
    is_block_device: bool,
    direct: Option<DirectRules>,
    /// Errno of the first sync that failed, or 0: see `sync`.
    pub(super) sync_errno: AtomicI32,
    /// Held while the two ends of an unaligned direct write are read, changed and written back.
    pub(super) edges: Mutex<()>,
}

/// What O_DIRECT asks for, in bytes.
#[derive(Clone, Copy, Debug)]
struct DirectRules {
    offset_align: u32,
    memory_align: u32,
}

impl BlockFile {
    /// Opens an existing file or block device. Refuses sizes that are not whole sectors.
    pub fn open(path: &Path, access: Access) -> Result<Self, IoError> {
        open(path, access).map_err(|source| IoError::new("open", path, source))
    }

    /// As [`BlockFile::open`], but waits up to `patience` for a device that is held exclusively: the last writes of a killed
    /// process hold it until they have landed.
    pub fn open_within(path: &Path, access: Access, patience: Duration) -> Result<Self, IoError> {
        let is_held = |error: &IoError| error.kind() == io::ErrorKind::ResourceBusy;
        until_free(patience, is_held, || Self::open(path, access))
    }

    /// Durably creates a sparse file of `size` bytes and opens it for writing; refuses to replace one.
    pub fn create(path: &Path, size: u64) -> Result<Self, IoError> {
        create(path, size).map_err(|source| IoError::new("create", path, source))?;
        let opened = durable::sync_dir(durable::parent(path)).and_then(|()| Self::open(path, Access::ReadWrite));
        if opened.is_err() {
            // It was made here a moment ago and nobody has seen it; the error below is what counts.
            let _ = fs::remove_file(path);
        }
        opened
    }

    /// Opens a small regular file of any size through the page cache: the text that describes a disk,
    /// which is locked like one and changed in place.
    pub fn open_text(path: &Path, access: Access) -> Result<Self, IoError> {
        open_text(path, access).map_err(|source| IoError::new("open", path, source))
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes when it was opened or resized, a multiple of 512 (of a text, any size).
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Gives a regular file another size: what is cut off is gone, what is added reads as zeroes. For formats whose
    /// files grow with their content. Durable only after [`BlockFile::sync`]. Callers take turns.
    pub fn resize(&self, size: u64) -> Result<(), IoError> {
        let refusal = if self.is_block_device {
            Some("a device has the size that it has".to_owned())
        } else if !self.is_aligned(size, 0) {
            Some(format!("a size of {size} bytes is no multiple of {}", self.alignment()))
        } else {
            None
        };
        if let Some(why) = refusal {
            return Err(IoError::new("resize", &self.path, refused(&why)));
        }
        self.file.set_len(size).map_err(|source| IoError::new("resize", &self.path, source))?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// Whether transfers bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// What offsets and lengths given to the engine must be multiples of, in bytes; 512 when buffered.
    pub fn alignment(&self) -> u32 {
        match self.direct {
            Some(rules) => rules.offset_align,
            None => SECTOR as u32,
        }
    }

    /// What the memory of a transfer must be aligned to, in bytes.
    pub(crate) fn memory_align(&self) -> usize {
        self.direct.map_or(1, |rules| rules.memory_align as usize)
    }

    /// Whether offset and length can be transferred as they are.
    pub(crate) fn is_aligned(&self, offset: u64, len: u64) -> bool {
        (offset | len).is_multiple_of(u64::from(self.alignment()))
    }

    /// Refuses what does not lie within the file: a write beyond its end would make it grow.
    pub(crate) fn check_range(&self, op: &'static str, offset: u64, len: u64) -> Result<(), IoError> {
        let size = self.size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(self.error_at(
                op,
                offset,
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{len} bytes there reach beyond its size of {size}"),
                ),
            )),
        }
    }

    pub(crate) fn error_at(&self, op: &'static str, offset: u64, source: impl Into<io::Error>) -> IoError {
        IoError::at(op, &self.path, offset, source)
    }
}

impl AsFd for BlockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for BlockFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn open(path: &Path, access: Access) -> io::Result<BlockFile> {
    // Asked before it is opened: opening a FIFO or a tape has effects of its own.
    let kind = fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(refused("it is neither a regular file nor a block device"));
    }
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
    flags |= match access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    if kind.is_block_device() && access == Access::ReadWrite {
        flags |= OFlags::EXCL;
    }
    let (file, mut direct) = open_direct(path, flags)?;
    let opened = file.metadata()?;
    if opened.file_type() != kind {
        return Err(refused("it was exchanged for something else meanwhile"));
    }
    let is_block_device = kind.is_block_device();
    let size = if is_block_device { rustix::fs::seek(&file, SeekFrom::End(0))? } else { opened.size() };
    if !size.is_multiple_of(SECTOR) {
        return Err(refused(&format!(
            "its size of {size} bytes is no multiple of {SECTOR}; extend it to one of {}",
            size.next_multiple_of(SECTOR)
        )));
    }
    if direct.is_some_and(|rules| !size.is_multiple_of(u64::from(rules.offset_align))) {
        forgo_direct(&file)?;
        direct = None;
    }
    Ok(BlockFile {
        file,
        path: path.to_owned(),
        size: AtomicU64::new(size),
        is_block_device,
        direct,
        sync_errno: AtomicI32::new(0),
        edges: Mutex::new(()),
    })
}

fn open_text(path: &Path, access: Access) -> io::Result<BlockFile> {
    // Asked before it is opened, as above.
    if !fs::metadata(path)?.is_file() {
        return Err(refused("it is no regular file"));
    }
    let file = File::options().read(true).write(access == Access::ReadWrite).open(path)?;
    let size = file.metadata()?.size();
    Ok(BlockFile {
        file,
        path: path.to_owned(),
        size: AtomicU64::new(size),
        is_block_device: false,
        direct: None,
        sync_errno: AtomicI32::new(0),
        edges: Mutex::new(()),
    })
}

fn open_direct(path: &Path, flags: OFlags) -> io::Result<(File, Option<DirectRules>)> {
    match rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty()) {
        Ok(fd) => {
            let file = File::from(fd);
            let rules = direct_rules(&file);
            if rules.is_none() {
                forgo_direct(&file)?;
            }
            Ok((file, rules))
        }
        Err(Errno::INVAL) => {
            let fd = rustix::fs::open(path, flags, Mode::empty())?;
            Ok((File::from(fd), None))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// What the kernel says of direct I/O on the file; a page where it says nothing. None if it has none.
fn direct_rules(file: &File) -> Option<DirectRules> {
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    if let Ok(stat) = stat
        && StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN)
    {
        let (offset_align, memory_align) = (stat.stx_dio_offset_align, stat.stx_dio_mem_align);
        if offset_align == 0 || memory_align == 0 {
            return None;
        }
        return usable(offset_align, memory_align);
    }
    match rustix::fs::ioctl_blksszget(file) {
        Ok(logical_block) => usable(logical_block, logical_block),
        Err(_) => usable(BLOCK as u32, BLOCK as u32),
    }
}

/// Direct I/O in sectors or coarser, from memory that our buffers can give.
fn usable(offset_align: u32, memory_align: u32) -> Option<DirectRules> {
    let rules = DirectRules { offset_align: offset_align.max(SECTOR as u32), memory_align };
    let fits = rules.offset_align.is_power_of_two()
        && memory_align.is_power_of_two()
        && rules.offset_align as usize <= crate::IO_BYTES_MAX
        && memory_align as usize <= crate::buf::BUF_ALIGN;
    fits.then_some(rules)
}

fn forgo_direct(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT)?;
    Ok(())
}

fn create(path: &Path, size: u64) -> io::Result<()> {
    if !size.is_multiple_of(SECTOR) {
        return Err(refused(&format!("a size of {size} bytes is no multiple of {SECTOR}")));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    let sized = file.set_len(size).and_then(|()| file.sync_all());
    if sized.is_err() {
        // As above: nobody has seen it.
        let _ = fs::remove_file(path);
    }
    sized
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
