//! The manifest: the small file that says which generations, phases and segments of a journal count.
//!
//! It is replaced whole and durably whenever one of them begins or ends; everything that changes with each set stands
//! in the segments instead. Layout: magic `BHJM`, version, CRC-32, length, protobuf (docs/journal-format.md).

use prost::Message;
use proto::ids::Lineage;
use proto::limits::{DISK_BYTES_MAX, DISKS_PER_GROUP_MAX};

use super::error::{JournalError, JournalResult};
use super::header::SegmentBytes;
use super::limits::{MANIFEST_BYTES_MAX, NUMBER_MAX, SECTOR_BYTES};
use super::volume::Volume;

/// Name of the file.
pub const MANIFEST: &str = "manifest";

const MAGIC: [u8; 4] = *b"BHJM";
/// Disks never changed.
const VERSION: u32 = 1;
/// They did: an agent that knows no spans would take the disks of today for those of every point.
const VERSION_SPANS: u32 = 2;
const HEAD_BYTES: usize = 16;

/// The content of the manifest.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Manifest {
    /// 16 random bytes of this journal, in the head of each of its segments.
    #[prost(bytes = "vec", tag = "1")]
    pub journal: Vec<u8>,
    /// Identity of the history (rules L1 and L5).
    #[prost(bytes = "vec", tag = "2")]
    pub lineage: Vec<u8>,
    /// Lower bound of the durable counter (rule L1).
    #[prost(uint64, tag = "3")]
    pub counter: u64,
    /// Lower bound of the applied mark.
    #[prost(uint64, tag = "4")]
    pub applied: u64,
    /// The disks, in the order of their indexes.
    #[prost(message, repeated, tag = "5")]
    pub disks: Vec<ManifestDisk>,
    /// Oldest first.
    #[prost(message, repeated, tag = "6")]
    pub generations: Vec<Generation>,
    /// Oldest first; those without a set that is still kept are left out.
    #[prost(message, repeated, tag = "7")]
    pub phases: Vec<PhaseRange>,
    /// Start count of the newest source process.
    #[prost(uint64, tag = "8")]
    pub source_start: u64,
    /// Its 16 random bytes.
    #[prost(bytes = "vec", tag = "9")]
    pub source_instance: Vec<u8>,
    /// Segments that are finished, with the bytes of them that count.
    #[prost(message, repeated, tag = "10")]
    pub segments: Vec<SegmentBytes>,
    /// Sets up to this one are no longer in redo.
    #[prost(uint64, tag = "11")]
    pub forgotten: u64,
    /// Points below this set are not to be had (history restarted on a full volume).
    #[prost(uint64, tag = "12")]
    pub floor: u64,
    /// Where the group stands with a failback.
    #[prost(message, optional, tag = "13")]
    pub recovery: Option<RecoveryRecord>,
    /// Sets of the points that an operator pinned, growing.
    #[prost(uint64, repeated, tag = "15")]
    pub pinned: Vec<u64>,
    /// `SealSet.marks` of the newest set that is no longer in redo; 0 where none said any, or an older agent wrote this.
    #[prost(uint64, tag = "14")]
    pub forgotten_marks: u64,
    /// The highest `marks` that content of a catching-up or a note came with: durable before that content is written.
    #[prost(uint64, tag = "20")]
    pub bulk_marks: u64,
    /// The source's write-intent marks count for nothing (`replication.MarksVoid`).
    #[prost(message, optional, tag = "21")]
    pub marks_void: Option<MarksVoidRecord>,
    /// The newest failback that was cancelled, or that the group was reprotected after: its source may lift its fence.
    #[prost(uint64, optional, tag = "22")]
    pub cancelled_fence: Option<u64>,
    /// Number with which the tables of block sums began; 0 where there are none, or an older agent wrote this.
    #[prost(uint64, tag = "23")]
    pub sums_since: u64,
    /// What the disks do not hold though they should, or did not for a while.
    #[prost(message, repeated, tag = "24")]
    pub damages: Vec<DamagedRange>,
    /// Segments that are appended to, with bytes of them that are durable (rule J16).
    #[prost(message, repeated, tag = "25")]
    pub open_segments: Vec<SegmentBytes>,
}

