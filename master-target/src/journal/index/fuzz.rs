//! Entry point for fuzzing: what may stand in an index file whose checksums are right, as a pure function of bytes.
//!
//! A look-up in it must neither panic nor go on for ever, and gives only what lies in the range that was asked for.

use std::sync::Mutex;

use super::format::{Identity, index_name, mended};
use super::{PageCache, SegmentIndex};
use crate::journal::header::SegmentId;
use crate::journal::{Fuse, MemVolume, Volume};

/// Bytes as the pages of an index, whose checksums are made right first.
pub fn look_ups(bytes: &[u8]) {
    let identity =
        Identity { journal: [3; 16], segment: SegmentId::redo(7), segment_bytes: 4096, runs: 2, fingerprint: 9 };
    let volume = MemVolume::new(1, Fuse::default());
    let file = mended(&identity, bytes);
    if volume.replace(&index_name(identity.segment), &file).is_err() {
        return;
    }
    let cache = Mutex::new(PageCache::new(16));
    let Ok(index) = SegmentIndex::open(&volume, &cache, &identity) else { return };
    for (disk, sector, sectors) in [(0, 0, u64::MAX), (0, 77, 8), (1, 1 << 40, 1 << 20), (u32::MAX, u64::MAX - 8, 8)] {
        if let Ok(found) = index.overlapping(&volume, &cache, disk, (sector, sectors)) {
            let end = sector.saturating_add(sectors);
            assert!(found.iter().all(|entry| entry.sector >= sector && entry.sector + entry.sectors <= end));
        }
        let next = index.next_at(&volume, &cache, disk, sector);
        assert!(next.is_err() || next.is_ok_and(|next| next.is_none_or(|next| next >= sector)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    proptest! {
        #[test]
        fn any_pages_are_survived(
            leaves in 0u32..6,
            height in 0u32..3,
            pages in prop::collection::vec((0u16..3, 0u16..120, prop::collection::vec(any::<u32>(), 60), any::<u8>()), 0..6),
        ) {
            let mut bytes = vec![0; 4096];
            bytes[80..84].copy_from_slice(&leaves.to_le_bytes());
            bytes[84..88].copy_from_slice(&(pages.len() as u32 + 1).to_le_bytes());
            bytes[88..92].copy_from_slice(&height.to_le_bytes());
            for (level, count, words, shift) in pages {
                let mut page = vec![0; 12];
                page.extend(level.to_le_bytes());
                page.extend(count.to_le_bytes());
                page.extend(words.iter().flat_map(|word| (word >> (shift % 32)).to_le_bytes()));
                page.resize(4096, 0);
                bytes.extend(page);
            }
            super::look_ups(&bytes);
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            super::look_ups(&bytes);
        }
    }
}
