//! Finds zero blocks in the data of a part, so that they travel as ranges and not as bytes.
//!
//! Runs in front of framing. Nonzero data costs a look at the first bytes of each 4 KiB block. An extent is taken
//! apart only after its checksum has been checked over the whole (P6); one that fails is left as it is, for the encoder
//! to refuse.

use blockio::{BLOCK, SECTOR, crc32, is_zero};
use bytes::Bytes;
use proto::frame::{RawContent, RawExtent};

/// A block that is not zero shows it here, almost always.
const GLANCE_BYTES: usize = 64;

/// Replaces runs of whole zero blocks by zero extents.
pub(super) fn find_zeroes(extents: Vec<RawExtent>) -> Vec<RawExtent> {
    let has_zeroes = |extent: &RawExtent| match &extent.content {
        RawContent::Data { bytes, .. } => bytes.chunks(BLOCK as usize).any(is_zero_block),
        _ => false,
    };
    if !extents.iter().any(has_zeroes) {
        return extents;
    }
    let mut found = Vec::with_capacity(extents.len() + 16);
    for extent in extents {
        match extent.content {
            RawContent::Data { ref bytes, crc } if has_zeroes(&extent) && crc32(bytes) == crc => {
                take_apart(&extent, bytes, &mut found);
            }
            _ => found.push(extent),
        }
    }
    found
}

fn is_zero_block(block: &[u8]) -> bool {
    block.len() == BLOCK as usize && is_zero(&block[..GLANCE_BYTES]) && is_zero(block)
}

fn take_apart(extent: &RawExtent, bytes: &Bytes, found: &mut Vec<RawExtent>) {
    let blocks: Vec<&[u8]> = bytes.chunks(BLOCK as usize).collect();
    let mut at = 0;
    for run in blocks.chunk_by(|a, b| is_zero_block(a) == is_zero_block(b)) {
        let len: usize = run.iter().map(|block| block.len()).sum();
        let content = if is_zero_block(run[0]) {
            // At most 1 MiB: an extent's length fits.
            RawContent::Zero { sectors: (len as u64 / SECTOR) as u32 }
        } else {
            let data = bytes.slice(at..at + len);
            let crc = crc32(&data);
            RawContent::Data { bytes: data, crc }
        };
        found.push(RawExtent { disk: extent.disk, sector: extent.sector + at as u64 / SECTOR, content });
        at += len;
    }
}

#[cfg(test)]
mod tests {
    use proto::ids::DiskIndex;

    use super::*;

    fn data(sector: u64, bytes: Vec<u8>) -> RawExtent {
        let bytes = Bytes::from(bytes);
        let crc = crc32(&bytes);
        RawExtent { disk: DiskIndex(1), sector, content: RawContent::Data { bytes, crc } }
    }

    fn shape(extents: &[RawExtent]) -> Vec<(u64, u64, bool)> {
        let one = |extent: &RawExtent| match &extent.content {
            RawContent::Data { bytes, crc } => {
                assert_eq!(crc32(bytes), *crc);
                (extent.sector, bytes.len() as u64 / SECTOR, true)
            }
            RawContent::Zero { sectors } | RawContent::Unreadable { sectors } => {
                (extent.sector, u64::from(*sectors), false)
            }
        };
        extents.iter().map(one).collect()
    }

    #[test]
    fn zero_blocks_become_ranges_and_the_rest_keeps_its_place() {
        let mut bytes = vec![7; 5 * 4096 + 512];
        bytes[4096..3 * 4096].fill(0);
        bytes[5 * 4096..].fill(0);
        let found = find_zeroes(vec![data(100, bytes)]);
        assert_eq!(shape(&found), vec![(100, 8, true), (108, 16, false), (124, 17, true)]);
    }

    #[test]
    fn a_block_that_only_begins_with_zeroes_is_data() {
        let mut bytes = vec![0; 4096];
        bytes[4095] = 1;
        assert_eq!(shape(&find_zeroes(vec![data(8, bytes)])), vec![(8, 8, true)]);
    }

    #[test]
    fn damaged_data_is_left_for_the_encoder_to_refuse() {
        let mut extent = data(8, vec![0; 8192]);
        if let RawContent::Data { crc, .. } = &mut extent.content {
            *crc ^= 1;
        }
        let found = find_zeroes(vec![extent]);
        assert!(matches!(found[0].content, RawContent::Data { .. }));
    }
}
