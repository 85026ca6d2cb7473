//! Words for parts that are refused: which group, set, disk and byte, so that a flipped bit can be located.
//!
//! Pure. The checks themselves are the frame decoder's and the part reader's, in `proto`.

use proto::frame::FrameError;
use proto::replication::{DiskSpec, PartBegin, PartKind};

const SECTOR: u64 = 512;

/// A part in words.
pub fn describe(begin: &PartBegin) -> String {
    let what = match begin.kind() {
        PartKind::Ordered => format!("set {} part {}", begin.number, begin.part),
        PartKind::Bulk => format!("synchronisation part {}", begin.part),
    };
    format!("group \"{}\", {what}", begin.group)
}

/// Why a frame of a part is refused, with the disk's name and byte where the error has a place.
pub fn explain(begin: &PartBegin, disks: &[DiskSpec], error: &FrameError) -> String {
    let place = match error {
        FrameError::Extent { disk, sector, .. } | FrameError::ExtentCrc { disk, sector, .. } => {
            let name = disks.get(disk.position()).map_or("unknown", |disk| disk.name.as_str());
            format!(", disk \"{name}\" at byte {}", sector.saturating_mul(SECTOR))
        }
        _ => String::new(),
    };
    format!("{}{place}: {error}", describe(begin))
}

#[cfg(test)]
mod tests {
    use proto::ids::DiskIndex;

    use super::*;

    fn begin(kind: PartKind) -> PartBegin {
        PartBegin { group: "web".into(), phase: 1, kind: kind.into(), number: 4, part: 1, marks: 0 }
    }

    fn disks() -> Vec<DiskSpec> {
        ["os", "data"].map(|name| DiskSpec { name: name.into(), size: 1 << 20, logical_block: 512 }).into()
    }

    #[test]
    fn damaged_content_is_located_by_group_set_disk_and_byte() {
        let error = FrameError::ExtentCrc { disk: DiskIndex(1), sector: 3, expected: 1, found: 2 };
        let text = explain(&begin(PartKind::Ordered), &disks(), &error);
        assert!(text.starts_with("group \"web\", set 4 part 1, disk \"data\" at byte 1536: "), "{text}");
    }

    #[test]
    fn a_disk_or_sector_that_can_not_be_does_not_panic() {
        let error = FrameError::Extent { disk: DiskIndex(u32::MAX), sector: u64::MAX, what: "beyond".into() };
        let text = explain(&begin(PartKind::Bulk), &disks(), &error);
        assert!(text.contains("synchronisation part 1") && text.contains("\"unknown\""), "{text}");
    }

    #[test]
    fn an_error_without_a_place_names_the_part() {
        let text = explain(&begin(PartKind::Ordered), &disks(), &FrameError::Payload { what: "short".into() });
        assert!(text.starts_with("group \"web\", set 4 part 1: "), "{text}");
    }
}
