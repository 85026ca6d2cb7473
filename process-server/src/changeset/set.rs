//! One change set: per disk, the extents that its epoch changed.
//!
//! A later write of the same epoch replaces an earlier one. Extents that are on disk cover whole 4 KiB blocks, the
//! unit of copy before write; everything else is exact to the sector. The memory a set costs is counted in pinned
//! buffers plus an allowance per extent and per set (S19), so that a budget over sets is a bound on memory. What lies in the
//! spool costs the allowance only.

use std::time::Duration;

use blockio::{BLOCK, ExtentMap, SECTOR, Slice};
use proto::ids::{DiskIndex, Epoch};
use proto::replication::PointKind;
use proto::time::Timestamp;

use super::content::Content;

/// Memory charged for each extent beside its buffer: tree node share, `Bytes` handle, allocator slack.
pub const EXTENT_COST: u64 = 160;
/// Memory charged for a set beside its extents.
pub const SET_COST: u64 = 1024;
/// Sectors in a block.
const BLOCK_SECTORS: u64 = BLOCK / SECTOR;

/// When and as what a set was cut.
#[derive(Debug, Clone)]
pub struct CutMark {
    /// Time of the cut: the time of the recovery point.
    pub time: Timestamp,
    /// The same moment on the driver's monotonic clock: what is late is not a matter of the wall clock.
    pub mono: Duration,
    /// Label given by the operator, if any.
    pub label: Option<String>,
    /// Whether the machines were quiesced at that time.
    pub kind: PointKind,
}

/// What one epoch changed. See the module's documentation.
#[derive(Debug)]
pub struct ChangeSet {
    epoch: Epoch,
    disks: Vec<ExtentMap<Content>>,
    /// Pinned bytes by a simple rule: every captured extent is charged its whole buffer. Slices of one buffer are
    /// each charged for it, which errs on the safe side.
    charged: u64,
    /// Of these, what captured extents pin.
    pinned: u64,
    cut: Option<CutMark>,
    on_disk_blocks: u64,
}

impl ChangeSet {
    /// An empty set of `epoch` over `disks` disks.
    #[must_use]
    pub fn new(epoch: Epoch, disks: usize) -> Self {
        Self {
            epoch,
            disks: (0..disks).map(|_| ExtentMap::new()).collect(),
            charged: SET_COST,
            pinned: 0,
            cut: None,
            on_disk_blocks: 0,
        }
    }

    /// The epoch whose writes it holds.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.disks.iter().all(ExtentMap::is_empty)
    }

    /// Bytes of memory charged to it.
    #[must_use]
    pub fn charged(&self) -> u64 {
        self.charged
    }

    /// Bytes of buffers that it pins: what moving it to the spool would free.
    #[must_use]
    pub fn pinned(&self) -> u64 {
        self.pinned
    }

    /// Closes it for writes of later epochs.
    pub fn cut(&mut self, mark: CutMark) {
        assert!(self.cut.is_none(), "a set is cut once");
        self.cut = Some(mark);
    }

    /// When it was cut, if it was.
    #[must_use]
    pub fn cut_mark(&self) -> Option<&CutMark> {
        self.cut.as_ref()
    }

    /// Number of sectors it changes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.disks.iter().map(ExtentMap::units).sum()
    }

    /// Number of blocks that are still on disk.
    #[must_use]
    pub fn on_disk_blocks(&self) -> u64 {
        self.on_disk_blocks
    }

    /// The extents of one disk, in sectors.
    #[must_use]
    pub fn extents(&self, disk: DiskIndex) -> &ExtentMap<Content> {
        &self.disks[disk.0 as usize]
    }

    /// Number of disks.
    #[must_use]
    pub fn disks(&self) -> usize {
        self.disks.len()
    }

    /// Records a completed write of data or zeroes, exact to the sector.
    pub fn insert(&mut self, disk: DiskIndex, sector: u64, sectors: u64, content: Content) {
        let map = &mut self.disks[disk.0 as usize];
        let before = Charge::around(map, sector, sectors);
        map.insert(sector, sectors, content);
        let after = Charge::around(map, sector, sectors);
        self.charged = self.charged + after.memory() - before.memory();
        self.pinned = self.pinned + after.pinned - before.pinned;
        self.on_disk_blocks = self.on_disk_blocks + after.on_disk_blocks - before.on_disk_blocks;
    }

    /// Records blocks whose content must be read from the disk. `disk_sectors` bounds the last, possibly short block.
    pub fn on_disk(&mut self, disk: DiskIndex, block: u64, blocks: u64, disk_sectors: u64) {
        let first = block * BLOCK_SECTORS;
        let last = ((block + blocks) * BLOCK_SECTORS).min(disk_sectors);
        self.insert(disk, first, last - first, Content::OnDisk);
    }

    /// Whether any sector of the blocks is still on disk.
    #[must_use]
    pub fn holds(&self, disk: DiskIndex, block: u64, blocks: u64) -> bool {
        self.on_disk_blocks > 0
            && self.disks[disk.0 as usize]
                .overlapping(block * BLOCK_SECTORS, blocks * BLOCK_SECTORS)
                .any(|(_, _, content)| matches!(content, Content::OnDisk))
    }

    /// The parts of `[sector, sector + sectors)` that are still on disk.
    #[must_use]
    pub fn held_ranges(&self, disk: DiskIndex, sector: u64, sectors: u64) -> Vec<(u64, u64)> {
        self.disks[disk.0 as usize]
            .clipped(sector, sectors)
            .filter(|(_, _, content)| matches!(content, Content::OnDisk))
            .map(|(start, len, _)| (start, len))
            .collect()
    }

    /// Copy before write: `old` is the content from `sector` on. Only what is still on disk takes it: these ranges.
    pub fn save(&mut self, disk: DiskIndex, sector: u64, sectors: u64, old: &Content) -> Vec<(u64, u64)> {
        let held = self.held_ranges(disk, sector, sectors);
        for (start, len) in &held {
            self.insert(disk, *start, *len, old.slice(start - sector, *len));
        }
        held
    }

    /// Every block that the set touches, as runs of (disk, first block, blocks): what becomes dirty when it is dropped.
    pub fn block_runs(&self) -> impl Iterator<Item = (DiskIndex, u64, u64)> + '_ {
        self.disks.iter().enumerate().flat_map(|(disk, map)| {
            map.iter().map(move |(start, len, _)| {
                let first = start / BLOCK_SECTORS;
                let end = (start + len).div_ceil(BLOCK_SECTORS);
                (DiskIndex(disk as u32), first, end - first)
            })
        })
    }
}

