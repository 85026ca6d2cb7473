//! [`GroupDisks`]: the disks of a group as apply and the point reader see them.

use blockio::{AlignedBuf, IoError, Run};
use bytes::Bytes;

/// The disks of one group, by index. Offsets and lengths are bytes, multiples of 512.
///
/// What was written may be lost or torn by a loss of power until [`GroupDisks::sync`] has succeeded.
pub trait GroupDisks: Send {
    /// Reads ranges of at most 1 MiB each.
    fn read(&mut self, disk: u32, ranges: &[(u64, usize)]) -> Result<Vec<Bytes>, IoError>;

    /// Reads ranges of at most 1 MiB each and gives each by its index as soon as it is there, in any order, while others
    /// are being read. After an error some may have been given.
    fn read_each(
        &mut self,
        disk: u32,
        ranges: &[(u64, usize)],
        each: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), IoError> {
        self.read(disk, ranges)?.iter().enumerate().for_each(|(index, bytes)| each(index, bytes));
        Ok(())
    }

    /// Writes pieces that do not overlap.
    fn write(&mut self, disk: u32, writes: Vec<(u64, Bytes)>) -> Result<(), IoError>;

    /// Makes ranges read as zeroes; holes, where the disk can have them.
    fn zero(&mut self, disk: u32, ranges: &[(u64, u64)]) -> Result<(), IoError>;

    /// Which parts of a range may hold data; the last run may end before the range does.
    fn allocated(&mut self, disk: u32, offset: u64, len: u64) -> Result<Vec<Run>, IoError>;

    /// Makes everything written durable, on all disks.
    fn sync(&mut self) -> Result<(), IoError>;

    /// How many reads and writes may be under way at a time from now on; the disks may keep fewer.
    fn set_depth(&mut self, depth: u32);

    /// Memory that suits a write.
    fn buffer(&mut self, len: usize) -> AlignedBuf;
}
