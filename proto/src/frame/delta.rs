//! Content as what differs from what stood there before: for links on which bytes are scarce.
//!
//! Most of what a database writes is a page of which a few bytes have changed. Laid over its previous content with XOR it is
//! zeroes but for these, and zstd makes next to nothing of it. The source may do so with blocks of which it knows what the
//! target durably has ([`Bases`]); the target lays them over what it has, and stores frames that need nothing else. A
//! checksum of all bases and the CRC of each extent's own content tell whether both meant the same (docs/wire-format.md).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::encode::{RawContent, RawExtent};
use crate::ids::DiskIndex;
use crate::limits::SECTOR_BYTES;
use crate::replication::{Extent, FrameHeader};

/// Bytes of a block, the unit of bases.
pub const BASE_BYTES: usize = 4096;
/// Sectors of a block.
const BASE_SECTORS: u64 = BASE_BYTES as u64 / SECTOR_BYTES;
/// A delta is laid where at least one of so many bytes stays the same: less is compressed no better for it.
const SAME_SHARE: usize = 2;

/// What the target durably has of blocks that a part overwrites, as its source knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bases {
    blocks: BTreeMap<(u32, u64), (Bytes, u64)>,
}

impl Bases {
    /// Adds what acknowledged set `set` left in a block. `content` is a block long.
    pub fn insert(&mut self, disk: DiskIndex, block: u64, content: Bytes, set: u64) {
        assert_eq!(content.len(), BASE_BYTES, "the base of a block is a block long");
        self.blocks.insert((disk.0, block), (content, set));
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// All of them: disk, block, content, set.
    pub fn iter(&self) -> impl Iterator<Item = (DiskIndex, u64, &Bytes, u64)> {
        self.blocks.iter().map(|((disk, block), (content, set))| (DiskIndex(*disk), *block, content, *set))
    }

    /// The bases of an extent of whole blocks of which all are known, and the newest of their sets.
    fn of(&self, extent: &RawExtent) -> Option<(Vec<&Bytes>, u64)> {
        let sectors = extent.sectors();
        if self.is_empty() || !extent.sector.is_multiple_of(BASE_SECTORS) || !sectors.is_multiple_of(BASE_SECTORS) {
            return None;
        }
        let first = extent.sector / BASE_SECTORS;
        let blocks = (first..first + sectors / BASE_SECTORS).map(|block| self.blocks.get(&(extent.disk.0, block)));
        let known: Option<Vec<_>> = blocks.collect();
        let known = known?;
        let set = known.iter().map(|(_, set)| *set).max()?;
        Some((known.into_iter().map(|(content, _)| content).collect(), set))
    }
}

/// The payload of extents of which some are deltas.
pub(super) struct Laid {
    /// All data extents one after the other.
    pub raw: Vec<u8>,
    /// Indexes of those that are deltas.
    pub deltas: Vec<usize>,
    /// The newest set that a base is of.
    pub base_set: u64,
    /// CRC-32 of all bases.
    pub base_crc: u32,
}

/// Lays extents over their bases where that pays; `None` where it pays for none.
pub(super) fn lay(extents: &[RawExtent], raw_len: usize, bases: &Bases) -> Option<Laid> {
    let mut laid = Laid { raw: Vec::new(), deltas: Vec::new(), base_set: 0, base_crc: 0 };
    let mut sum = crc32fast::Hasher::new();
    let mut at = 0;
    for (index, extent) in extents.iter().enumerate() {
        let RawContent::Data { bytes, .. } = &extent.content else { continue };
        if let Some((base, set)) = bases.of(extent)
            && pays(bytes, &base)
        {
            if laid.raw.is_empty() {
                laid.raw = gather(extents, raw_len);
            }
            for (target, base) in laid.raw[at..at + bytes.len()].chunks_mut(BASE_BYTES).zip(base) {
                xor(target, base);
                sum.update(base);
            }
            laid.deltas.push(index);
            laid.base_set = laid.base_set.max(set);
        }
        at += bytes.len();
    }
    laid.base_crc = sum.finalize();
    (!laid.deltas.is_empty()).then_some(laid)
}

fn gather(extents: &[RawExtent], raw_len: usize) -> Vec<u8> {
    let mut raw = Vec::with_capacity(raw_len);
    for extent in extents {
        if let RawContent::Data { bytes, .. } = &extent.content {
            raw.extend_from_slice(bytes);
        }
    }
    raw
}

fn pays(bytes: &[u8], base: &[&Bytes]) -> bool {
    let count = |(new, old): (&[u8], &&Bytes)| new.iter().zip(old.iter()).filter(|(new, old)| new == old).count();
    let same: usize = bytes.chunks(BASE_BYTES).zip(base).map(count).sum();
    same * SAME_SHARE >= bytes.len()
}

fn xor(target: &mut [u8], base: &[u8]) {
    target.iter_mut().zip(base).for_each(|(target, base)| *target ^= base);
}

/// Lays the deltas of a payload over their bases. False where these are not as long as the deltas are, or not what the source meant.
pub(super) fn unlay(header: &FrameHeader, raw: &mut [u8], base: &[u8]) -> bool {
    let len: usize = ranges(header).map(|(_, _, sectors)| sectors as usize * SECTOR_BYTES as usize).sum();
    if base.len() != len || crc32fast::hash(base) != header.base_crc {
        return false;
    }
    let (mut at, mut of_base) = (0, 0);
    for extent in &header.extents {
        let len = super::decode::extent_bytes(extent);
        if extent.is_delta {
            xor(&mut raw[at..at + len], &base[of_base..of_base + len]);
            of_base += len;
        }
        at += len;
    }
    true
}

/// Where the bases of a frame lie, in order: disk, first sector, sectors. Of a checked header.
pub fn ranges(header: &FrameHeader) -> impl Iterator<Item = (u32, u64, u32)> {
    header
        .extents
        .iter()
        .filter(|extent| extent.is_delta)
        .map(|Extent { disk, sector, sectors, .. }| (*disk, *sector, *sectors))
}
