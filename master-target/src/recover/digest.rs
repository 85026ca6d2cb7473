//! BLAKE3 digests of target disks: of the whole for the report of a failback, and of each MiB for a later comparison.
//!
//! Holes are hashed as the zeroes that they read as, without being read.

use std::ops::ControlFlow;

use blockio::IoError;

use crate::target::{Disk, Location};

/// Bytes of a unit that is compared.
pub(crate) const UNIT_BYTES: u64 = 1 << 20;
/// Bytes of the digest of a unit.
pub(super) const UNIT_DIGEST_BYTES: usize = 16;

/// Digest of a unit; all zero where the unit is.
pub(crate) type UnitDigest = [u8; UNIT_DIGEST_BYTES];

/// Why a disk could not be digested.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// It can't be read.
    #[error("checksum of {disk}: {source}")]
    Read {
        /// The disk.
        disk: String,
        /// What happened.
        source: IoError,
    },
    /// Somebody ended it.
    #[error("the checksum of {0} was broken off")]
    BrokenOff(String),
}

/// The digests of a disk.
pub(super) struct Digests {
    /// Of all of it.
    pub whole: blake3::Hash,
    /// Of each unit, in order; the last may be short.
    pub units: Vec<UnitDigest>,
}

/// Digests the first `size` bytes of a disk; blocks. `progress` is told how many are done, and may break it off.
pub(super) fn digest(
    disk: &dyn Disk,
    size: u64,
    mut progress: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<Digests, DigestError> {
    let mut hasher = blake3::Hasher::new();
    let mut units = Vec::new();
    let mut buffer = blockio::AlignedBuf::zeroed(UNIT_BYTES as usize);
    let mut offset = 0;
    while offset < size {
        let unit = &mut buffer[..UNIT_BYTES.min(size - offset) as usize];
        read_unit(disk, offset, unit)?;
        hasher.update(unit);
        units.push(unit_digest(unit));
        offset += unit.len() as u64;
        if progress(offset).is_break() {
            return Err(DigestError::BrokenOff(disk.describe()));
        }
    }
    Ok(Digests { whole: hasher.finalize(), units })
}

fn read_unit(disk: &dyn Disk, offset: u64, unit: &mut [u8]) -> Result<(), DigestError> {
    let mut at = 0;
    while at < unit.len() {
        let left = (unit.len() - at) as u64;
        let failed = |source| DigestError::Read { disk: disk.describe(), source };
        at += match disk.locate(offset + at as u64, left).map_err(failed)? {
            Location::Hole { len } => {
                let len = len.min(left) as usize;
                unit[at..at + len].fill(0);
                len
            }
            Location::File { file, offset, len } => {
                let len = len.min(left) as usize;
                file.read_exact_at(&mut unit[at..at + len], offset).map_err(failed)?;
                len
            }
        };
    }
    Ok(())
}

pub(super) fn unit_digest(unit: &[u8]) -> UnitDigest {
    let mut digest = UnitDigest::default();
    if !blockio::is_zero(unit) {
        digest.copy_from_slice(&blake3::hash(unit).as_bytes()[..UNIT_DIGEST_BYTES]);
    }
    digest
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use blockio::BlockFile;

    use super::*;
    use crate::target::{LinearDisk, Thickness};

    #[test]
    fn a_digest_covers_exactly_the_size_of_the_source() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.raw");
        let size = (3 << 20) + 512;
        let file = Arc::new(BlockFile::create(&path, size + 4096).unwrap());
        file.write_all_at(&[7; 4096], 1 << 20).unwrap();
        file.write_all_at(&[9; 4096], size).unwrap();
        let disk = LinearDisk::new("x".into(), file, 0, size + 4096, Thickness::Thin);
        let done = Cell::new(0);
        let counted = |bytes| {
            done.set(bytes);
            ControlFlow::Continue(())
        };
        let digests = digest(&disk, size, counted).unwrap();
        let mut expected = vec![0; size as usize];
        expected[1 << 20..][..4096].fill(7);
        assert_eq!(digests.whole, blake3::hash(&expected));
        assert_eq!(digests.units.len(), 4);
        assert_eq!((digests.units[0], digests.units[3]), ([0; 16], [0; 16]));
        assert_eq!(digests.units[1], blake3::hash(&expected[1 << 20..2 << 20]).as_bytes()[..16]);
        assert_eq!(done.get(), size);
        assert!(matches!(digest(&disk, size, |_| ControlFlow::Break(())), Err(DigestError::BrokenOff(_))));
    }
}
