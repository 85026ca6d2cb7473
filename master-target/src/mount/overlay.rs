//! What the clients of a writable mount wrote: whole blocks in a file without a name, gone with the mount.
//!
//! Each block that was written has one slot of the file, for good; so the file never grows beyond the quota. Zeroes
//! take a slot only where there is one already. Nothing is ever synced: a crash ends the mount as well.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use blockio::{ExtentMap, Slice};

use super::limits::{OVERLAY_RESERVE_BYTES, ZERO_RANGES_MAX};
use crate::journal::limits::BLOCK_BYTES;

/// Where the content of blocks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// In the file, from this slot on.
    Slot(u64),
    /// All zero.
    Zero,
}

impl Slice for Kept {
    fn slice(&self, from: u64, _len: u64) -> Self {
        match self {
            Self::Slot(slot) => Self::Slot(slot + from),
            Self::Zero => Self::Zero,
        }
    }
}

/// Why a write was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum OverlayError {
    /// It does not fit.
    #[error("the overlay is full")]
    Full,
    /// The file failed.
    #[error("the overlay can't be used: {0}")]
    File(#[from] io::Error),
}

/// What was written to the disks of a mount.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    slots_max: u64,
    slots: u64,
    reserve_bytes: u64,
    disks: Vec<Written>,
}

#[derive(Debug, Default)]
struct Written {
    map: ExtentMap<Kept>,
    slots: u64,
}

impl Overlay {
    /// An empty overlay in `folder`. The name is free again at once; after a crash in between, the empty file is removed
    /// by the next mount of that name.
    pub fn create(folder: &Path, name: &str, disks: usize, quota_bytes: u64) -> io::Result<Self> {
        let path = folder.join(format!("overlay-{name}"));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        let slots_max = quota_bytes / BLOCK_BYTES;
        let disks = (0..disks).map(|_| Written::default()).collect();
        Ok(Self { file, slots_max, slots: 0, reserve_bytes: OVERLAY_RESERVE_BYTES, disks })
    }

    /// Bytes of the file that a disk takes.
    pub fn bytes_of(&self, disk: usize) -> u64 {
        self.disks[disk].slots * BLOCK_BYTES
    }

    /// What of a range of blocks was written, as (first, count, where).
    pub fn find(&self, disk: usize, block: u64, blocks: u64) -> Vec<(u64, u64, Kept)> {
        self.disks[disk].map.clipped(block, blocks).collect()
    }

    /// Reads blocks that [`Overlay::find`] gave.
    pub fn read(&self, kept: Kept, bytes: &mut [u8]) -> io::Result<()> {
        match kept {
            Kept::Zero => {
                bytes.fill(0);
                Ok(())
            }
            Kept::Slot(slot) => self.file.read_exact_at(bytes, slot * BLOCK_BYTES),
        }
    }

    /// Takes whole blocks: all of them, or none where they don't fit.
    pub fn write(&mut self, disk: usize, block: u64, bytes: &[u8]) -> Result<(), OverlayError> {
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES as usize), "the overlay keeps whole blocks");
        let blocks = bytes.len() as u64 / BLOCK_BYTES;
        let part = |first: u64, count: u64| {
            let from = ((first - block) * BLOCK_BYTES) as usize;
            &bytes[from..from + (count * BLOCK_BYTES) as usize]
        };
        let (old, new) = self.split(disk, block, blocks);
        let needed: u64 = new.iter().map(|(_, count)| count).sum();
        if needed > 0 {
            self.check_room(disk, needed, new.len())?;
        }
        let mut slot = self.slots;
        for (first, count) in &new {
            self.file.write_all_at(part(*first, *count), slot * BLOCK_BYTES).map_err(full_or_failed)?;
            slot += count;
        }
        for (first, count, slot) in old {
            self.file.write_all_at(part(first, count), slot * BLOCK_BYTES).map_err(full_or_failed)?;
        }
        for (first, count) in new {
            let written = &mut self.disks[disk];
            written.map.insert(first, count, Kept::Slot(self.slots));
            written.slots += count;
            self.slots += count;
        }
        Ok(())
    }

    /// Makes whole blocks zero.
    pub fn zero(&mut self, disk: usize, block: u64, blocks: u64) -> Result<(), OverlayError> {
        static ZEROES: [u8; 64 * BLOCK_BYTES as usize] = [0; 64 * BLOCK_BYTES as usize];
        let (old, new) = self.split(disk, block, blocks);
        self.check_ranges(disk, new.len())?;
        for (_, count, slot) in old {
            let mut at = 0;
            while at < count {
                let step = (count - at).min(64);
                let zeroes = &ZEROES[..(step * BLOCK_BYTES) as usize];
                self.file.write_all_at(zeroes, (slot + at) * BLOCK_BYTES).map_err(full_or_failed)?;
                at += step;
            }
        }
        for (first, count) in new {
            self.disks[disk].map.insert(first, count, Kept::Zero);
        }
        Ok(())
    }

    /// The blocks of a range that have slots, and those that have none.
    #[expect(clippy::type_complexity, reason = "two lists of ranges")]
    fn split(&self, disk: usize, block: u64, blocks: u64) -> (Vec<(u64, u64, u64)>, Vec<(u64, u64)>) {
        let (mut old, mut new, mut at) = (Vec::new(), Vec::new(), block);
        for (first, count, kept) in self.disks[disk].map.clipped(block, blocks) {
            if let Kept::Slot(slot) = kept {
                if first > at {
                    new.push((at, first - at));
                }
                old.push((first, count, slot));
                at = first + count;
            }
        }
        if at < block + blocks {
            new.push((at, block + blocks - at));
        }
        (old, new)
    }

    fn check_room(&self, disk: usize, slots: u64, ranges: usize) -> Result<(), OverlayError> {
        self.check_ranges(disk, ranges)?;
        let stat = rustix::fs::fstatvfs(&self.file).map_err(io::Error::from)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let is_full = self.slots + slots > self.slots_max || free < self.reserve_bytes + slots * BLOCK_BYTES;
        if is_full { Err(OverlayError::Full) } else { Ok(()) }
    }

    /// A range costs memory: an insert makes at most one more than it inserts.
    fn check_ranges(&self, disk: usize, ranges: usize) -> Result<(), OverlayError> {
        let most = usize::try_from(self.slots_max).unwrap_or(usize::MAX).saturating_add(ZERO_RANGES_MAX);
        if self.disks[disk].map.len() + ranges < most { Ok(()) } else { Err(OverlayError::Full) }
    }
}

