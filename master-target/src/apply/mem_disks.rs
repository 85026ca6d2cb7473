//! Disks in memory that lose and tear what was not synced: for tests and simulations.
//!
//! Clones share the disks, as two openings of one file would. The [`Fuse`] cuts their power together with that of the
//! journal's volume.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockio::{AlignedBuf, IoError, Run};
use bytes::Bytes;

use super::disks::GroupDisks;
use crate::journal::{Fuse, Seeded};

const SECTOR: usize = 512;

#[derive(Debug, Clone)]
struct MemDisk {
    now: Vec<u8>,
    /// Sectors written since the last sync, with what they held then and after each write but the last.
    unsynced: BTreeMap<usize, Vec<[u8; SECTOR]>>,
}

#[derive(Debug)]
struct Inner {
    disks: Vec<MemDisk>,
    random: Seeded,
    writes: u64,
    reads: u64,
    failing: u32,
}

/// The disks of a group, in memory.
#[derive(Debug, Clone)]
pub struct MemDisks {
    inner: Arc<Mutex<Inner>>,
    fuse: Fuse,
}

impl MemDisks {
    /// Zeroed disks of these sizes, whose losses follow `seed`.
    #[must_use]
    pub fn new(sizes: &[u64], seed: u64, fuse: Fuse) -> Self {
        let disk = |size: &u64| MemDisk { now: vec![0; *size as usize], unsynced: BTreeMap::new() };
        let disks = sizes.iter().map(disk).collect();
        let inner = Inner { disks, random: Seeded::new(seed), writes: 0, reads: 0, failing: 0 };
        Self { inner: Arc::new(Mutex::new(inner)), fuse }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power is lost and comes back: each sector that was not synced holds any of the contents it had since.
    pub fn lose_power(&self) {
        Self::lose_unsynced(&mut self.inner());
    }

    fn lose_unsynced(inner: &mut Inner) {
        let Inner { disks, random, .. } = inner;
        for disk in disks {
            for (sector, older) in std::mem::take(&mut disk.unsynced) {
                let choice = random.below(older.len() as u64 + 1) as usize;
                if let Some(content) = older.get(choice) {
                    disk.now[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(content);
                }
            }
        }
    }

    /// Makes the next writes and syncs fail. A sync that fails leaves of what it was to make durable a random part, and no
    /// later one brings the rest back: so do real disks.
    pub fn fail_next(&self, count: u32) {
        self.inner().failing = count;
    }

    /// What the disks hold, to come back to with [`MemDisks::restore`].
    #[must_use]
    pub fn image(&self) -> Vec<Vec<u8>> {
        self.inner().disks.iter().map(|disk| disk.now.clone()).collect()
    }

    /// What the disks hold for certain: each sector as it was when it was last synced.
    #[must_use]
    pub fn synced(&self) -> Vec<Vec<u8>> {
        let inner = self.inner();
        let disks = inner.disks.iter().map(|disk| {
            let mut content = disk.now.clone();
            for (sector, older) in &disk.unsynced {
                content[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(&older[0]);
            }
            content
        });
        disks.collect()
    }

    /// The disks hold what an image does, durably.
    pub fn restore(&self, image: &[Vec<u8>]) {
        for (disk, content) in self.inner().disks.iter_mut().zip(image) {
            disk.now.clone_from(content);
            disk.unsynced.clear();
        }
    }

    /// Looks at a disk without copying it.
    pub fn look<T>(&self, disk: u32, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.inner().disks[disk as usize].now)
    }

    /// Content of a disk.
    #[must_use]
    pub fn content(&self, disk: u32) -> Vec<u8> {
        self.inner().disks[disk as usize].now.clone()
    }

    /// Somebody else writes a disk, durably.
    pub fn overwrite(&self, disk: u32, offset: u64, bytes: &[u8]) {
        let at = offset as usize;
        self.inner().disks[disk as usize].now[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Bytes read and written so far.
    #[must_use]
    pub fn traffic(&self) -> (u64, u64) {
        let inner = self.inner();
        (inner.reads, inner.writes)
    }

    fn power(&self, op: &'static str) -> Result<(), IoError> {
        if !self.fuse.carries() {
            return Err(IoError::new(op, Path::new("memory"), Fuse::error()));
        }
        let mut inner = self.inner();
        if inner.failing == 0 {
            return Ok(());
        }
        inner.failing -= 1;
        if op == "sync" {
            Self::lose_unsynced(&mut inner);
        }
        Err(IoError::new(op, Path::new("memory"), std::io::Error::other("injected")))
    }

    fn put(inner: &mut Inner, disk: u32, offset: u64, bytes: &[u8]) {
        let MemDisk { now, unsynced } = &mut inner.disks[disk as usize];
        assert!(offset.is_multiple_of(SECTOR as u64) && bytes.len().is_multiple_of(SECTOR), "whole sectors");
        for (i, sector) in bytes.chunks(SECTOR).enumerate() {
            let at = offset as usize / SECTOR + i;
            let place = &mut now[at * SECTOR..(at + 1) * SECTOR];
            let mut before = [0; SECTOR];
            before.copy_from_slice(place);
            unsynced.entry(at).or_default().push(before);
            place.copy_from_slice(sector);
        }
        inner.writes += bytes.len() as u64;
    }
}

impl GroupDisks for MemDisks {
    fn read(&mut self, disk: u32, ranges: &[(u64, usize)]) -> Result<Vec<Bytes>, IoError> {
        if self.fuse.is_burnt() {
            return Err(IoError::new("read", Path::new("memory"), Fuse::error()));
        }
        let mut inner = self.inner();
        inner.reads += ranges.iter().map(|(_, len)| *len as u64).sum::<u64>();
        let now = &inner.disks[disk as usize].now;
        Ok(ranges.iter().map(|(at, len)| Bytes::copy_from_slice(&now[*at as usize..*at as usize + len])).collect())
    }

    fn write(&mut self, disk: u32, writes: Vec<(u64, Bytes)>) -> Result<(), IoError> {
        for (offset, bytes) in writes {
            // The power may go in the middle: the sectors up to there were handed to the disk.
            for (i, sector) in bytes.chunks(8 * SECTOR).enumerate() {
                self.power("write")?;
                Self::put(&mut self.inner(), disk, offset + (i * 8 * SECTOR) as u64, sector);
            }
        }
        Ok(())
    }

    fn zero(&mut self, disk: u32, ranges: &[(u64, u64)]) -> Result<(), IoError> {
        for (offset, len) in ranges {
            self.power("zero")?;
            Self::put(&mut self.inner(), disk, *offset, &vec![0; *len as usize]);
        }
        Ok(())
    }

    fn allocated(&mut self, disk: u32, offset: u64, len: u64) -> Result<Vec<Run>, IoError> {
        let inner = self.inner();
        let now = &inner.disks[disk as usize].now;
        let (mut runs, mut at): (Vec<Run>, u64) = (Vec::new(), offset);
        while at < offset + len && runs.len() < 3 {
            let take = (offset + len - at).min(4096);
            let is_data = !blockio::is_zero(&now[at as usize..(at + take) as usize]);
            runs.push(Run { offset: at, len: take, is_data });
            at += take;
        }
        Ok(runs)
    }

    fn sync(&mut self) -> Result<(), IoError> {
        self.power("sync")?;
        self.inner().disks.iter_mut().for_each(|disk| disk.unsynced.clear());
        Ok(())
    }

    /// All that is in memory is there at once.
    fn set_depth(&mut self, _depth: u32) {}

    fn buffer(&mut self, len: usize) -> AlignedBuf {
        AlignedBuf::zeroed(len)
    }
}
