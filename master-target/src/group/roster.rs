//! The disks of a group by their indexes in its journal: those that are replicated, and those that were removed and are kept
//! for the points that have them.
//!
//! The journal says which disks there are and of which sets they are a part, the configuration where the replicated ones are
//! written, `disks.json` where the others were. Source and configuration have an order of their own, which [`Places`]
//! translates.

use std::sync::Arc;

use bytes::Bytes;
use proto::frame::DecodedFrame;
use proto::record::{Record, RecordKind};
use proto::replication::DiskSpec;

use super::remembered::RememberedDisk;
use crate::config::GroupConfig;
use crate::journal::{KnownDisk, MissingRange, Standing};
use crate::target::TargetSpec;
use crate::vmdk::DiskKind;

/// A disk of a group.
#[derive(Debug, Clone)]
pub struct Member {
    /// Name, size and block as the source has them.
    pub spec: DiskSpec,
    /// Where it is written; none of a disk that was let go.
    pub target: Option<TargetSpec>,
    /// What is made where there is no VMDK yet.
    pub kind: DiskKind,
    /// What it is to the group.
    pub standing: Standing,
    /// The last set that it is a part of, once it was removed.
    pub last: Option<u64>,
}

impl Member {
    /// Its target as configured, for people.
    pub fn target_text(&self) -> String {
        self.target.as_ref().map_or_else(String::new, ToString::to_string)
    }

    /// Whether it is to be open.
    pub fn is_held(&self) -> bool {
        self.standing != Standing::Gone
    }
}

/// The disks of a group, by index.
pub type Roster = Arc<[Member]>;

/// Puts together what journal, configuration and `disks.json` say. `specs` are the disks of a source that is new.
pub fn roster(config: &GroupConfig, known: &[KnownDisk], remembered: &[RememberedDisk], specs: &[DiskSpec]) -> Roster {
    let member = |(index, known): (usize, &KnownDisk)| {
        let before = remembered.get(index).filter(|before| before.name == known.name);
        let configured = config.disks.iter().find(|disk| disk.name.as_str() == known.name);
        let configured = configured.filter(|_| known.standing == Standing::Current);
        let target = match (configured, before) {
            (Some(disk), _) => Some(disk.target.clone()),
            (None, before) => before.and_then(|before| TargetSpec::parse(&before.target).ok()),
        };
        let spec = specs.iter().find(|spec| spec.name == known.name);
        let logical_block = before.map(|before| before.logical_block).or(spec.map(|spec| spec.logical_block));
        Member {
            spec: DiskSpec { name: known.name.clone(), size: known.size, logical_block: logical_block.unwrap_or(512) },
            target: target.filter(|_| known.standing != Standing::Gone),
            kind: configured.map_or(DiskKind::Vmfs, |disk| disk.kind),
            standing: known.standing,
            last: known.last,
        }
    };
    known.iter().enumerate().map(member).collect()
}

/// Why disks can't be written where the configuration says, after a change of the group's disks; none where they can.
pub fn conflict(next: &[Member], before: &[Member]) -> Option<String> {
    for (index, disk) in next.iter().enumerate().filter(|(_, disk)| disk.standing == Standing::Current) {
        let was = before.get(index).filter(|was| was.standing == Standing::Kept && was.target != disk.target);
        if let Some(was) = was {
            return Some(format!(
                "disk \"{}\" was removed, and older points still need its target {}: add it with that target, or under another name",
                disk.spec.name,
                was.target_text()
            ));
        }
        let is_other = |(at, other): &(usize, &Member)| *at != index && other.is_held() && other.target == disk.target;
        if let Some((_, other)) = next.iter().enumerate().find(is_other) {
            return Some(format!(
                "disk \"{}\" has the target {} of disk \"{}\", which was removed and which older points still need: give it a \
                 target of its own",
                disk.spec.name,
                disk.target_text(),
                other.spec.name
            ));
        }
    }
    None
}

/// Where the disks of a session's source stand in the journal's list. The default: in the same places.
#[derive(Debug, Clone, Default)]
pub struct Places(Option<Arc<[u32]>>);

