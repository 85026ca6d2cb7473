//! What the target durably has of blocks, as far as it is remembered, so that their next content can go as a delta.
//!
//! What is sent comes here as parcels, compressed where it was encoded. They wait until the target says that it has their part;
//! then their blocks become bases, and whatever was known of these blocks before is forgotten. A block is also forgotten when
//! anything else writes it on the target. The oldest parcels leave first, those without a block that counts at once.
//!
//! What a catching-up sent is worth as much as what a set left, once the set that closes it is acknowledged; but it only takes
//! room that is free, so that the first synchronisation of a large disk is not compressed twice, only to be thrown away.
//! This is a memory, and decides nothing about when it may be used: that is `bases`.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockio::{BLOCK, SECTOR};
use proto::frame::{BASE_BYTES, Base, Keep, Parcel, ParcelRun};
use proto::ids::DiskIndex;

/// Share of the group's memory that is kept beside what sets may pin.
const MEMORY_SHARE: u64 = 8;
/// What is kept at least, bytes.
const BYTES_MIN: u64 = 64 << 10;
/// The most that is kept, bytes, compressed and with the index.
const BYTES_MAX: u64 = 64 << 20;
/// What a parcel takes beside its content, bytes: itself, its places in maps, what the allocator adds.
const PARCEL_BYTES: u64 = 256;
/// A run of blocks in it.
const RUN_BYTES: u64 = size_of::<ParcelRun>() as u64;
/// A block in the index: key and value, 32 bytes, in nodes that are two thirds full.
const BLOCK_BYTES: u64 = 48;
/// Sectors of a block.
const BLOCK_SECTORS: u64 = BLOCK / SECTOR;

/// Where a block's content is.
#[derive(Debug, Clone, Copy)]
struct Place {
    parcel: u64,
    at: u32,
}

/// A parcel whose blocks are bases.
#[derive(Debug)]
struct Stored {
    parcel: Arc<Parcel>,
    /// Blocks of it that still count.
    live: u32,
    /// The set that left it; `None`: a catching-up.
    set: Option<u64>,
}

/// What the target has, as far as it is remembered.
#[derive(Debug)]
pub(super) struct Recent {
    blocks: BTreeMap<(u32, u64), Place>,
    /// By age.
    parcels: BTreeMap<u64, Stored>,
    made: u64,
    /// Parcels of parts that the target has not acknowledged, by set (0: a catching-up) and part.
    waiting: BTreeMap<(u64, u32), Vec<Arc<Parcel>>>,
    /// Bytes of all parcels with what they take in the index.
    bytes: u64,
    bytes_max: u64,
    /// The set that closed the catching-up.
    closed_by: Option<u64>,
    link_compresses: bool,
    target_takes: bool,
}

impl Recent {
    /// Keeps at most an eighth of `memory_bytes`.
    pub(super) fn new(memory_bytes: u64) -> Self {
        Self {
            blocks: BTreeMap::new(),
            parcels: BTreeMap::new(),
            made: 0,
            waiting: BTreeMap::new(),
            bytes: 0,
            bytes_max: (memory_bytes / MEMORY_SHARE).clamp(BYTES_MIN, BYTES_MAX),
            closed_by: None,
            // As a link begins.
            link_compresses: true,
            target_takes: false,
        }
    }

    /// Another budget than memory gives.
    #[cfg(test)]
    pub(super) fn keeps_at_most(&mut self, bytes: u64) {
        self.bytes_max = bytes;
    }

