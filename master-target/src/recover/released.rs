//! What the disks were when they were handed over, one file for each disk beside the group's journal (REVIEW J6).
//!
//! ```text
//! 0  4  magic "BHRD"          28  8  content id, 1 << 32 added where there is one   48  16 x units  digests, of 1 MiB each
//! 4  4  version, 1            36  8  time of the last write, microseconds since 1970
//! 8  4  CRC-32 of bytes 12..  44  4  units
//! 12 8  key of the handing over
//! 20 8  size, bytes
//! ```
//!
//! Little-endian. A file is replaced durably before the handing over is recorded with the same key, so a file with
//! another key tells of another time, and counts for nothing.

use std::io;
use std::path::{Path, PathBuf};

use super::digest::{UNIT_BYTES, UNIT_DIGEST_BYTES, UnitDigest, unit_digest};

const MAGIC: [u8; 4] = *b"BHRD";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 48;
/// Largest file: that of a disk of 64 TiB.
const FILE_BYTES_MAX: u64 = HEAD_BYTES as u64 + proto::limits::DISK_BYTES_MAX / UNIT_BYTES * UNIT_DIGEST_BYTES as u64;

/// Why the file of a disk is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ReleasedError {
    /// It can't be read.
    #[error("{}: {source}; check the retention volume", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not of this handing over, or damaged.
    #[error(
        "{}: {what}: nobody can tell what was written to the disk since it was handed over; restore the file, or protect \
         the group again with `master-target reprotect --discard-points`", path.display()
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It can't be written.
    #[error(transparent)]
    Write(#[from] blockio::IoError),
}

/// A disk as it was handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Released {
    /// Tells one handing over from others.
    pub key: u64,
    /// Bytes.
    pub size: u64,
    /// Its content id, of a VMDK.
    pub cid: Option<u32>,
    /// When its data was last written; 0 where nobody knows, as of a block device.
    pub written_us: u64,
    /// Digests of its units.
    pub units: Vec<UnitDigest>,
}

/// The file of a disk.
fn path_of(folder: &Path, disk: usize) -> PathBuf {
    folder.join(format!("released-{disk}"))
}

impl Released {
    fn encode(&self) -> Vec<u8> {
        let mut file = vec![0; 12];
        file[..4].copy_from_slice(&MAGIC);
        file[4..8].copy_from_slice(&VERSION.to_le_bytes());
        file.extend(self.key.to_le_bytes());
        file.extend(self.size.to_le_bytes());
        file.extend(self.cid.map_or(0, |cid| u64::from(cid) | 1 << 32).to_le_bytes());
        file.extend(self.written_us.to_le_bytes());
        file.extend(u32::try_from(self.units.len()).unwrap_or(u32::MAX).to_le_bytes());
        file.extend(self.units.iter().flatten());
        let crc = blockio::crc32(&file[12..]);
        file[8..12].copy_from_slice(&crc.to_le_bytes());
        file
    }

    fn decode(file: &[u8]) -> Result<Self, String> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| file.get(at + i).copied().unwrap_or(0)));
        if file.get(..4) != Some(&MAGIC) || file.len() < HEAD_BYTES {
            return Err("it does not tell of a disk".to_owned());
        }
        if word(4) as u32 != VERSION {
            return Err(format!("its version is {}, this agent knows {VERSION}", word(4) as u32));
        }
        if word(8) as u32 != blockio::crc32(&file[12..]) {
            return Err("its CRC is wrong".to_owned());
        }
        let (size, units) = (word(20), (word(44) & 0xffff_ffff) as usize);
        let (digests, rest) = file[HEAD_BYTES..].as_chunks::<UNIT_DIGEST_BYTES>();
        if digests.len() != units || !rest.is_empty() || size.div_ceil(UNIT_BYTES) != units as u64 {
            return Err("its length does not fit the disk".to_owned());
        }
        let cid = Some(word(28)).filter(|cid| cid >> 32 == 1).map(|cid| cid as u32);
        Ok(Self { key: word(12), size, cid, written_us: word(36), units: digests.to_vec() })
    }

    /// Replaces the file of a disk, durably; blocks.
    pub fn save(&self, folder: &Path, disk: usize) -> Result<(), ReleasedError> {
        Ok(blockio::durable::replace(&path_of(folder, disk), &self.encode())?)
    }

    /// Reads the file of a disk, which has to be of this handing over; blocks.
    pub fn load(folder: &Path, disk: usize, key: u64, size: u64) -> Result<Self, ReleasedError> {
        let path = path_of(folder, disk);
        let unusable = |what: String| ReleasedError::Unusable { path: path.clone(), what };
        let unreadable = |source| ReleasedError::Read { path: path.clone(), source };
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unusable("it is missing".to_owned())),
            Err(error) => return Err(unreadable(error)),
            Ok(found) if found.len() > FILE_BYTES_MAX => return Err(unusable("it is too large".to_owned())),
            Ok(_) => {}
        }
        let released = Self::decode(&std::fs::read(&path).map_err(unreadable)?).map_err(unusable)?;
        if released.key != key || released.size != size {
            return Err(unusable("it tells of another handing over".to_owned()));
        }
        Ok(released)
    }

    /// Whether a unit holds what it held.
    pub fn is_as_it_was(&self, unit: u64, content: &[u8]) -> bool {
        usize::try_from(unit).ok().and_then(|unit| self.units.get(unit)) == Some(&unit_digest(content))
    }

    /// Runs of units that are not as they were, as (first sector, sectors).
    pub fn differences(&self, now: &[UnitDigest]) -> Vec<(u64, u64)> {
        const UNIT_SECTORS: u64 = UNIT_BYTES / 512;
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let end = self.size / 512;
        for (index, before) in (0..).zip(&self.units) {
            if now.get(index as usize) == Some(before) {
                continue;
            }
            let (from, to) = (index * UNIT_SECTORS, ((index + 1) * UNIT_SECTORS).min(end));
            match runs.last_mut() {
                Some((at, len)) if *at + *len == from => *len = to - *at,
                _ => runs.push((from, to - from)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Released {
        let units = vec![[1; 16], [0; 16], [3; 16]];
        Released { key: 7, size: (2 << 20) + 512, cid: Some(0), written_us: 9, units }
    }

    #[test]
    fn a_disk_is_remembered_as_it_was_and_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        for cid in [Some(0), None, Some(u32::MAX)] {
            let disk = Released { cid, ..sample() };
            disk.save(folder.path(), 1).unwrap();
            assert_eq!(Released::load(folder.path(), 1, 7, disk.size).unwrap(), disk);
        }
        for (disk, key, size) in [(0, 7, sample().size), (1, 8, sample().size), (1, 7, 512)] {
            let error = Released::load(folder.path(), disk, key, size).unwrap_err().to_string();
            assert!(error.contains("released-") && error.contains("reprotect"), "{error}");
        }
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let whole = sample().encode();
        assert_eq!(Released::decode(&whole).unwrap(), sample());
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            Released::decode(&damaged).unwrap_err();
            Released::decode(&whole[..at]).unwrap_err();
        }
        Released::decode(&[&whole[..], &[0; 16]].concat()).unwrap_err();
    }

    #[test]
    fn differences_are_runs_of_units_within_the_disk() {
        let disk = sample();
        assert_eq!(disk.differences(&disk.units), []);
        assert_eq!(disk.differences(&[[1; 16], [9; 16], [4; 16]]), [(2048, 2049)]);
        assert_eq!(disk.differences(&[[9; 16], [0; 16], [3; 16]]), [(0, 2048)]);
        assert_eq!(disk.differences(&[]), [(0, 4097)], "a disk that lost its end");
    }
}
