//! Content as what differs from what stood there before: for links on which bytes are scarce.
//!
//! Most of what a database writes is a page of which a few bytes have changed. Laid over its previous content with XOR it is
//! zeroes but for these, and zstd makes next to nothing of it. The source may do so with blocks of which it knows what the
//! target durably has ([`Bases`]); the target lays them over what it has, and stores frames that need nothing else. A
//! checksum of all bases and the CRC of each extent's own content tell whether both meant the same (docs/wire-format.md).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::encode::{RawContent, RawExtent};
use super::parcel::Parcel;
use crate::ids::DiskIndex;
use crate::limits::{FRAME_EXTENTS_MAX, SECTOR_BYTES};
use crate::replication::{Extent, FrameHeader};

/// Bytes of a block, the unit of bases.
pub const BASE_BYTES: usize = 4096;
/// Sectors of a block.
pub(super) const BASE_SECTORS: u64 = BASE_BYTES as u64 / SECTOR_BYTES;
/// A delta is laid where at least one of so many bytes stays the same: less is compressed no better for it.
const SAME_SHARE: usize = 2;

/// Where what the target has of a block is kept.
#[derive(Debug, Clone)]
pub struct Base {
    /// What holds it, among others.
    pub parcel: Arc<Parcel>,
    /// Where it begins in that, bytes.
    pub at: u32,
    /// The target has it once this set is applied.
    pub set: u64,
}

/// What the target durably has of blocks that a part overwrites, as its source knows.
#[derive(Debug, Clone, Default)]
pub struct Bases {
    blocks: BTreeMap<(u32, u64), Base>,
}

/// Blocks that use one parcel: their places, and where each begins in it.
pub(super) type Users = Vec<((u32, u64), Base)>;

impl Bases {
    /// Adds what the target has of a block.
    pub fn insert(&mut self, disk: DiskIndex, block: u64, base: Base) {
        self.blocks.insert((disk.0, block), base);
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// All of them: disk, block, base.
    pub fn iter(&self) -> impl Iterator<Item = (DiskIndex, u64, &Base)> {
        self.blocks.iter().map(|((disk, block), base)| (DiskIndex(*disk), *block, base))
    }

    /// The bases of what these frames may lay over them, by their parcels.
    pub(super) fn by_parcel(&self, frames: &[Vec<RawExtent>]) -> Vec<(Arc<Parcel>, Users)> {
        let mut parcels: BTreeMap<*const Parcel, (Arc<Parcel>, Users)> = BTreeMap::new();
        if self.is_empty() {
            return Vec::new();
        }
        for place in frames.iter().flatten().filter_map(blocks_of).flatten() {
            if let Some(base) = self.blocks.get(&place) {
                let users = parcels.entry(Arc::as_ptr(&base.parcel));
                users.or_insert_with(|| (Arc::clone(&base.parcel), Vec::new())).1.push((place, base.clone()));
            }
        }
        parcels.into_values().collect()
    }
}

/// The blocks of a data extent of whole blocks.
fn blocks_of(extent: &RawExtent) -> Option<impl Iterator<Item = (u32, u64)> + use<>> {
    let (disk, sectors) = (extent.disk.0, extent.sectors());
    let is_whole = extent.sector.is_multiple_of(BASE_SECTORS) && sectors.is_multiple_of(BASE_SECTORS);
    let is_data = matches!(extent.content, RawContent::Data { .. });
    let first = extent.sector / BASE_SECTORS;
    (is_data && is_whole).then(|| (first..first + sectors / BASE_SECTORS).map(move |block| (disk, block)))
}

/// Bases at hand.
#[derive(Debug, Default)]
pub(super) struct Known {
    blocks: BTreeMap<(u32, u64), (Bytes, u64)>,
}

impl Known {
    /// Adds blocks of one parcel, whose content this is.
    pub(super) fn add(&mut self, content: &Bytes, users: Users) {
        for (place, Base { at, set, .. }) in users {
            let at = at as usize;
            if let Some(range) = (at + BASE_BYTES <= content.len()).then(|| at..at + BASE_BYTES) {
                self.blocks.insert(place, (content.slice(range), set));
            }
        }
    }

    /// The bases of an extent of whole blocks of which all are known, and the newest of their sets.
    fn of(&self, extent: &RawExtent) -> Option<(Vec<&Bytes>, u64)> {
        let known: Option<Vec<_>> = blocks_of(extent)?.map(|place| self.blocks.get(&place)).collect();
        let known = known?;
        let set = known.iter().map(|(_, set)| *set).max()?;
        Some((known.into_iter().map(|(content, _)| content).collect(), set))
    }

    /// Takes extents apart of which only some blocks have a base, so that these can be deltas. An extent that no longer has the
    /// CRC of its capture is left as it is, to be refused.
    pub(super) fn split<'a>(&self, extents: &'a [RawExtent]) -> Cow<'a, [RawExtent]> {
        if self.blocks.is_empty() || !extents.iter().any(|extent| self.is_mixed(extent)) {
            return Cow::Borrowed(extents);
        }
        let mut split = Vec::with_capacity(extents.len() + 16);
        for extent in extents {
            match &extent.content {
                RawContent::Data { bytes, crc } if self.is_mixed(extent) && crc32fast::hash(bytes) == *crc => {
                    self.take_apart(extent, bytes, &mut split);
                }
                _ => split.push(extent.clone()),
            }
        }
        if split.len() > FRAME_EXTENTS_MAX { Cow::Borrowed(extents) } else { Cow::Owned(split) }
    }

    fn is_mixed(&self, extent: &RawExtent) -> bool {
        let Some(mut blocks) = blocks_of(extent) else { return false };
        let has_base = |place| self.blocks.contains_key(&place);
        let first = blocks.next().map(has_base);
        blocks.any(|place| Some(has_base(place)) != first)
    }

    fn take_apart(&self, extent: &RawExtent, bytes: &Bytes, split: &mut Vec<RawExtent>) {
        let blocks: Vec<_> = blocks_of(extent).into_iter().flatten().collect();
        let mut at = 0;
        for run in blocks.chunk_by(|a, b| self.blocks.contains_key(a) == self.blocks.contains_key(b)) {
            let bytes = bytes.slice(at..at + run.len() * BASE_BYTES);
            let (sector, crc) = (extent.sector + at as u64 / SECTOR_BYTES, crc32fast::hash(&bytes));
            at += bytes.len();
            split.push(RawExtent { disk: extent.disk, sector, content: RawContent::Data { bytes, crc } });
        }
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
pub(super) fn lay(extents: &[RawExtent], raw_len: usize, known: &Known) -> Option<Laid> {
    if known.blocks.is_empty() {
        return None;
    }
    let mut laid = Laid { raw: Vec::new(), deltas: Vec::new(), base_set: 0, base_crc: 0 };
    let mut sum = crc32fast::Hasher::new();
    let mut at = 0;
    for (index, extent) in extents.iter().enumerate() {
        let RawContent::Data { bytes, .. } = &extent.content else { continue };
        if let Some((base, set)) = known.of(extent)
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
