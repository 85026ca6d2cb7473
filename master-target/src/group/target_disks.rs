//! The disks of a group with an I/O engine of their own: what the applier and each point reader work on.

use std::io;
use std::path::Path;
use std::sync::Arc;

use blockio::{AlignedBuf, BufPool, EngineKind, IoError, Run};
use bytes::Bytes;

use crate::apply::GroupDisks;
use crate::recover::{Released, UNIT_BYTES};
use crate::target::{Disk, DiskIo};

/// Operations in flight at a time.
const IO_DEPTH: u32 = 64;
/// Memory kept between batches, bytes: what a round of 16 MiB reads, what it writes, and what rounding up adds.
const IO_CACHE_BYTES: usize = 48 << 20;

/// The disks, by index. Of one that was removed from the group there may be none.
pub struct TargetDisks {
    disks: Vec<Option<Arc<dyn Disk>>>,
    io: DiskIo,
    /// They were handed over: only what they held then is read.
    released: Option<Arc<[Option<Released>]>>,
}

impl TargetDisks {
    /// The disks with a new engine.
    pub fn new(disks: Vec<Option<Arc<dyn Disk>>>) -> io::Result<Self> {
        Ok(Self { disks, io: DiskIo::new(EngineKind::Auto, IO_DEPTH, BufPool::new(IO_CACHE_BYTES))?, released: None })
    }

    /// The same disks after they were handed over: a read fails where they don't hold what they held then.
    #[must_use]
    pub(crate) fn having_released(self, released: Arc<[Option<Released>]>) -> Self {
        Self { released: Some(released), ..self }
    }

    /// A disk was let go: nothing is read or written there any more.
    pub fn let_go(&mut self, disk: u32) {
        if let Some(disk) = self.disks.get_mut(disk as usize) {
            *disk = None;
        }
    }

    fn disk(&self, disk: u32) -> Result<Arc<dyn Disk>, IoError> {
        let found = self.disks.get(disk as usize).cloned().flatten();
        let why = "its target can't be opened, see the log; bring it back and restart the agent";
        found.ok_or_else(|| {
            let name = format!("disk {disk}, which was removed from the group");
            IoError::new("open", Path::new(&name), io::Error::other(why))
        })
    }

    /// Reads whole units and compares them; what was compared is what is given.
    fn read_compared(
        &mut self,
        disk: u32,
        released: &Released,
        ranges: &[(u64, usize)],
    ) -> Result<Vec<Bytes>, IoError> {
        let at = self.disk(disk)?;
        let mut all = Vec::with_capacity(ranges.len());
        for &(offset, len) in ranges {
            let end = offset + len as u64;
            let mut content = Vec::with_capacity(len);
            for unit in offset / UNIT_BYTES..end.div_ceil(UNIT_BYTES) {
                let from = unit * UNIT_BYTES;
                let size = UNIT_BYTES.min(released.size - from) as usize;
                let whole = self.io.read_many(at.as_ref(), &[(from, size)])?.remove(0).freeze();
                if !released.is_as_it_was(unit, &whole) {
                    let why = "the recovered machine has written there since the disk was handed over, and the point \
                               needs what stood there before: choose another point";
                    let path = at.describe();
                    return Err(IoError::at("read", Path::new(&path), from, io::Error::other(why)));
                }
                let (first, last) = (offset.max(from) - from, end.min(from + size as u64) - from);
                content.extend_from_slice(&whole[first as usize..last as usize]);
            }
            all.push(content.into());
        }
        Ok(all)
    }
}

impl GroupDisks for TargetDisks {
    fn read(&mut self, disk: u32, ranges: &[(u64, usize)]) -> Result<Vec<Bytes>, IoError> {
        if let Some(released) = self.released.clone() {
            let at = self.disk(disk)?;
            let unknown =
                || IoError::new("compare", Path::new(&at.describe()), io::Error::other("nothing is kept of it"));
            return self.read_compared(disk, released[disk as usize].as_ref().ok_or_else(unknown)?, ranges);
        }
        let read = self.io.read_many(self.disk(disk)?.as_ref(), ranges)?;
        Ok(read.into_iter().map(AlignedBuf::freeze).collect())
    }

    fn read_each(
        &mut self,
        disk: u32,
        ranges: &[(u64, usize)],
        each: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), IoError> {
        assert!(self.released.is_none(), "only points are read of disks that were handed over");
        self.io.read_each(self.disk(disk)?.as_ref(), ranges, each)
    }

    fn write(&mut self, disk: u32, writes: Vec<(u64, Bytes)>) -> Result<(), IoError> {
        self.io.write_many(self.disk(disk)?.as_ref(), writes)
    }

    fn zero(&mut self, disk: u32, ranges: &[(u64, u64)]) -> Result<(), IoError> {
        self.io.zero_many(self.disk(disk)?.as_ref(), ranges)
    }

    fn allocated(&mut self, disk: u32, offset: u64, len: u64) -> Result<Vec<Run>, IoError> {
        if self.released.is_some() {
            // A hole of today may have been made by the machine.
            return Ok(vec![Run { offset, len, is_data: true }]);
        }
        self.io.allocated(self.disk(disk)?.as_ref(), offset, len)
    }

    fn sync(&mut self) -> Result<(), IoError> {
        self.disks.iter().flatten().try_for_each(|disk| disk.sync())
    }

    fn set_depth(&mut self, depth: u32) {
        self.io.set_depth(depth);
    }

    fn buffer(&mut self, len: usize) -> AlignedBuf {
        self.io.pool().take(len)
    }
}