    /// Nothing that is kept counts any more.
    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.parcels.clear();
        self.waiting.clear();
        self.bytes = 0;
        self.closed_by = None;
    }

    /// Whether deltas pay on the link. While they don't, nothing new is kept; what is there stays, since what a catching-up sent
    /// does not come again.
    pub(super) fn link_compresses(&mut self, compresses: bool) {
        self.link_compresses = compresses;
    }

    /// Whether the target takes deltas. It may have no time to read its disks for a moment: what is kept stays.
    pub(super) fn target_takes(&mut self, takes: bool) {
        self.target_takes = takes;
    }

    /// Whether there is anything that the target would take.
    pub(super) fn gives(&self) -> bool {
        self.link_compresses && self.target_takes && !self.blocks.is_empty()
    }

    /// What is to be kept of a part of a set.
    pub(super) fn keep_of_sets(&self) -> Keep {
        if self.link_compresses { Keep::Pages } else { Keep::Nothing }
    }

    /// What is to be kept of a part of a catching-up.
    pub(super) fn keep_of_bulk(&self) -> Keep {
        if self.link_compresses && self.bytes < self.bytes_max { Keep::Shrinking } else { Keep::Nothing }
    }

    /// Parcels of a part that is on its way: of a set, or of a catching-up (set 0).
    pub(super) fn sent(&mut self, (set, part): (u64, u32), parcels: Vec<Arc<Parcel>>) {
        for parcel in parcels {
            let bytes = cost(&parcel);
            if set > 0 {
                self.make_room(bytes);
            }
            if self.bytes + bytes <= self.bytes_max {
                self.bytes += bytes;
                self.waiting.entry((set, part)).or_default().push(parcel);
            }
        }
    }

    /// A part of a catching-up is durable.
    pub(super) fn bulk_durable(&mut self, part: u32) {
        for parcel in self.waiting.remove(&(0, part)).unwrap_or_default() {
            self.store(parcel, None);
        }
    }

    /// A set is durable, and what it changes was forgotten: what was sent of it counts. `closes`: it is the rest of a catching-up.
    pub(super) fn set_durable(&mut self, set: u64, closes: bool) {
        let later = self.waiting.split_off(&(set, 0));
        let (own, later): (BTreeMap<_, _>, _) = later.into_iter().partition(|((of, _), _)| *of == set);
        self.waiting.extend(later);
        for parcel in own.into_values().flatten() {
            self.store(parcel, Some(set));
        }
        if closes {
            self.closed_by = Some(set);
        }
    }

    /// What the target has of a block, and once it has applied which set.
    pub(super) fn base(&self, disk: DiskIndex, block: u64) -> Option<Base> {
        let place = self.blocks.get(&(disk.0, block))?;
        let stored = &self.parcels[&place.parcel];
        let set = stored.set.or(self.closed_by)?;
        Some(Base { parcel: Arc::clone(&stored.parcel), at: place.at, set })
    }

    /// Something else than what is known writes there.
    pub(super) fn forget(&mut self, disk: DiskIndex, sector: u64, sectors: u64) {
        let (first, end) = (sector / BLOCK_SECTORS, (sector + sectors).div_ceil(BLOCK_SECTORS));
        if end - first == 1 {
            return self.forget_block((disk.0, first));
        }
        let gone: Vec<_> = self.blocks.range((disk.0, first)..(disk.0, end)).map(|(key, _)| *key).collect();
        gone.into_iter().for_each(|key| self.forget_block(key));
    }

    fn forget_block(&mut self, key: (u32, u64)) {
        if let Some(place) = self.blocks.remove(&key) {
            self.uses_less(place.parcel);
        }
    }

    fn uses_less(&mut self, id: u64) {
        let stored = self.parcels.get_mut(&id).expect("a block in the index has its parcel");
        stored.live -= 1;
        if stored.live == 0 {
            self.bytes -= cost(&stored.parcel);
            self.parcels.remove(&id);
        }
    }

    fn store(&mut self, parcel: Arc<Parcel>, set: Option<u64>) {
        self.made += 1;
        let id = self.made;
        let keys: Vec<_> = blocks_of(&parcel).collect();
        self.parcels.insert(id, Stored { parcel, live: keys.len() as u32, set });
        for (key, at) in keys {
            if let Some(old) = self.blocks.insert(key, Place { parcel: id, at }) {
                self.uses_less(old.parcel);
            }
        }
    }

    /// The oldest parcels leave until there is room for so many bytes.
    fn make_room(&mut self, bytes: u64) {
        while self.bytes + bytes > self.bytes_max {
            let Some((id, oldest)) = self.parcels.pop_first() else { return };
            self.bytes -= cost(&oldest.parcel);
            for (key, _) in blocks_of(&oldest.parcel) {
                if self.blocks.get(&key).is_some_and(|place| place.parcel == id) {
                    self.blocks.remove(&key);
                }
            }
        }
    }
}

/// The blocks in a parcel, and where each begins.
fn blocks_of(parcel: &Parcel) -> impl Iterator<Item = ((u32, u64), u32)> {
    let of_run = |run: &ParcelRun| {
        let ParcelRun { disk, block, blocks, at } = *run;
        (0..blocks).map(move |index| ((disk.0, block + u64::from(index)), at + index * BASE_BYTES as u32))
    };
    parcel.runs().iter().flat_map(of_run)
}

