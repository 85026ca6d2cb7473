//! A volume in memory that behaves as badly as a disk may: for tests and simulations.
//!
//! A loss of power keeps what was synced and leaves of the rest a random part, with holes. A [`Fuse`] that it shares
//! with simulated disks cuts the power in the middle of any operation. It injects faults and judges nothing.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::volume::{PLACED, Volume, VolumeError, VolumeResult};

const SECTOR: usize = 512;

/// Cuts the power of everything that shares it after a number of operations.
#[derive(Debug, Clone)]
pub struct Fuse(Arc<AtomicI64>);

impl Default for Fuse {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(i64::MAX)))
    }
}

impl Fuse {
    /// The power goes off after this many further operations.
    pub fn burn_after(&self, operations: u32) {
        self.0.store(i64::from(operations), Ordering::SeqCst);
    }

    /// Power is back, and stays.
    pub fn replace(&self) {
        self.0.store(i64::MAX, Ordering::SeqCst);
    }

    /// Whether the power is off.
    #[must_use]
    pub fn is_burnt(&self) -> bool {
        self.0.load(Ordering::SeqCst) < 0
    }

    /// Counts one operation; false where it must not happen, and was not to happen whole.
    pub fn carries(&self) -> bool {
        let left = self.0.load(Ordering::SeqCst);
        if left != i64::MAX {
            self.0.store(left.max(0) - 1, Ordering::SeqCst);
        }
        left > 0
    }

    /// The error of an operation after the power went off.
    #[must_use]
    pub fn error() -> io::Error {
        io::Error::other("the power is off")
    }
}

/// A small random number generator (xorshift), so that a seed is all that a replay needs.
#[derive(Debug, Clone)]
pub struct Seeded(u64);

impl Seeded {
    /// The generator of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

#[derive(Debug, Default, Clone)]
struct MemFile {
    bytes: Vec<u8>,
    synced: usize,
    /// Of a file that is written in place: sectors written since the last sync, with what they held then and after each
    /// write but the last.
    older: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    /// What a sync that failed did not bring to the disk, though a later one says nothing of it: appended bytes, and what
    /// sectors written in place held before.
    failed: Vec<std::ops::Range<usize>>,
    failed_older: BTreeMap<usize, [u8; SECTOR]>,
}

impl MemFile {
    /// Writes in place. What lies before it and was never written is zero, also after a loss of power.
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let end = (offset + bytes.len()).next_multiple_of(SECTOR);
        self.bytes.resize(end.max(self.bytes.len()), 0);
        self.synced = self.bytes.len();
        for sector in offset / SECTOR..end / SECTOR {
            let mut before = [0; SECTOR];
            before.copy_from_slice(&self.bytes[sector * SECTOR..(sector + 1) * SECTOR]);
            self.older.entry(sector).or_default().push(before);
        }
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// A sync fails: the kernel takes what it could not write for clean.
    fn fail_sync(&mut self) {
        if self.synced < self.bytes.len() {
            self.failed.push(self.synced..self.bytes.len());
        }
        for (sector, older) in std::mem::take(&mut self.older) {
            if let Some(first) = older.first() {
                self.failed_older.entry(sector).or_insert(*first);
            }
        }
    }

