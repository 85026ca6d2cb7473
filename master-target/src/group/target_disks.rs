//! The disks of a group with an I/O engine of their own: what the applier and each point reader work on.

use std::sync::Arc;

use blockio::{AlignedBuf, BufPool, EngineKind, IoError, Run};
use bytes::Bytes;

use crate::apply::GroupDisks;
use crate::target::{Disk, DiskIo};

/// Operations in flight at a time.
const IO_DEPTH: u32 = 64;
/// Memory kept between batches, bytes: what a round of 16 MiB reads, what it writes, and what rounding up adds.
const IO_CACHE_BYTES: usize = 48 << 20;

/// The disks, by index.
pub struct TargetDisks {
    disks: Vec<Arc<dyn Disk>>,
    io: DiskIo,
}

impl TargetDisks {
    /// The disks with a new engine.
    pub fn new(disks: Vec<Arc<dyn Disk>>) -> std::io::Result<Self> {
        Ok(Self { disks, io: DiskIo::new(EngineKind::Auto, IO_DEPTH, BufPool::new(IO_CACHE_BYTES))? })
    }
}

impl GroupDisks for TargetDisks {
    fn read(&mut self, disk: u32, ranges: &[(u64, usize)]) -> Result<Vec<Bytes>, IoError> {
        let read = self.io.read_many(self.disks[disk as usize].as_ref(), ranges)?;
        Ok(read.into_iter().map(AlignedBuf::freeze).collect())
    }

    fn write(&mut self, disk: u32, writes: Vec<(u64, Bytes)>) -> Result<(), IoError> {
        self.io.write_many(self.disks[disk as usize].as_ref(), writes)
    }

    fn zero(&mut self, disk: u32, ranges: &[(u64, u64)]) -> Result<(), IoError> {
        self.io.zero_many(self.disks[disk as usize].as_ref(), ranges)
    }

    fn allocated(&mut self, disk: u32, offset: u64, len: u64) -> Result<Vec<Run>, IoError> {
        self.io.allocated(self.disks[disk as usize].as_ref(), offset, len)
    }

    fn sync(&mut self) -> Result<(), IoError> {
        self.disks.iter().try_for_each(|disk| disk.sync())
    }

    fn set_depth(&mut self, depth: u32) {
        self.io.set_depth(depth);
    }

    fn buffer(&mut self, len: usize) -> AlignedBuf {
        self.io.pool().take(len)
    }
}
