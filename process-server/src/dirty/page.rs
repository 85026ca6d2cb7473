//! One page of write-intent marks on the state volume: 4 KiB that stand for themselves.
//!
//! ```text
//!  0  magic "BHMK"          16  disk (u32)            40  lineage (16 bytes, zero: none)
//!  4  version (u32)         20  page of the disk      56  counter (u64)
//!  8  CRC-32 of the page    24  commit (u64)          64  bits, lowest first: 32,256 regions
//! 12  zero                  32  regions of the disk
//! ```
//!
//! All numbers are little-endian; the CRC is taken with its own field zero. A page is written in place. One that is torn
//! fails its CRC and counts as marked everywhere, so that nothing is lost by it (REVIEW W2). Each page carries the
//! counter of the acknowledgement that its cleared bits rely on (rule L1): whichever pages of a commit reach the disk,
//! a cleared bit never does without its counter.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Bytes before the bits.
const HEAD_BYTES: usize = 64;
/// Regions of one page.
pub(super) const PAGE_REGIONS: u64 = ((PAGE_BYTES - HEAD_BYTES) * 8) as u64;
/// Words of a page's bits.
pub(super) const PAGE_WORDS: usize = (PAGE_BYTES - HEAD_BYTES) / 8;

const MAGIC: [u8; 4] = *b"BHMK";
const VERSION: u32 = 1;
const CRC_AT: usize = 8;

/// The bits of a page.
pub(super) type Bits = [u64; PAGE_WORDS];

/// A page's place and what it says beside its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub disk: u32,
    pub page: u32,
    /// Regions of the whole disk: another size is another disk.
    pub regions: u64,
    /// Number of the commit that wrote the page.
    pub commit: u64,
    /// Lineage of the target; zero while none is known.
    pub lineage: [u8; 16],
    /// The newest durable counter of the target.
    pub counter: u64,
}

pub(super) fn encode(head: &Head, bits: &Bits) -> Bytes {
    let mut page = BytesMut::with_capacity(PAGE_BYTES);
    page.put_slice(&MAGIC);
    page.put_u32_le(VERSION);
    page.put_u64_le(0);
    page.put_u32_le(head.disk);
    page.put_u32_le(head.page);
    page.put_u64_le(head.commit);
    page.put_u64_le(head.regions);
    page.put_slice(&head.lineage);
    page.put_u64_le(head.counter);
    for word in bits {
        page.put_u64_le(*word);
    }
    debug_assert_eq!(page.len(), PAGE_BYTES);
    let crc = blockio::crc32(&page);
    page[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    page.freeze()
}

/// What a page holds; none where it is damaged or of another version.
pub(super) fn decode(page: &[u8]) -> Option<(Head, Box<Bits>)> {
    let word = |at: usize| u64::from_le_bytes(*page[at..].first_chunk().expect("the length was checked"));
    let half = |at: usize| u32::from_le_bytes(*page[at..].first_chunk().expect("the length was checked"));
    if page.len() != PAGE_BYTES || page[..4] != MAGIC || half(4) != VERSION {
        return None;
    }
    let mut plain = page.to_vec();
    plain[CRC_AT..CRC_AT + 4].fill(0);
    if blockio::crc32(&plain) != half(CRC_AT) {
        return None;
    }
    let lineage = *page[40..].first_chunk().expect("the length was checked");
    let head = Head { disk: half(16), page: half(20), commit: word(24), regions: word(32), lineage, counter: word(56) };
    let mut bits = Box::new([0; PAGE_WORDS]);
    for (index, bits) in bits.iter_mut().enumerate() {
        *bits = word(HEAD_BYTES + index * 8);
    }
    Some((head, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { disk: 3, page: 2, regions: 70_000, commit: 77, lineage: [5; 16], counter: 9 }
    }

    fn bits() -> Bits {
        std::array::from_fn(|index| (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    #[test]
    fn a_page_says_what_was_put_into_it() {
        let page = encode(&head(), &bits());
        assert_eq!(page.len(), PAGE_BYTES);
        let (read, there) = decode(&page).unwrap();
        assert_eq!((read, *there), (head(), bits()));
    }

    #[test]
    fn any_flipped_bit_and_any_torn_page_is_noticed() {
        let (old, new) = (encode(&head(), &bits()), encode(&Head { commit: 78, ..head() }, &[0; PAGE_WORDS]));
        for at in (0..PAGE_BYTES * 8).step_by(101) {
            let mut flipped = old.to_vec();
            flipped[at / 8] ^= 1 << (at % 8);
            assert_eq!(decode(&flipped), None, "bit {at}");
        }
        for sectors in 1..PAGE_BYTES / 512 {
            let mut torn = old.to_vec();
            torn[..sectors * 512].copy_from_slice(&new[..sectors * 512]);
            assert_eq!(decode(&torn), None, "torn after {sectors} sectors");
        }
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[0; PAGE_BYTES]), None);
        assert_eq!(decode(&old[..PAGE_BYTES - 1]), None);
    }
}