fn cost(parcel: &Parcel) -> u64 {
    let blocks: u64 = parcel.runs().iter().map(|run| u64::from(run.blocks)).sum();
    let runs = parcel.runs().len() as u64;
    parcel.packed_bytes() as u64 + PARCEL_BYTES + runs * RUN_BYTES + blocks * BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proto::frame::{Bases, Compression, Decoder, Encoder, RawContent, RawExtent};

    const DISK: DiskIndex = DiskIndex(0);

    /// Parcels of one frame that writes these blocks, each byte `value`.
    fn parcels(blocks: &[(u64, u64)], value: u8) -> Vec<Arc<Parcel>> {
        let extent = |(block, blocks): &(u64, u64)| {
            let bytes = Bytes::from(vec![value; (*blocks * BLOCK) as usize]);
            let crc = blockio::crc32(&bytes);
            RawExtent { disk: DISK, sector: block * BLOCK_SECTORS, content: RawContent::Data { bytes, crc } }
        };
        let frames = [blocks.iter().map(extent).collect()];
        let level = Compression::Zstd(1);
        Encoder::new().encode_batch((1, 0), &frames, level, &Bases::default(), Keep::Shrinking).unwrap().parcels
    }

    fn writes(recent: &mut Recent, set: u64, blocks: &[(u64, u64)], value: u8) {
        recent.sent((set, 0), parcels(blocks, value));
        blocks.iter().for_each(|(block, blocks)| recent.forget(DISK, block * BLOCK_SECTORS, blocks * BLOCK_SECTORS));
        recent.set_durable(set, false);
    }

    /// Block, value, set of all that would be given.
    fn known(recent: &Recent) -> Vec<(u64, u8, u64)> {
        let one = |(_, block): &(u32, u64)| {
            let base = recent.base(DISK, *block)?;
            let content = base.parcel.open(&mut Decoder::new()).unwrap();
            Some((*block, content[base.at as usize], base.set))
        };
        recent.blocks.keys().filter_map(one).collect()
    }

    #[test]
    fn what_was_sent_counts_when_its_set_is_durable_and_what_came_before_is_forgotten() {
        let mut recent = Recent::new(0);
        recent.sent((5, 0), parcels(&[(0, 2), (10, 1)], 1));
        recent.sent((5, 1), parcels(&[(20, 1)], 1));
        recent.sent((6, 0), parcels(&[(1, 1)], 2));
        assert_eq!(known(&recent), []);
        recent.set_durable(5, false);
        assert_eq!(known(&recent), [(0, 1, 5), (1, 1, 5), (10, 1, 5), (20, 1, 5)]);
        recent.set_durable(6, false);
        assert_eq!(known(&recent), [(0, 1, 5), (1, 2, 6), (10, 1, 5), (20, 1, 5)]);
        // A part of a block, and then everything.
        recent.forget(DISK, 10 * BLOCK_SECTORS + 3, 1);
        assert_eq!(known(&recent), [(0, 1, 5), (1, 2, 6), (20, 1, 5)]);
        recent.forget(DISK, 0, 1 << 21);
        assert_eq!((known(&recent), recent.parcels.len(), recent.bytes), (vec![], 0, 0));
    }

    #[test]
    fn parcels_leave_oldest_first_and_those_without_a_block_at_once() {
        let mut recent = Recent::new(0);
        let one = cost(&parcels(&[(0, 1)], 1)[0]);
        recent.keeps_at_most(3 * one);
        for set in 1..1000 {
            writes(&mut recent, set, &[(7, 1)], set as u8);
        }
        assert_eq!((known(&recent), recent.parcels.len(), recent.bytes), (vec![(7, 231, 999)], 1, one));
        for block in 10..14 {
            writes(&mut recent, 1000 + block, &[(block, 1)], 3);
        }
        assert_eq!(known(&recent), [(11, 3, 1011), (12, 3, 1012), (13, 3, 1013)]);
        assert_eq!(recent.bytes, 3 * one);
        // What waits counts, too, and more than all of the budget is not taken.
        (0..4).for_each(|part| recent.sent((2000, part), parcels(&[(u64::from(part), 1)], 4)));
        assert_eq!((known(&recent), recent.bytes), (vec![], 3 * one));
        recent.set_durable(2000, false);
        assert_eq!(known(&recent), [(0, 4, 2000), (1, 4, 2000), (2, 4, 2000)]);
    }

    #[test]
    fn what_a_catching_up_sent_counts_when_it_is_closed_and_takes_only_room_that_is_free() {
        let mut recent = Recent::new(0);
        let one = cost(&parcels(&[(0, 1)], 1)[0]);
        recent.keeps_at_most(3 * one);
        for part in 0..4 {
            recent.sent((0, part), parcels(&[(u64::from(part), 1)], 1));
        }
        assert_eq!(recent.keep_of_bulk(), Keep::Nothing);
        assert_eq!(recent.keep_of_sets(), Keep::Pages);
        (0..3).for_each(|part| recent.bulk_durable(part));
        assert_eq!(known(&recent), []);
        recent.sent((9, 0), parcels(&[(1, 1)], 2));
        recent.forget(DISK, BLOCK_SECTORS, BLOCK_SECTORS);
        recent.set_durable(9, true);
        // The oldest made room for what the set sent.
        assert_eq!(known(&recent), [(1, 2, 9), (2, 1, 9)]);
        assert_eq!(recent.keep_of_bulk(), Keep::Shrinking);
    }

    #[test]
    fn nothing_new_is_kept_while_the_link_does_not_compress_and_what_is_there_stays() {
        let mut recent = Recent::new(0);
        writes(&mut recent, 1, &[(0, 1)], 1);
        assert!(!recent.gives());
        recent.target_takes(true);
        assert!(recent.gives());
        recent.link_compresses(false);
        assert!(!recent.gives());
        assert_eq!((recent.keep_of_sets(), recent.keep_of_bulk()), (Keep::Nothing, Keep::Nothing));
        recent.link_compresses(true);
        assert_eq!(known(&recent), [(0, 1, 1)]);
        recent.clear();
        assert_eq!((known(&recent), recent.bytes, recent.gives()), (vec![], 0, false));
    }
}
