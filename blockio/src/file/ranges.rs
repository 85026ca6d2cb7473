//! Holes and zeroes: punching, zeroing in place, and asking what is allocated.
//!
//! Always fallocate, on block devices too, where the kernel zeroes or fails; never BLKDISCARD, after
//! which a device may read as anything (rule S15).

use std::sync::LazyLock;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::BlockFile;
use crate::IO_BYTES_MAX;
use crate::buf::AlignedBuf;
use crate::error::IoError;

/// Most runs that one look at the allocation gives.
pub const RUNS_MAX: usize = 4096;

/// A stretch of a file that is all data or all hole. A hole reads as zero; data may do so too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether it may hold something other than zeroes.
    pub is_data: bool,
}

/// A mebibyte of zeroes in memory fit for direct I/O.
pub(crate) fn zeroes() -> &'static [u8] {
    static ZEROES: LazyLock<AlignedBuf> = LazyLock::new(|| AlignedBuf::zeroed(IO_BYTES_MAX));
    &ZEROES
}

impl BlockFile {
    /// Frees the range, so that it reads as zero, or fails and leaves it as it was or partly zeroed.
    /// `Unsupported` means that file system or device can't.
    pub fn punch_hole(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.check_range("punch a hole in", offset, len)?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (middle, middle_len) = self.whole_blocks(offset, len);
        self.fallocate(punch, middle, middle_len).map_err(|errno| self.error_at("punch a hole in", middle, errno))?;
        self.write_edges(offset, len, middle, middle_len)
    }

    /// Makes the range read as zero and keeps its space where the file system can; otherwise by
    /// writing zeroes.
    pub fn zero_range(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.check_range("zero", offset, len)?;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let (middle, middle_len) = self.whole_blocks(offset, len);
        match self.fallocate(zero, middle, middle_len) {
            Ok(()) => self.write_edges(offset, len, middle, middle_len),
            Err(Errno::OPNOTSUPP) => self.write_zeroes(offset, len),
            Err(errno) => Err(self.error_at("zero", middle, errno)),
        }
    }

    /// What is data and what is hole in the range, in order and without gaps, each run as long as it
    /// can be. At most [`RUNS_MAX`] runs: the last may end before the range does. What can't be told
    /// counts as data.
    pub fn allocated(&self, offset: u64, len: u64) -> Result<Vec<Run>, IoError> {
        self.check_range("map", offset, len)?;
        let end = offset + len;
        let mut runs = Vec::new();
        let mut at = offset;
        while at < end && runs.len() < RUNS_MAX {
            let data = self.seek_from(SeekFrom::Data(at), at, end)?;
            if data > at {
                runs.push(Run { offset: at, len: data - at, is_data: false });
                at = data;
                continue;
            }
            // Between the two questions a hole may be punched here: data is the safe answer then.
            let hole = self.seek_from(SeekFrom::Hole(at), at, end)?;
            let hole = if hole > at { hole } else { end };
            runs.push(Run { offset: at, len: hole - at, is_data: true });
            at = hole;
        }
        Ok(runs)
    }

    /// Whether the whole range is a hole. One question, whose cost does not grow with the data behind the range, as
    /// that of [`BlockFile::allocated`] does on some file systems.
    pub fn is_hole(&self, offset: u64, len: u64) -> Result<bool, IoError> {
        self.check_range("map", offset, len)?;
        let end = offset + len;
        Ok(self.seek_from(SeekFrom::Data(offset), offset, end)? == end)
    }

    /// The next data or hole at or after `at`, at most `end`.
    fn seek_from(&self, seek: SeekFrom, at: u64, end: u64) -> Result<u64, IoError> {
        let is_data = matches!(seek, SeekFrom::Data(_));
        match rustix::fs::seek(self, seek) {
            Ok(found) => Ok(found.clamp(at, end)),
            // No data up to the end of the file.
            Err(Errno::NXIO) => Ok(end),
            // A device or file system that can't tell: everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(if is_data { at } else { end }),
            Err(errno) => Err(self.error_at("map", at, errno)),
        }
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
        if len == 0 {
            return Ok(());
        }
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(self, flags, offset, len))
    }

    /// The part of a range that fallocate takes: on a block device only whole logical blocks.
    fn whole_blocks(&self, offset: u64, len: u64) -> (u64, u64) {
        if !self.is_block_device() {
            return (offset, len);
        }
        let align = u64::from(self.alignment());
        let start = offset.next_multiple_of(align).min(offset + len);
        let end = (offset + len) / align * align;
        (start, end.saturating_sub(start))
    }

    fn write_edges(&self, offset: u64, len: u64, middle: u64, middle_len: u64) -> Result<(), IoError> {
        self.write_zeroes(offset, middle - offset)?;
        let middle_end = middle + middle_len;
        self.write_zeroes(middle_end, offset + len - middle_end)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            // Behind an unaligned start the pieces are aligned, and only the two ends are read first.
            let piece_end = (at + 1).next_multiple_of(IO_BYTES_MAX as u64).min(end);
            let piece = &zeroes()[..(piece_end - at) as usize];
            self.write_all_at(piece, at)?;
            at = piece_end;
        }
        Ok(())
    }
}