/// Which note of which start of the source says that its marks are void.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Message)]
pub struct MarksVoidRecord {
    /// The start.
    #[prost(uint64, tag = "1")]
    pub source_start: u64,
    /// The note.
    #[prost(uint64, tag = "2")]
    pub number: u64,
}

/// Blocks of a disk that did not hold what they should.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DamagedRange {
    /// Index of the disk.
    #[prost(uint32, tag = "1")]
    pub disk: u32,
    /// First block.
    #[prost(uint64, tag = "2")]
    pub block: u64,
    /// Number of blocks.
    #[prost(uint64, tag = "3")]
    pub blocks: u64,
    /// The first set of whose point they may spoil a part.
    #[prost(uint64, tag = "4")]
    pub from: u64,
    /// The first set with which all is right again; none while the source has to send them.
    #[prost(uint64, optional, tag = "5")]
    pub until: Option<u64>,
}

/// A disk (`super::disks`).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ManifestDisk {
    /// Its name in the group.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// The sets that it is a part of, oldest first; none: all.
    #[prost(message, repeated, tag = "3")]
    pub spans: Vec<DiskSpan>,
    /// It was removed, and no point has it any more.
    #[prost(bool, tag = "4")]
    pub is_gone: bool,
}

/// Sets that a disk is a part of.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct DiskSpan {
    /// The first.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// The last, once the disk was removed.
    #[prost(uint64, optional, tag = "2")]
    pub last: Option<u64>,
}

/// What a generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum GenerationKind {
    /// Sets with redo and undo.
    Stream = 0,
    /// Catching up or a rollback: content goes straight to the disks.
    Bulk = 1,
}

/// A stretch of history.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Generation {
    /// Its number; never used twice.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What it is.
    #[prost(enumeration = "GenerationKind", tag = "2")]
    pub kind: i32,
    /// Stream: its first set. Bulk: the set that will follow it.
    #[prost(uint64, tag = "3")]
    pub first: u64,
    /// Stream: its last set, once the next generation has begun.
    #[prost(uint64, optional, tag = "4")]
    pub last: Option<u64>,
    /// The point at its start, kept when the generation before it was pruned or has lost its redo.
    #[prost(message, optional, tag = "5")]
    pub start: Option<StartPoint>,
    /// Bulk: it has ended.
    #[prost(bool, tag = "6")]
    pub closed: bool,
    /// Bulk: overwritten content is saved, since there is a point that needs it.
    #[prost(bool, tag = "7")]
    pub keeps_undo: bool,
    /// Microseconds since 1970 when it began, by the target's clock.
    #[prost(uint64, tag = "8")]
    pub opened_us: u64,
    /// Bulk: the point that a rollback puts on the disks.
    #[prost(uint64, optional, tag = "9")]
    pub rollback_to: Option<u64>,
    /// Bulk: the rollback is on the disks, durably.
    #[prost(bool, tag = "10")]
    pub rollback_done: bool,
}

impl Generation {
    /// True for a stretch of catching up or a rollback.
    #[must_use]
    pub fn is_bulk(&self) -> bool {
        self.kind() == GenerationKind::Bulk
    }

    /// True once nothing can be added to it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        if self.is_bulk() { self.closed } else { self.last.is_some() }
    }

    /// Whether this is the stream generation of a set.
    #[must_use]
    pub fn owns(&self, number: u64) -> bool {
        !self.is_bulk() && self.first <= number && self.last.is_none_or(|last| number <= last)
    }
}

