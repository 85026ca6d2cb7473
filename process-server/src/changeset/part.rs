//! Cuts a sealed set into parts: the unit that travels on one stream, is acknowledged and is sent again.
//!
//! A plan names ranges, not contents: between planning and sending a range may turn from "on disk" into captured
//! (copy before write), and a part that is sent again after a lost link carries the same ranges.

use blockio::{BLOCK, SECTOR};
use proto::ids::DiskIndex;

use super::content::Content;
use super::set::ChangeSet;

/// Extents a part holds at most.
pub const PART_EXTENTS_MAX: usize = 8192;
/// Sectors of one planned range at most: reads for sending are of at most 1 MiB.
const RANGE_SECTORS_MAX: u64 = (1 << 20) / SECTOR;
/// Sectors of one zero range at most: 64 MiB, which keeps lengths far inside the wire's 32 bits.
const ZERO_SECTORS_MAX: u64 = (64 << 20) / SECTOR;

/// One range of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedRange {
    /// Disk of the group.
    pub disk: DiskIndex,
    /// First sector.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u64,
}

/// The ranges of one part, in order of disk and sector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartPlan {
    /// The ranges.
    pub ranges: Vec<PlannedRange>,
    /// Raw bytes of data in them.
    pub bytes: u64,
}

impl PartPlan {
    /// Cuts `set` into parts of at most `bytes_max` of data, or one extent. An empty set has none.
    #[must_use]
    pub fn of(set: &ChangeSet, bytes_max: u64) -> Vec<PartPlan> {
        let mut parts = Vec::new();
        let mut part = PartPlan::default();
        for disk in (0..set.disks()).map(|index| DiskIndex(index as u32)) {
            for (start, len, content) in set.extents(disk).iter() {
                let is_data = matches!(content, Content::Captured(_) | Content::Spooled(_) | Content::OnDisk);
                let piece_max = if is_data { RANGE_SECTORS_MAX } else { ZERO_SECTORS_MAX };
                for (sector, sectors) in pieces(start, len, piece_max) {
                    let bytes = if is_data { sectors * SECTOR } else { 0 };
                    let full = part.ranges.len() >= PART_EXTENTS_MAX || part.bytes + bytes > bytes_max;
                    if full && !part.ranges.is_empty() {
                        parts.push(std::mem::take(&mut part));
                    }
                    part.ranges.push(PlannedRange { disk, sector, sectors });
                    part.bytes += bytes;
                }
            }
        }
        if !part.ranges.is_empty() {
            parts.push(part);
        }
        parts
    }
}

/// Cuts a range at multiples of `max`, so that a cut never splits a 4 KiB block.
fn pieces(start: u64, len: u64, max: u64) -> impl Iterator<Item = (u64, u64)> {
    debug_assert!((max * SECTOR).is_multiple_of(BLOCK));
    let end = start + len;
    let mut at = start;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let next = ((at / max + 1) * max).min(end);
            let piece = (at, next - at);
            at = next;
            piece
        })
    })
}

#[cfg(test)]
mod tests {
    use proto::ids::Epoch;

    use super::*;

    #[test]
    fn an_empty_set_has_no_parts() {
        assert!(PartPlan::of(&ChangeSet::new(Epoch(1), 2), 4 << 20).is_empty());
    }

    #[test]
    fn parts_cover_the_set_once_and_stay_under_their_bound() {
        let mut set = ChangeSet::new(Epoch(1), 2);
        set.on_disk(DiskIndex(0), 3, 5000, u64::MAX / 1024);
        set.insert(DiskIndex(1), 5, 1 << 22, Content::Zero);
        let parts = PartPlan::of(&set, 4 << 20);
        assert!(parts.len() > 4);
        assert!(parts.iter().all(|part| part.bytes <= 4 << 20));
        let total: u64 = parts.iter().flat_map(|part| &part.ranges).map(|range| range.sectors).sum();
        assert_eq!(total, set.sectors());
        let mut last = (DiskIndex(0), 0);
        for range in parts.iter().flat_map(|part| &part.ranges) {
            assert!((range.disk.0, range.sector) >= (last.0.0, last.1));
            last = (range.disk, range.sector + range.sectors);
        }
    }
}
