//! Rot of the target's disks, and what it explains: the ledger of all bytes that flipped.
//!
//! A block rots only while its sum is known, so the target can notice. From then on a point may *refuse* the block, and may
//! not show what rotted. The entry closes when the disk holds other content there, durably, and the table does not call
//! the block damaged: points that were durable by then may refuse it for as long as they are listed, later ones may not.
//!
//! A loss of power takes sums that were not durable, and leaves none where a page is torn (docs/block-sums.md, "What is not
//! known"). A block that rotted before is *blind* from then on: nobody can notice, and points up to its close may show it.

use std::collections::{BTreeMap, BTreeSet};

use master_target::journal::Volume;

use super::history::Content;
use super::judge::contents;
use super::target::Target;

/// Bytes of a block and of a page of the tables.
const BLOCK: u64 = 4096;
/// Sums of a page, after its head of two words.
const SUMS_PER_PAGE: u64 = 1022;
/// The last set, while an entry is open.
const OPEN: u64 = u64::MAX;

/// A place: disk and sector, or disk and block.
type Place = (u32, u64);

/// The ledger. See the module's documentation.
#[derive(Debug, Clone, Default)]
pub struct Rot {
    /// Sectors of the disks that hold what rotted.
    rotten: BTreeMap<Place, Content>,
    /// They hold something else, but a loss of power may bring the rot back.
    fading: BTreeMap<Place, Content>,
    /// Blocks, with the last set whose point may refuse them.
    refusable: BTreeMap<Place, u64>,
    /// Blocks, with the last set whose point may show rot.
    blind: BTreeMap<Place, u64>,
}

/// What the table says of a block: 0 where nothing is known, 1 where it is damaged. Read as a restart would.
fn sum(target: &Target, (disk, block): Place) -> u32 {
    let page = |number: u64| {
        let mut page = [0; BLOCK as usize];
        let read = target.volume.read_at(&format!("sums-{disk:08}"), number * BLOCK, &mut page);
        read.ok().map(|()| page)
    };
    let number = block / SUMS_PER_PAGE;
    let Some((head, page)) = page(0).zip(page(number + 1)) else { return 0 };
    let word = |of: &[u8], at: usize| of[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
    // A table whose head was lost with the power is no table.
    let is_table = head.starts_with(b"BHBS") && word(&head, 8) == blockio::crc32(&head[12..]);
    let is_whole = word(&page, 0) == blockio::crc32(&page[4..]) && u64::from(word(&page, 4)) == number;
    if is_table && is_whole { word(&page, 8 + (block % SUMS_PER_PAGE) as usize * 4) } else { 0 }
}

impl Rot {
    /// A byte of a sector flips, if the sum of its block is known, and the sector is right: a second flip might mend it.
    pub fn flip(&mut self, target: &Target, disk: u32, sector: u64, byte: u64) -> bool {
        if sum(target, (disk, sector / 8)) <= 1 || self.is_on_disk((disk, sector)) {
            return false;
        }
        let mut content = target.disks.look(disk, |bytes| bytes[sector as usize * 512..][..512].to_vec());
        content[(byte % 8) as usize] ^= 0x10;
        target.disks.overwrite(disk, sector * 512, &content);
        self.fading.remove(&(disk, sector));
        self.rotten.insert((disk, sector), contents(&content)[0]);
        self.refusable.insert((disk, sector / 8), OPEN);
        true
    }

    /// Whether anything ever rotted.
    #[must_use]
    pub fn has_happened(&self) -> bool {
        !self.refusable.is_empty()
    }

    /// Follows what became of the rot.
    pub fn watch(&mut self, target: &Target) {
        if self.refusable.values().all(|last| *last != OPEN) {
            return;
        }
        let synced: Vec<Vec<Content>> = target.disks.synced().iter().map(|disk| contents(disk)).collect();
        let holds = |(disk, sector): Place| {
            target.disks.look(disk, |bytes| contents(&bytes[sector as usize * 512..][..512])[0])
        };
        let gone: Vec<_> = self.rotten.extract_if(.., |place, rot| holds(*place) != *rot).collect();
        self.fading.extend(gone);
        let back: Vec<_> = self.fading.extract_if(.., |place, rot| holds(*place) == *rot).collect();
        self.fading.retain(|(disk, sector), rot| synced[*disk as usize][*sector as usize] == *rot);
        for ((disk, sector), rot) in back {
            // The sum was forgotten for the write that was lost.
            self.rotten.insert((disk, sector), rot);
            self.look_for_blind(target);
        }
        let Some(journal) = target.journal.as_ref().filter(|journal| !journal.has_stopped()) else { return };
        if target.fuse.is_burnt() {
            return;
        }
        let last = journal.last_durable_set().0;
        for (place, until) in self.refusable.iter_mut().filter(|(_, until)| **until == OPEN) {
            let is_in = |(disk, sector): &Place| (*disk, sector / 8) == *place;
            if !self.rotten.keys().chain(self.fading.keys()).any(is_in) && sum(target, *place) != 1 {
                *until = last;
                self.blind.entry(*place).and_modify(|until| *until = last.min(*until));
            }
        }
    }

    /// Power was lost: what is not known of rotten blocks any more can't be noticed.
    pub fn look_for_blind(&mut self, target: &Target) {
        for (disk, sector) in self.rotten.keys().chain(self.fading.keys()) {
            let place = (*disk, sector / 8);
            if sum(target, place) == 0 {
                self.blind.insert(place, OPEN);
            }
        }
    }

    /// Whether the point of a set may refuse a block.
    #[must_use]
    pub fn may_refuse(&self, place: Place, set: u64) -> bool {
        self.refusable.get(&place).is_some_and(|last| set <= *last)
    }

    /// Whether the point of a set may show rot in a sector.
    #[must_use]
    pub fn may_show(&self, (disk, sector): Place, set: u64) -> bool {
        self.blind.get(&(disk, sector / 8)).is_some_and(|last| set <= *last)
    }

    /// Whether a sector of the disks holds what rotted, or may again.
    #[must_use]
    pub fn is_on_disk(&self, place: Place) -> bool {
        self.rotten.contains_key(&place) || self.fading.contains_key(&place)
    }

    /// Sectors that hold what rotted.
    #[must_use]
    pub fn sectors(&self) -> BTreeSet<Place> {
        self.rotten.keys().copied().collect()
    }

    /// All sectors of blocks that are not known to be right again.
    pub fn suspects(&self) -> impl Iterator<Item = Place> {
        let open = self.refusable.iter().filter(|(_, last)| **last == OPEN);
        open.flat_map(|((disk, block), _)| (block * 8..block * 8 + 8).map(|sector| (*disk, sector)))
    }
}