/// A point whose own set has been pruned.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StartPoint {
    /// Its set.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Its time, microseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub time_us: u64,
    /// `replication.PointKind`.
    #[prost(int32, tag = "3")]
    pub kind: i32,
    /// Its label; empty for none.
    #[prost(string, tag = "4")]
    pub label: String,
    /// Bytes that its set changed.
    #[prost(uint64, tag = "5")]
    pub changed_bytes: u64,
    /// Bytes that its set took in redo.
    #[prost(uint64, tag = "6")]
    pub stored_bytes: u64,
    /// Bytes that could not be read at the source.
    #[prost(uint64, tag = "7")]
    pub unreadable_bytes: u64,
    /// Data of its set whose compressibility was measured, bytes.
    #[prost(uint64, tag = "8")]
    pub raw_bytes: u64,
    /// The same compressed.
    #[prost(uint64, tag = "9")]
    pub packed_bytes: u64,
    /// Microseconds from the cut of the set before it to its own.
    #[prost(uint64, optional, tag = "10")]
    pub span_us: Option<u64>,
}

/// The sets of a phase (rules L2 and L3).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PhaseRange {
    /// The phase.
    #[prost(uint64, tag = "1")]
    pub phase: u64,
    /// Its first set.
    #[prost(uint64, tag = "2")]
    pub first: u64,
    /// Its last valid set, once it is over; `first - 1` where it has none.
    #[prost(uint64, optional, tag = "3")]
    pub last: Option<u64>,
}

/// A failback that is under way or done (rule L7).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RecoveryRecord {
    /// 1 failing back, 2 failed back.
    #[prost(uint32, tag = "1")]
    pub step: u32,
    /// The choice, or the report.
    #[prost(string, tag = "2")]
    pub text: String,
}

impl Manifest {
    /// The manifest as it stands in its file.
    #[must_use]
    pub fn encode_file(&self) -> Vec<u8> {
        let body = self.encode_to_vec();
        let mut file = Vec::with_capacity(HEAD_BYTES + body.len());
        file.extend(MAGIC);
        let has_spans = self.disks.iter().any(|disk| disk.is_gone || !disk.spans.is_empty());
        file.extend(if has_spans { VERSION_SPANS } else { VERSION }.to_le_bytes());
        file.extend(blockio::crc::crc32(&body).to_le_bytes());
        file.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        file.extend(body);
        file
    }

    /// Reads what [`Manifest::encode_file`] wrote; the text says what is wrong.
    pub fn decode_file(file: &[u8]) -> Result<Self, String> {
        let word = |at: usize| file.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        if file.get(..4) != Some(&MAGIC) {
            return Err("this is no manifest".to_owned());
        }
        match word(4) {
            Some(VERSION | VERSION_SPANS) => {}
            version => {
                return Err(format!("its version is {version:?}, this agent knows {VERSION} and {VERSION_SPANS}"));
            }
        }
        let body = file.get(HEAD_BYTES..).unwrap_or_default();
        if word(12).map(|len| len as usize) != Some(body.len()) {
            return Err(format!("it has {} bytes instead of {:?}", body.len(), word(12)));
        }
        if word(8) != Some(blockio::crc::crc32(body)) {
            return Err("its CRC is wrong".to_owned());
        }
        let manifest = Self::decode(body).map_err(|error| error.to_string())?;
        manifest.check()?;
        Ok(manifest)
    }

    /// What every manifest has to fulfil, so that the rest need not ask again.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_numbers()?;
        if self.journal.len() != 16 || self.lineage.len() != Lineage::BYTES {
            return Err("an identity does not have 16 bytes".to_owned());
        }
        let Some(newest) = self.generations.last() else {
            return Err("it has no generation".to_owned());
        };
        if newest.is_closed() {
            return Err("its newest generation is closed".to_owned());
        }
        for pair in self.generations.windows(2) {
            let (older, newer) = (&pair[0], &pair[1]);
            let follows = if older.is_bulk() {
                newer.first == older.first
            } else {
                older.last.and_then(|last| last.checked_add(1)) == Some(newer.first)
            };
            if older.id >= newer.id || !older.is_closed() || !follows {
                return Err(format!("generation {} does not follow generation {}", newer.id, older.id));
            }
        }
        let gap = |pair: &[PhaseRange]| {
            pair[0].last.and_then(|last| last.checked_add(1)) != Some(pair[1].first) || pair[0].phase >= pair[1].phase
        };
        if self.phases.windows(2).any(gap) {
            return Err("its phases do not follow each other".to_owned());
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), String> {
        let of_generations = self.generations.iter().flat_map(|g| [g.id, g.first, g.last.unwrap_or(0)]);
        let of_phases = self.phases.iter().flat_map(|range| [range.first, range.last.unwrap_or(0)]);
        let own = [self.counter, self.applied, self.forgotten, self.floor];
        if let Some(number) = of_generations.chain(of_phases).chain(own).find(|number| *number > NUMBER_MAX) {
            return Err(format!("{number} was never counted up to"));
        }
        if self.generations.iter().any(|generation| generation.id == 0 || generation.first == 0) {
            return Err("a generation begins before the first set".to_owned());
        }
        if self.phases.iter().any(|range| range.first == 0) {
            return Err("a phase begins before the first set".to_owned());
        }
        if self.disks.len() > DISKS_PER_GROUP_MAX {
            return Err(format!("a group of {} disks is too large", self.disks.len()));
        }
        let is_wrong = |disk: &&ManifestDisk| disk.size > DISK_BYTES_MAX || !disk.size.is_multiple_of(SECTOR_BYTES);
        if let Some(disk) = self.disks.iter().find(is_wrong) {
            return Err(format!("disk {} can't have {} bytes", disk.name, disk.size));
        }
        self.check_spans()
    }