    /// What the disk does not have is dropped from the cache.
    fn drop_failed(&mut self) {
        for range in std::mem::take(&mut self.failed) {
            let end = range.end.min(self.bytes.len());
            self.bytes[range.start.min(end)..end].fill(0);
        }
        for (sector, content) in std::mem::take(&mut self.failed_older) {
            self.bytes[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(&content);
        }
    }

    /// Each sector that was written in place and not synced holds any of the contents it had since.
    fn forget(&mut self, random: &mut Seeded) {
        for (sector, older) in std::mem::take(&mut self.older) {
            if let Some(content) = older.get(random.below(older.len() as u64 + 1) as usize) {
                self.bytes[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(content);
            }
        }
    }
}

#[derive(Debug)]
struct Inner {
    files: BTreeMap<String, MemFile>,
    random: Seeded,
    capacity: u64,
    failing_syncs: u32,
    failing_lose: bool,
}

/// Files in memory as a [`Volume`]; clones share them, as two openings of one folder would.
#[derive(Debug, Clone)]
pub struct MemVolume {
    inner: Arc<Mutex<Inner>>,
    fuse: Fuse,
}

impl MemVolume {
    /// An empty volume whose losses follow `seed`.
    #[must_use]
    pub fn new(seed: u64, fuse: Fuse) -> Self {
        let random = Seeded::new(seed);
        let inner = Inner { files: BTreeMap::new(), random, capacity: 1 << 40, failing_syncs: 0, failing_lose: false };
        Self { inner: Arc::new(Mutex::new(inner)), fuse }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power is lost and comes back: what was never synced survives in part.
    pub fn lose_power(&self) {
        let mut inner = self.inner();
        let Inner { files, random, .. } = &mut *inner;
        for file in files.values_mut() {
            file.forget(random);
            file.drop_failed();
            lose_unsynced(file, random);
            // What is read after a restart may still sit in no more than a cache; only a sync makes it last.
        }
    }

    /// All that is there counts as synced: for tests that want a clean state.
    pub fn settle(&self) {
        self.inner().files.values_mut().for_each(|file| {
            file.synced = file.bytes.len();
            file.older.clear();
        });
    }

    /// Bytes that fit.
    pub fn set_capacity(&self, bytes: u64) {
        self.inner().capacity = bytes;
    }

    /// The files, to come back to with [`MemVolume::restore`].
    #[must_use]
    pub fn image(&self) -> BTreeMap<String, Vec<u8>> {
        self.inner().files.iter().map(|(name, file)| (name.clone(), file.bytes.clone())).collect()
    }

    /// The volume holds what an image does, durably.
    pub fn restore(&self, image: &BTreeMap<String, Vec<u8>>) {
        let file = |bytes: &Vec<u8>| MemFile { bytes: bytes.clone(), synced: bytes.len(), ..MemFile::default() };
        self.inner().files = image.iter().map(|(name, bytes)| (name.clone(), file(bytes))).collect();
    }

    /// Bytes of all files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.inner().files.values().map(|file| file.bytes.len() as u64).sum()
    }

    /// Makes the next syncs fail; what they were to make durable is still there.
    pub fn fail_syncs(&self, count: u32) {
        let mut inner = self.inner();
        (inner.failing_syncs, inner.failing_lose) = (count, false);
    }

    /// Makes the next syncs fail and leave a random part of what they were to make durable, as real disks do.
    pub fn lose_syncs(&self, count: u32) {
        let mut inner = self.inner();
        (inner.failing_syncs, inner.failing_lose) = (count, true);
    }

    /// Opened anew: what failed syncs did not bring to the disk is not in the cache any more.
    pub fn drop_cache(&self) {
        self.inner().files.values_mut().for_each(MemFile::drop_failed);
    }

    /// Changes one byte on the disk.
    pub fn flip(&self, name: &str, offset: u64) {
        if let Some(byte) = self.inner().files.get_mut(name).and_then(|file| file.bytes.get_mut(offset as usize)) {
            *byte ^= 0x40;
        }
    }

    /// Cuts a file short.
    pub fn truncate(&self, name: &str, bytes: u64) {
        if let Some(file) = self.inner().files.get_mut(name) {
            file.bytes.truncate(bytes as usize);
            file.synced = file.synced.min(file.bytes.len());
        }
    }

    fn with<T>(
        &self,
        op: &'static str,
        name: &str,
        work: impl FnOnce(&mut Inner, bool) -> io::Result<T>,
    ) -> VolumeResult<T> {
        let alive = self.fuse.carries();
        let failed = |source| VolumeError { op, file: name.to_owned(), offset: None, source };
        let done = work(&mut self.inner(), alive).map_err(failed)?;
        if alive { Ok(done) } else { Err(failed(Fuse::error())) }
    }

    fn read<T>(&self, op: &'static str, name: &str, work: impl FnOnce(&MemFile) -> io::Result<T>) -> VolumeResult<T> {
        let failed = |source| VolumeError { op, file: name.to_owned(), offset: None, source };
        if self.fuse.is_burnt() {
            return Err(failed(Fuse::error()));
        }
        let inner = self.inner();
        inner.files.get(name).ok_or_else(missing).and_then(work).map_err(failed)
    }
}

/// Of what was not synced a random part stays.
fn lose_unsynced(file: &mut MemFile, random: &mut Seeded) {
    let unsynced = (file.bytes.len() - file.synced) as u64;
    if unsynced > 0 {
        file.bytes.truncate(file.synced + random.below(unsynced + 1) as usize);
        tear(&mut file.bytes[..], file.synced, random);
    }
}

/// A sector of the unsynced part may be missing although later ones are there.
fn tear(bytes: &mut [u8], from: usize, random: &mut Seeded) {
    if bytes.len() > from && random.below(3) == 0 {
        let at = (from + random.below((bytes.len() - from) as u64) as usize) / SECTOR * SECTOR;
        let end = (at + SECTOR).min(bytes.len());
        bytes[at.max(from)..end].fill(0);
    }
}

fn missing() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl Volume for MemVolume {
    fn create(&self, name: &str) -> VolumeResult<()> {
        self.with("make", name, |inner, alive| {
            if inner.files.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if alive || inner.random.below(2) == 0 {
                inner.files.insert(name.to_owned(), MemFile::default());
            }
            Ok(())
        })
    }

    fn append(&self, name: &str, bytes: &[u8]) -> VolumeResult<()> {
        self.with("append to", name, |inner, alive| {
            let used: usize = inner.files.values().map(|file| file.bytes.len()).sum();
            let room = usize::try_from(inner.capacity).unwrap_or(usize::MAX).saturating_sub(used);
            let take = if alive { bytes.len() } else { inner.random.below(bytes.len() as u64 + 1) as usize };
            let file = inner.files.get_mut(name).ok_or_else(missing)?;
            file.bytes.extend_from_slice(&bytes[..take.min(room)]);
            if take > room { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        })
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> VolumeResult<()> {
        assert!(name.starts_with(PLACED), "only tables are written in place");
        self.with("write to", name, |inner, alive| {
            let used: usize = inner.files.values().map(|file| file.bytes.len()).sum();
            let room = usize::try_from(inner.capacity).unwrap_or(usize::MAX).saturating_sub(used);
            let take = if alive { bytes.len() } else { inner.random.below(bytes.len() as u64 + 1) as usize };
            let at = usize::try_from(offset).map_err(io::Error::other)?;
            let file = inner.files.get_mut(name).ok_or_else(missing)?;
            // Holes take no room on a disk, and some here: no test is as large.
            if (at + bytes.len()).saturating_sub(file.bytes.len()) > room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            file.put(at, &bytes[..take]);
            Ok(())
        })
    }

    fn sync(&self, name: &str) -> VolumeResult<()> {
        self.with("sync", name, |inner, alive| {
            if inner.failing_syncs > 0 {
                inner.failing_syncs -= 1;
                let Inner { files, random, failing_lose, .. } = inner;
                let file = files.get_mut(name).ok_or_else(missing)?;
                if *failing_lose {
                    lose_unsynced(file, random);
                } else {
                    file.fail_sync();
                }
                return Err(io::Error::other("injected"));
            }
            let file = inner.files.get_mut(name).ok_or_else(missing)?;
            if alive {
                file.synced = file.bytes.len();
                file.older.clear();
            }
            Ok(())
        })
    }

    fn finish(&self, _name: &str) {}

    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> VolumeResult<()> {
        self.read("read", name, |file| {
            let from = usize::try_from(offset).map_err(io::Error::other)?;
            let part = from.checked_add(buf.len()).and_then(|end| file.bytes.get(from..end));
            buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn len(&self, name: &str) -> VolumeResult<u64> {
        self.read("measure", name, |file| Ok(file.bytes.len() as u64))
    }

    fn list(&self) -> VolumeResult<Vec<String>> {
        Ok(self.inner().files.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> VolumeResult<()> {
        self.with("remove", name, |inner, alive| {
            if alive || inner.random.below(2) == 0 {
                inner.files.remove(name);
            }
            Ok(())
        })
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> VolumeResult<()> {
        self.with("replace", name, |inner, alive| {
            // The new content is written beside the old one first.
            let used: usize = inner.files.values().map(|file| file.bytes.len()).sum();
            if (used + bytes.len()) as u64 > inner.capacity {
                return Err(io::ErrorKind::StorageFull.into());
            }
            if alive || inner.random.below(2) == 0 {
                inner.files.insert(
                    name.to_owned(),
                    MemFile { bytes: bytes.to_vec(), synced: bytes.len(), ..MemFile::default() },
                );
            }
            Ok(())
        })
    }

    fn free_bytes(&self) -> VolumeResult<u64> {
        let inner = self.inner();
        let used: usize = inner.files.values().map(|file| file.bytes.len()).sum();
        Ok(inner.capacity.saturating_sub(used as u64))
    }

    fn describe(&self, name: &str) -> String {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_of_power_keeps_what_was_synced() {
        for seed in 0..50 {
            let volume = MemVolume::new(seed, Fuse::default());
            volume.create("a").unwrap();
            volume.append("a", &[1; 1000]).unwrap();
            volume.sync("a").unwrap();
            volume.append("a", &[2; 3000]).unwrap();
            volume.lose_power();
            let mut bytes = [0; 1000];
            volume.read_at("a", 0, &mut bytes).unwrap();
            assert_eq!(bytes, [1; 1000]);
        }
    }

    #[test]
    fn a_loss_of_power_leaves_any_content_of_a_table_that_it_had_since_its_last_sync() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let volume = MemVolume::new(seed, Fuse::default());
            volume.create("sums-1").unwrap();
            for value in [1, 2, 3, 4] {
                volume.write_at("sums-1", 512, &[value; 1024]).unwrap();
                if value == 2 {
                    volume.sync("sums-1").unwrap();
                }
            }
            volume.lose_power();
            let mut bytes = [9; 1536];
            volume.read_at("sums-1", 0, &mut bytes).unwrap();
            assert_eq!(bytes[..512], [0; 512]);
            seen.insert((bytes[512], bytes[1024]));
        }
        assert!(seen.contains(&(2, 4)) && seen.contains(&(4, 3)), "{seen:?}");
        assert!(seen.iter().all(|(a, b)| *a >= 2 && *b >= 2), "{seen:?}");
    }

    #[test]
    fn a_burnt_fuse_stops_everything_until_it_is_replaced() {
        let fuse = Fuse::default();
        let volume = MemVolume::new(1, fuse.clone());
        volume.create("a").unwrap();
        fuse.burn_after(1);
        volume.append("a", b"x").unwrap();
        assert!(volume.sync("a").is_err());
        assert!(volume.append("a", b"y").is_err());
        assert!(volume.read_at("a", 0, &mut [0]).is_err());
        fuse.replace();
        volume.sync("a").unwrap();
    }

    #[test]
    fn a_full_volume_refuses_what_does_not_fit() {
        let volume = MemVolume::new(1, Fuse::default());
        volume.create("a").unwrap();
        volume.set_capacity(4);
        volume.append("a", b"four").unwrap();
        assert!(volume.append("a", b"!").unwrap_err().is_full());
        assert_eq!(volume.free_bytes().unwrap(), 0);
    }
}
