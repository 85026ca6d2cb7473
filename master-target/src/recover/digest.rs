//! BLAKE3 digests of target disks, for the report of a failback.
//!
//! Holes are hashed as the zeroes that they read as, without being read.

use blockio::IoError;

use crate::target::{Disk, Location};

/// Bytes read and hashed at a time.
const STEP_BYTES: u64 = 1 << 20;

/// Why a disk could not be digested.
#[derive(Debug, thiserror::Error)]
#[error("checksum of {disk}: {source}")]
pub struct DigestError {
    disk: String,
    source: IoError,
}

/// Digests the first `size` bytes of a disk; blocks. `progress` is told how many are done.
pub fn digest(disk: &dyn Disk, size: u64, progress: impl Fn(u64)) -> Result<blake3::Hash, DigestError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = blockio::AlignedBuf::zeroed(STEP_BYTES as usize);
    let mut offset = 0;
    while offset < size {
        let failed = |source| DigestError { disk: disk.describe(), source };
        let content = match disk.locate(offset, STEP_BYTES.min(size - offset)).map_err(failed)? {
            Location::Hole { len } => {
                let content = &mut buffer[..len.min(STEP_BYTES) as usize];
                content.fill(0);
                content
            }
            Location::File { file, offset, len } => {
                let content = &mut buffer[..len.min(STEP_BYTES) as usize];
                file.read_exact_at(content, offset).map_err(failed)?;
                content
            }
        };
        hasher.update(content);
        offset += content.len() as u64;
        progress(offset);
    }
    Ok(hasher.finalize())
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
        let hash = digest(&disk, size, |bytes| done.set(bytes)).unwrap();
        let mut expected = vec![0; size as usize];
        expected[1 << 20..][..4096].fill(7);
        assert_eq!(hash, blake3::hash(&expected));
        assert_eq!(done.get(), size);
    }
}