impl Places {
    /// The places of a source's disks.
    pub fn of(source: &[DiskSpec], known: &[KnownDisk]) -> Self {
        let place = |spec: &DiskSpec| {
            let is_it = |disk: &KnownDisk| disk.standing == Standing::Current && disk.name == spec.name;
            known.iter().position(is_it).and_then(|at| u32::try_from(at).ok()).unwrap_or(u32::MAX)
        };
        let places: Vec<u32> = source.iter().map(place).collect();
        let are_same = (0..).zip(&places).all(|(at, place)| at == *place);
        Self((!are_same).then(|| places.into()))
    }

    /// The journal's index of a source's disk; one that no disk has, where the source has none such.
    pub fn inward(&self, disk: u32) -> u32 {
        match &self.0 {
            None => disk,
            Some(places) => places.get(disk as usize).copied().unwrap_or(u32::MAX),
        }
    }

    /// The same with a frame that was checked against the source's disks. Its record gets a header that says so; the content
    /// keeps the CRCs of its capture.
    pub fn frame_inward(&self, record: Record, mut frame: DecodedFrame) -> (Record, DecodedFrame) {
        if self.0.is_none() {
            return (record, frame);
        }
        for extent in &mut frame.header.extents {
            extent.disk = self.inward(extent.disk);
        }
        let whole: Bytes = Record::encode(RecordKind::Frame, &frame.header, &record.payload);
        let (record, _) = Record::parse(&whole).expect("a record reads back");
        (record, frame)
    }

    /// Ranges by the source's indexes, without those of disks that it does not have.
    pub fn outward(&self, ranges: Vec<MissingRange>) -> Vec<MissingRange> {
        let Some(places) = &self.0 else { return ranges };
        let place = |range: MissingRange| {
            let disk = (0..).zip(places.iter()).find(|(_, place)| **place == range.disk)?.0;
            Some(MissingRange { disk, ..range })
        };
        ranges.into_iter().filter_map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use proto::frame::{Compression, Decoder, Encoder, RawContent, RawExtent};
    use proto::ids::DiskIndex;

    use super::*;

    fn spec(name: &str) -> DiskSpec {
        DiskSpec { name: name.into(), size: 1 << 20, logical_block: 512 }
    }

    fn known(name: &str, standing: Standing) -> KnownDisk {
        KnownDisk { name: name.into(), size: 1 << 20, standing, last: None }
    }

    #[test]
    fn a_source_s_disks_are_found_in_the_journal_by_their_names() {
        let list = [
            known("a", Standing::Gone),
            known("b", Standing::Current),
            known("c", Standing::Kept),
            known("a", Standing::Current),
        ];
        let places = Places::of(&[spec("a"), spec("b")], &list);
        assert_eq!((places.inward(0), places.inward(1), places.inward(2)), (3, 1, u32::MAX));
        let range = |disk| MissingRange { disk, sector: 5, sectors: 8 };
        assert_eq!(places.outward(vec![range(3), range(2), range(1)]), [range(0), range(1)], "it has no c");
        let same = Places::of(&[spec("a"), spec("b")], &[known("a", Standing::Current), known("b", Standing::Current)]);
        assert!(same.0.is_none());
    }

    #[test]
    fn p6_a_frame_keeps_its_content_and_checksums_when_its_disks_are_translated() {
        let bytes: Bytes = vec![7; 1024].into();
        let crc = blockio::crc32(&bytes);
        let extent = |disk| RawExtent {
            disk: DiskIndex(disk),
            sector: 3,
            content: RawContent::Data { bytes: bytes.clone(), crc },
        };
        for compression in [Compression::Zstd(1), Compression::Off] {
            let encoded = Encoder::default().encode(9, 0, &[extent(0), extent(1)], compression).unwrap();
            let whole = Bytes::from([&encoded.head[..], &encoded.payload[..]].concat());
            let record = Record::parse(&whole).unwrap().0;
            let frame = Decoder::new().decode(&record).unwrap();
            let places = Places(Some([4, 2].into()));
            let (record, frame) = places.frame_inward(record, frame);
            let again = Decoder::new().decode(&record).unwrap();
            let disks = |frame: &DecodedFrame| frame.header.extents.iter().map(|e| (e.disk, e.crc)).collect::<Vec<_>>();
            assert_eq!(disks(&frame), [(4, crc), (2, crc)]);
            assert_eq!((disks(&again), &again.raw), (disks(&frame), &frame.raw));
        }
    }
}