/// What extents cost.
#[derive(Debug, Default)]
struct Charge {
    extents: u64,
    pinned: u64,
    on_disk_blocks: u64,
}

impl Charge {
    /// That of every extent that touches the range or borders on it, so that the difference before and after an
    /// insertion is exact whatever was split or joined.
    fn around(map: &ExtentMap<Content>, sector: u64, sectors: u64) -> Self {
        let from = sector.saturating_sub(1);
        let mut charge = Self::default();
        for (_, len, content) in map.overlapping(from, sector + sectors + 1 - from) {
            charge.extents += 1;
            match content {
                Content::Captured(captured) => charge.pinned += captured.pinned(),
                Content::OnDisk => charge.on_disk_blocks += len.div_ceil(BLOCK_SECTORS),
                Content::Spooled(_) | Content::Zero | Content::Unreadable => {}
            }
        }
        charge
    }

    fn memory(&self) -> u64 {
        self.extents * EXTENT_COST + self.pinned
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proto::frame::RawContent;

    use super::super::content::Captured;
    use super::super::spooled::{Record, Spooled};
    use super::*;

    const DISK: DiskIndex = DiskIndex(0);

    fn captured(value: u8, sectors: usize) -> Content {
        Content::Captured(Captured::checksummed(Bytes::from(vec![value; sectors * 512])))
    }

    fn byte_at(set: &ChangeSet, sector: u64) -> Option<u8> {
        set.extents(DISK).clipped(sector, 1).next().map(|(_, _, content)| match content {
            Content::Captured(captured) => match captured.to_raw() {
                Some(RawContent::Data { bytes, .. }) => bytes[0],
                _ => panic!("captured content is intact"),
            },
            Content::Zero => 0,
            Content::OnDisk | Content::Unreadable | Content::Spooled(_) => 255,
        })
    }

    #[test]
    fn a_later_write_of_the_epoch_replaces_an_earlier_one_to_the_sector() {
        let mut set = ChangeSet::new(Epoch(1), 1);
        set.insert(DISK, 0, 8, captured(1, 8));
        set.insert(DISK, 3, 1, captured(2, 1));
        assert_eq!((byte_at(&set, 2), byte_at(&set, 3), byte_at(&set, 4)), (Some(1), Some(2), Some(1)));
        assert_eq!(set.sectors(), 8);
    }

    #[test]
    fn a_small_remainder_is_charged_for_the_whole_buffer_it_pins() {
        let mut set = ChangeSet::new(Epoch(1), 1);
        let empty = set.charged();
        set.insert(DISK, 0, 8, captured(1, 8));
        set.insert(DISK, 0, 7, captured(2, 7));
        assert!(set.charged() - empty >= 8 * 512 + 7 * 512);
        set.insert(DISK, 0, 8, Content::Zero);
        assert_eq!(set.charged() - empty, EXTENT_COST);
    }

    #[test]
    fn what_lies_in_the_spool_pins_nothing_but_its_place_in_the_index() {
        let mut set = ChangeSet::new(Epoch(1), 1);
        let empty = set.charged();
        set.insert(DISK, 0, 8, captured(1, 8));
        assert_eq!((set.charged() - empty, set.pinned()), (EXTENT_COST + 4096, 4096));
        set.insert(DISK, 0, 8, Content::Spooled(Spooled::new(Record { offset: 0, bytes: 4096, crc: 7 })));
        assert_eq!((set.charged() - empty, set.pinned(), set.sectors()), (EXTENT_COST, 0, 8));
    }

    #[test]
    fn copy_before_write_fills_only_what_is_still_on_disk() {
        let mut set = ChangeSet::new(Epoch(1), 1);
        set.on_disk(DISK, 0, 2, 1000);
        assert_eq!(set.on_disk_blocks(), 2);
        set.save(DISK, 0, 8, &captured(7, 8));
        assert!(!set.holds(DISK, 0, 1));
        assert!(set.holds(DISK, 1, 1));
        set.save(DISK, 0, 16, &captured(9, 16));
        assert_eq!((byte_at(&set, 0), byte_at(&set, 8)), (Some(7), Some(9)));
        assert_eq!(set.on_disk_blocks(), 0);
    }

    #[test]
    fn the_last_block_of_a_disk_may_be_short() {
        let mut set = ChangeSet::new(Epoch(1), 1);
        set.on_disk(DISK, 1, 1, 11);
        assert_eq!(set.held_ranges(DISK, 0, 100), vec![(8, 3)]);
        assert_eq!(set.block_runs().collect::<Vec<_>>(), vec![(DISK, 1, 1)]);
    }
}