    fn check_spans(&self) -> Result<(), String> {
        let is_possible = |span: &DiskSpan| span.last.unwrap_or(span.first).max(span.first) <= NUMBER_MAX;
        let follows = |pair: &[DiskSpan]| pair[0].last.is_some_and(|last| last < pair[1].first);
        let is_wrong = |disk: &&ManifestDisk| {
            let is_empty = |span: &DiskSpan| span.last.is_some_and(|last| last < span.first);
            !disk.spans.iter().all(is_possible)
                || disk.spans.iter().any(is_empty)
                || !disk.spans.windows(2).all(follows)
        };
        if let Some(disk) = self.disks.iter().find(is_wrong) {
            return Err(format!("the spans of disk {} do not follow each other", disk.name));
        }
        let names = self.disks.iter().filter(|disk| !disk.is_gone).map(|disk| &disk.name);
        match names.clone().enumerate().find(|(at, name)| names.clone().take(*at).any(|other| other == *name)) {
            Some((_, name)) => Err(format!("it has two disks {name}")),
            None => Ok(()),
        }
    }

    /// Reads the manifest of a volume; `None` where there is none yet.
    pub fn load(volume: &impl Volume) -> JournalResult<Option<Self>> {
        if !volume.list()?.iter().any(|name| name == MANIFEST) {
            return Ok(None);
        }
        let damaged = |what| JournalError::Damaged { file: volume.describe(MANIFEST), offset: 0, what };
        let bytes = volume.len(MANIFEST)?;
        if bytes > MANIFEST_BYTES_MAX {
            return Err(damaged(format!("{bytes} bytes are too many for a manifest")));
        }
        let mut file = vec![0; usize::try_from(bytes).unwrap_or(0)];
        volume.read_at(MANIFEST, 0, &mut file)?;
        Self::decode_file(&file).map(Some).map_err(damaged)
    }

    /// Ends the newest stream generation with a set; the next begins after it.
    pub fn begin_generation(&mut self, last: u64, now_us: u64) {
        let id = self.newest().id + 1;
        if let Some(newest) = self.generations.last_mut() {
            newest.last = Some(last);
        }
        self.generations.push(Generation { id, first: last + 1, opened_us: now_us, ..Default::default() });
    }

    /// The stream generation of a set.
    #[must_use]
    pub fn generation_of(&self, number: u64) -> Option<&Generation> {
        self.generations.iter().rev().find(|generation| generation.owns(number))
    }

    /// The newest generation; a checked manifest has one.
    ///
    /// # Panics
    /// On a manifest that was never checked.
    #[must_use]
    pub fn newest(&self) -> &Generation {
        self.generations.last().expect("a manifest has a generation")
    }

    /// The bulk generation that is open.
    #[must_use]
    pub fn open_bulk(&self) -> Option<&Generation> {
        self.generations.last().filter(|generation| generation.is_bulk())
    }