fn full_or_failed(error: io::Error) -> OverlayError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OverlayError::Full,
        _ => OverlayError::File(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop, proptest};

    use super::*;

    const BLOCK: usize = BLOCK_BYTES as usize;

    fn overlay(folder: &Path, blocks: u64) -> Overlay {
        let overlay = Overlay::create(folder, "m", 2, blocks * BLOCK_BYTES).unwrap();
        Overlay { reserve_bytes: 0, ..overlay }
    }

    /// The first bytes of the blocks of disk 0, of which the untouched are `None`.
    fn content(overlay: &Overlay, blocks: u64) -> Vec<Option<u8>> {
        let mut found = vec![None; blocks as usize];
        for (first, count, kept) in overlay.find(0, 0, blocks) {
            let mut bytes = vec![9; count as usize * BLOCK];
            overlay.read(kept, &mut bytes).unwrap();
            for (index, block) in bytes.chunks(BLOCK).enumerate() {
                assert!(block.iter().all(|byte| *byte == block[0]));
                found[first as usize + index] = Some(block[0]);
            }
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_was_written_last_is_read_and_the_file_stays_within_the_quota(
            steps in prop::collection::vec((0u64..40, 1u64..12, 0u8..5), 0..60),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut overlay = overlay(folder.path(), 20);
            let mut model = vec![None; 64];
            for (at, count, value) in steps {
                let bytes = vec![value; count as usize * BLOCK];
                let before = overlay.slots;
                let done = if value == 0 { overlay.zero(0, at, count) } else { overlay.write(0, at, &bytes) };
                match done {
                    Ok(()) => model[at as usize..(at + count) as usize].fill(Some(value)),
                    Err(OverlayError::Full) => assert!(before + count > 20),
                    Err(error) => panic!("{error}"),
                }
                assert_eq!(content(&overlay, 64), model);
                assert!(overlay.slots <= 20 && overlay.file.metadata().unwrap().len() <= 20 * BLOCK_BYTES);
                assert_eq!(overlay.bytes_of(0), overlay.slots * BLOCK_BYTES);
                assert!(overlay.find(1, 0, 64).is_empty());
            }
        }
    }

    #[test]
    fn a_write_that_does_not_fit_changes_nothing_and_what_has_a_place_can_still_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut overlay = overlay(folder.path(), 2);
        overlay.write(0, 0, &[1; 2 * BLOCK]).unwrap();
        assert!(matches!(overlay.write(0, 1, &[2; 2 * BLOCK]), Err(OverlayError::Full)));
        assert_eq!(content(&overlay, 3), [Some(1), Some(1), None]);
        overlay.write(0, 1, &[3; BLOCK]).unwrap();
        overlay.zero(0, 2, 1 << 40).unwrap();
        assert_eq!(content(&overlay, 3), [Some(1), Some(3), Some(0)]);
    }

    #[test]
    fn the_file_has_no_name_and_one_that_a_crash_left_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("overlay-m"), "").unwrap();
        let mut overlay = overlay(folder.path(), 2);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        overlay.write(0, 0, &[1; BLOCK]).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_last_of_a_volume_is_left_to_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let mut overlay = Overlay { reserve_bytes: u64::MAX / 2, ..overlay(folder.path(), 2) };
        assert!(matches!(overlay.write(0, 0, &[1; BLOCK]), Err(OverlayError::Full)));
    }
}