    /// Whether sectors lie on a disk of the group.
    #[must_use]
    pub fn has_sectors(&self, disk: u32, sector: u64, sectors: u64) -> bool {
        let end = sector.checked_add(sectors);
        let disk = self.disks.get(disk as usize);
        disk.is_some_and(|disk| end.is_some_and(|end| end <= disk.size / SECTOR_BYTES))
    }

    /// The phase to which a set belongs, if it counts.
    #[must_use]
    pub fn phase_of(&self, number: u64) -> Option<u64> {
        let owns = |range: &&PhaseRange| range.first <= number && range.last.is_none_or(|last| number <= last);
        self.phases.iter().rev().find(owns).map(|range| range.phase)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(id: u64, first: u64, last: Option<u64>) -> Generation {
        Generation { id, first, last, ..Default::default() }
    }

    fn sample() -> Manifest {
        let bulk = Generation { id: 2, kind: 1, first: 10, closed: true, ..Default::default() };
        Manifest {
            journal: vec![1; 16],
            lineage: vec![2; 16],
            generations: vec![stream(1, 1, Some(9)), bulk, stream(3, 10, None)],
            phases: vec![
                PhaseRange { phase: 4, first: 1, last: Some(9) },
                PhaseRange { phase: 6, first: 10, last: None },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn a_manifest_reads_back() {
        let manifest = sample();
        assert_eq!(Manifest::decode_file(&manifest.encode_file()), Ok(manifest));
    }

    #[test]
    fn a_manifest_of_an_agent_that_kept_no_marks_reads_as_one_without_any() {
        let older = sample();
        let newer = Manifest { forgotten_marks: 7, ..sample() };
        // What the older one wrote is what this one writes where there are none: the field is absent.
        assert_eq!(newer.encode_to_vec().len(), older.encode_to_vec().len() + 2);
        assert_eq!(Manifest::decode_file(&older.encode_file()).unwrap().forgotten_marks, 0);
        assert_eq!(Manifest::decode_file(&newer.encode_file()).unwrap().forgotten_marks, 7);
    }

    #[test]
    fn a_set_belongs_to_one_generation_and_one_phase() {
        let manifest = sample();
        assert_eq!(manifest.generation_of(9).map(|g| g.id), Some(1));
        assert_eq!(manifest.generation_of(10).map(|g| g.id), Some(3));
        assert_eq!((manifest.phase_of(9), manifest.phase_of(10), manifest.phase_of(0)), (Some(4), Some(6), None));
    }

    #[test]
    fn manifests_whose_parts_do_not_follow_each_other_are_refused() {
        let mut gap = sample();
        gap.generations[0].last = Some(8);
        let mut closed = sample();
        closed.generations[2].last = Some(12);
        let mut order = sample();
        order.generations[2].id = 2;
        let mut phases = sample();
        phases.phases[1].first = 11;
        let mut none = sample();
        none.generations.clear();
        let mut identity = sample();
        identity.journal.pop();
        let mut zero = sample();
        zero.generations[0].first = 0;
        let mut huge = sample();
        huge.forgotten = u64::MAX;
        let mut disk = sample();
        disk.disks.push(ManifestDisk { name: "d".to_owned(), size: u64::MAX, ..Default::default() });
        let mut two_open = sample();
        two_open.generations[1].closed = false;
        for manifest in [gap, closed, order, phases, none, identity, two_open, zero, huge, disk] {
            assert!(Manifest::decode_file(&manifest.encode_file()).is_err(), "{manifest:?}");
        }
    }

    #[test]
    fn every_flipped_or_missing_byte_is_noticed() {
        let file = sample().encode_file();
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert!(Manifest::decode_file(&bad).is_err(), "byte {at}");
            assert!(Manifest::decode_file(&file[..at]).is_err(), "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::decode_file(&bytes);
            let mut with_head = sample().encode_file();
            with_head.truncate(HEAD_BYTES);
            with_head[8..12].copy_from_slice(&blockio::crc::crc32(&bytes).to_le_bytes());
            with_head[12..16].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
            with_head.extend(bytes);
            let _ = Manifest::decode_file(&with_head);
        }
    }
}
