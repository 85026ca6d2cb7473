//! From the files of a volume back to a journal: what a crash left is checked, made durable and counted.
//!
//! Order (docs/journal-format.md, "Recovery"): the volume has synced and re-read what it found; segments are scanned;
//! the gapless run is recomputed from the parts and seals found; leftovers of removed generations go; the manifest
//! vouches for what was scanned. Nothing is appended to a segment of an earlier process (rule S14).

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use prost::Message;
use proto::record::RecordKind;
use proto::replication::{DiskSpec, FrameHeader, SealSet};
use proto::time::Timestamp;

use super::core::{Journal, Options, lock};
use super::error::{JournalError, JournalResult};
use super::header::{CommitHeader, PartClosed, SegmentBytes, SegmentHeader, SegmentId, UndoHeader};
use super::index::PageCache;
use super::limits::INDEX_CACHE_PAGES;
use super::limits::{GENERATION_SHARE, NUMBER_MAX, SEGMENT_BYTES_MIN};
use super::manifest::{Generation, MANIFEST, Manifest, ManifestDisk};
use super::receive::RedoWriter;
use super::segment::{Expected, Scanned, scan};
use super::sets::{NewFrame, RedoRun, Sets};
use super::shrink::Shrink;
use super::state::{SegmentInfo, State, UndoPlace};
use super::sums::Sums;
use super::undo::UndoWriter;
use super::volume::Volume;
use crate::rules::Rule;

/// What the segments say.
#[derive(Default)]
struct Found {
    sets: Sets,
    undo: BTreeMap<u64, Vec<UndoPlace>>,
    segments: BTreeMap<SegmentId, SegmentInfo>,
    /// What was durable of segments, as commit records of others say (rule J16).
    vouched: BTreeMap<SegmentId, u64>,
    /// Highest counter of a commit that may have been acknowledged.
    counter: u64,
    /// Highest counter of all.
    counter_given: u64,
    applied: u64,
    phase: u64,
}

impl<V: Volume> Journal<V> {
    /// Opens the journal of a group, which is made where the volume is empty. The disks have to be those it was made
    /// for. The disks themselves are synced by `Applier::new` before anything that was found is relied upon (rule J8).
    pub fn open(volume: V, disks: &[DiskSpec], now: Timestamp, options: Options) -> JournalResult<Self> {
        let manifest = match Manifest::load(&volume)? {
            Some(manifest) => manifest,
            None => create(&volume, disks, now, &options)?,
        };
        check_disks(&manifest, disks)?;
        let found = scan_all(&volume, &manifest)?;
        let journal = assemble(volume, manifest, found, now, options)?;
        journal.remove_leftovers();
        journal.vouch()?;
        journal.find_indexes()?;
        Ok(journal)
    }

    /// The disks of the journal on a volume; none where there is no journal yet.
    pub fn stored_disks(volume: &V) -> JournalResult<Option<Vec<DiskSpec>>> {
        let of = |disk: ManifestDisk| DiskSpec { name: disk.name, size: disk.size, logical_block: 512 };
        Ok(Manifest::load(volume)?.map(|manifest| manifest.disks.into_iter().map(of).collect()))
    }

    /// Removes files of generations that are gone: a crash can come between the manifest and their removal.
    fn remove_leftovers(&self) {
        let gone: Vec<SegmentId> = {
            let state = self.state();
            let manifest = &state.manifest;
            let newest_redo = state.segments.keys().rfind(|id| id.is_redo()).copied();
            let is_listed = |id: &SegmentId| manifest.segments.iter().any(|segment| segment.id() == *id);
            let is_gone = |id: &SegmentId, info: &SegmentInfo| match id.is_redo() {
                true => Some(*id) != newest_redo && !is_listed(id) && info.highest <= manifest.forgotten,
                false => !manifest.generations.iter().any(|generation| generation.id == id.generation),
            };
            state.segments.iter().filter(|(id, info)| is_gone(id, info)).map(|(id, _)| *id).collect()
        };
        for id in gone {
            self.state().segments.remove(&id);
            if let Err(error) = self.volume.remove(&id.to_string()) {
                tracing::warn!("{error}");
            }
        }
    }

    /// Lets the manifest vouch for every segment as it was scanned.
    fn vouch(&self) -> JournalResult<()> {
        let segments: Vec<SegmentBytes> =
            self.state().segments.iter().map(|(id, info)| SegmentBytes::of(*id, info.bytes)).collect();
        // An agent that knows nothing of block sums leaves no number: whatever it wrote, they would not tell.
        let is_new = self.state().manifest.sums_since == 0;
        let sums_since = if is_new { self.next_sums_number() } else { 0 };
        self.update_manifest(|manifest| {
            manifest.segments = segments;
            if is_new {
                manifest.sums_since = sums_since;
            }
        })?;
        if is_new {
            lock(&self.sums).begin(sums_since);
        }
        Ok(())
    }
}

fn of_spec(disk: &DiskSpec) -> ManifestDisk {
    ManifestDisk { name: disk.name.clone(), size: disk.size, ..Default::default() }
}

fn create(volume: &impl Volume, disks: &[DiskSpec], now: Timestamp, options: &Options) -> JournalResult<Manifest> {
    if let Some(name) = volume.list()?.into_iter().find(|name| SegmentId::of_name(name).is_some()) {
        let what = "there are segments, but the manifest is missing".to_owned();
        return Err(JournalError::Damaged { file: volume.describe(&name), offset: 0, what });
    }
    let identity = match options.identity {
        Some(identity) => identity,
        None => {
            let mut identity = [0; 32];
            getrandom::fill(&mut identity)
                .map_err(|_| JournalError::State { what: "the system gives no randomness" })?;
            identity
        }
    };
    let (journal, lineage) = identity.split_at(16);
    let manifest = Manifest {
        journal: journal.to_vec(),
        lineage: lineage.to_vec(),
        disks: disks.iter().map(of_spec).collect(),
        generations: vec![Generation { id: 1, first: 1, opened_us: now.0, ..Default::default() }],
        ..Default::default()
    };
    manifest.check().map_err(|what| JournalError::WrongDisks { what })?;
    volume.replace(MANIFEST, &manifest.encode_file())?;
    Ok(manifest)
}

fn check_disks(manifest: &Manifest, disks: &[DiskSpec]) -> JournalResult<()> {
    let wrong = |what| Err(JournalError::WrongDisks { what });
    if disks.len() != manifest.disks.len() {
        return wrong(format!(
            "the group has {} disks, its journal was made for {}",
            disks.len(),
            manifest.disks.len()
        ));
    }
    for (disk, known) in disks.iter().zip(&manifest.disks) {
        if disk.name != known.name {
            return wrong(format!("disk {} stands where the journal knows disk {}", disk.name, known.name));
        }
        if disk.size != known.size {
            return wrong(format!(
                "disk {} has {} bytes, its journal was made for {}",
                disk.name, disk.size, known.size
            ));
        }
    }
    Ok(())
}

fn scan_all(volume: &impl Volume, manifest: &Manifest) -> JournalResult<Found> {
    let closed: BTreeMap<SegmentId, u64> =
        manifest.segments.iter().map(|segment| (segment.id(), segment.bytes)).collect();
    let mut present: Vec<SegmentId> = volume.list()?.iter().filter_map(|name| SegmentId::of_name(name)).collect();
    present.sort_unstable();
    if let Some(id) = closed.keys().find(|id| present.binary_search(id).is_err()) {
        let what = "the file is missing".to_owned();
        return Err(JournalError::Damaged { file: volume.describe(&id.to_string()), offset: 0, what });
    }
    let mut found = Found { sets: Sets::starting_after(manifest.forgotten), ..Default::default() };
    for id in present {
        let name = id.to_string();
        // J8: what is found is about to be relied upon, and may have been no more than cached so far.
        if Rule::FoundIsSynced.holds() {
            volume.sync(&name)?;
        }
        let is_alive = |id: &SegmentId| manifest.generations.iter().any(|generation| generation.id == id.generation);
        if !id.is_redo() && !is_alive(&id) {
            found.segments.insert(id, SegmentInfo::default());
            continue;
        }
        let expected = Expected { id, journal: &manifest.journal, closed_bytes: closed.get(&id).copied() };
        found.segments.insert(id, SegmentInfo::default());
        let bytes = scan(volume, expected, |record| found.take(manifest, id, &record))?;
        found.segments.entry(id).or_default().bytes = bytes;
    }
    if Rule::SegmentsVouch.holds() {
        check_vouched(volume, manifest, &found)?;
    }
    Ok(found)
}

/// A segment that was open reaches what the manifest and the other kind of segment say was durable of it (rule J16): the end
/// of a file that is gone takes along what in it said that it was there.
fn check_vouched(volume: &impl Volume, manifest: &Manifest, found: &Found) -> JournalResult<()> {
    let is_closed = |id: SegmentId| manifest.segments.iter().any(|segment| segment.id() == id);
    let is_alive =
        |id: SegmentId| id.is_redo() || manifest.generations.iter().any(|generation| generation.id == id.generation);
    let by_manifest = manifest.open_segments.iter().map(|open| (open.id(), open.bytes));
    // One that is missing may have gone for good since a segment vouched for it; what the manifest names has not.
    let by_others =
        found.vouched.iter().map(|(id, bytes)| (*id, *bytes)).filter(|(id, _)| found.segments.contains_key(id));
    for (id, bytes) in by_manifest.chain(by_others).filter(|(id, _)| is_alive(*id) && !is_closed(*id)) {
        let there = found.segments.get(&id).map_or(0, |info| info.bytes);
        if there < bytes {
            let what = format!("it ends here, although {bytes} bytes of it were synced");
            return Err(JournalError::Damaged { file: volume.describe(&id.to_string()), offset: there, what });
        }
    }
    Ok(())
}

impl Found {
    /// Takes in one record; the text says what is wrong with it.
    fn take(&mut self, manifest: &Manifest, id: SegmentId, record: &Scanned) -> Result<(), String> {
        match record.kind {
            RecordKind::SegmentHead => self.phase = decode::<SegmentHeader>(&record.header)?.phase,
            RecordKind::Frame if id.is_redo() => self.take_frame(manifest, id, record)?,
            RecordKind::PartEnd if id.is_redo() => {
                let closed: PartClosed = decode(&record.header)?;
                check_number(closed.number)?;
                self.saw(id, closed.number);
                if closed.number > self.sets.head() {
                    self.sets.close_part(self.phase, &closed)?;
                }
            }
            RecordKind::Seal if id.is_redo() => {
                let seal: SealSet = decode(&record.header)?;
                check_number(seal.number)?;
                self.saw(id, seal.number);
                if seal.number > self.sets.head() && seal.phase == self.phase {
                    self.sets.seal(seal);
                }
            }
            RecordKind::Undo if !id.is_redo() => {
                check_undo(manifest, record)?;
                let (index, offset, len) = (id.index, record.offset, record.len);
                let place = UndoPlace { index, offset, len, payload_len: record.payload_len };
                self.undo.entry(id.generation).or_default().push(place);
            }
            RecordKind::Phase | RecordKind::Applied | RecordKind::BulkMark => {
                let commit: CommitHeader = decode(&record.header)?;
                check_number(commit.counter.max(commit.applied))?;
                self.counter_given = self.counter_given.max(commit.counter);
                if record.kind == RecordKind::Applied {
                    self.applied = self.applied.max(commit.applied);
                } else {
                    self.counter = self.counter.max(commit.counter);
                }
                if let Some(other) = commit.other {
                    let vouched = self.vouched.entry(other.id()).or_default();
                    *vouched = other.bytes.max(*vouched);
                }
            }
            kind => return Err(format!("a {kind:?} record has no place here")),
        }
        Ok(())
    }

    fn take_frame(&mut self, manifest: &Manifest, id: SegmentId, record: &Scanned) -> Result<(), String> {
        let header: FrameHeader = decode(&record.header)?;
        check_number(header.number)?;
        self.saw(id, header.number);
        if header.number <= self.sets.head() {
            return Ok(());
        }
        let (sectors, undo_bytes) = super::receive::measure(manifest, &header)?;
        let run = RedoRun { segment: id, offset: record.offset, len: record.len };
        let shrink = Shrink::of(&header, record.payload_len.into());
        let frame = NewFrame { number: header.number, part: header.part, run, sectors, undo_bytes, shrink };
        self.sets.add_frame(self.phase, frame);
        Ok(())
    }

    fn saw(&mut self, id: SegmentId, number: u64) {
        let info = self.segments.entry(id).or_default();
        info.highest = info.highest.max(number);
    }
}

fn check_number(number: u64) -> Result<(), String> {
    if number <= NUMBER_MAX { Ok(()) } else { Err(format!("{number} was never counted up to")) }
}

fn decode<M: Message + Default>(header: &Bytes) -> Result<M, String> {
    M::decode(&header[..]).map_err(|error| error.to_string())
}

/// Every run lies on its disk and has the bytes and CRCs that it announces, so that readers need not ask again.
fn check_undo(manifest: &Manifest, record: &Scanned) -> Result<(), String> {
    let header: UndoHeader = decode(&record.header)?;
    let sizes: Vec<u64> = manifest.disks.iter().map(|disk| disk.size).collect();
    let expected = super::undo::payload_bytes(&sizes, &header)?;
    if expected == u64::from(record.payload_len) {
        Ok(())
    } else {
        Err(format!("an undo record has {} bytes of content instead of {expected}", record.payload_len))
    }
}

fn assemble<V: Volume>(
    volume: V,
    manifest: Manifest,
    found: Found,
    now: Timestamp,
    mut options: Options,
) -> JournalResult<Journal<V>> {
    // Only what is applied is ever forgotten.
    let applied = found.applied.max(manifest.applied).max(manifest.forgotten);
    // A mark is not acknowledged: its counter must not hide from a source that the commits it knows of are gone (rule L1).
    let counter = found.counter.max(manifest.counter);
    let counter_given = found.counter_given.max(counter);
    let Found { mut sets, undo, segments, .. } = found;
    let limit = manifest.open_bulk().map_or(u64::MAX, |bulk| bulk.first - 1);
    sets.advance(limit, |number| manifest.phase_of(number));
    check_run(&volume, &manifest, sets.head(), applied)?;
    let open_phase = manifest.phases.last().filter(|range| range.last.is_none()).map(|range| range.phase);
    sets.keep_building_of(open_phase);
    sets.drop_open_parts();
    sets.set_durable();
    let used: u64 = segments.values().map(|info| info.bytes).sum();
    let whole = volume.free_bytes()?.saturating_add(used).min(options.size_max.unwrap_or(u64::MAX));
    let share = (whole / GENERATION_SHARE).max(1);
    options.reserve_bytes = options.reserve_bytes.min(share);
    if options.generation_bytes == 0 {
        options.generation_bytes = share;
        // A generation that is given up frees whole segments only.
        options.segment_bytes = options.segment_bytes.min(share.max(SEGMENT_BYTES_MIN));
    }
    let next_index = segments.keys().filter(|id| id.is_redo()).map(|id| id.index).max().unwrap_or(0) + 1;
    let sums = Sums::new(manifest.journal.clone(), manifest.sums_since, manifest.disks.len());
    let state = State {
        durable: sets.head(),
        sets,
        counter,
        counter_given,
        is_greeted: false,
        applied,
        applied_durable: applied,
        phase: None,
        undo,
        undo_version: 0,
        indexes: BTreeMap::new(),
        layout: 0,
        closed_through: None,
        index_builds: BTreeMap::new(),
        // Writes of the process before may still be on their way to the platter.
        bulk_unsynced: manifest.open_bulk().is_some(),
        bulk_closing: false,
        segments,
        synced: BTreeMap::new(),
        synced_before: BTreeMap::new(),
        pins: Vec::new(),
        stopped: None,
        is_damage_untold: false,
        room: 0,
        now_us: now.0,
        manifest,
    };
    Ok(Journal {
        volume,
        redo: Mutex::new(RedoWriter { next_index, ..Default::default() }),
        sums: Mutex::new(sums),
        undo: Mutex::new(UndoWriter::new(options.first_touch_leaves)),
        options,
        manifest_io: Mutex::new(()),
        state: Mutex::new(state),
        pages: Mutex::new(PageCache::new(INDEX_CACHE_PAGES)),
        tails: Mutex::default(),
    })
}

/// The run must reach what was known to be durable: a set that was applied, or that ended a phase.
fn check_run(volume: &impl Volume, manifest: &Manifest, head: u64, applied: u64) -> JournalResult<()> {
    let ended = manifest.phases.iter().filter_map(|range| range.last).max().unwrap_or(0);
    let bulk = manifest.open_bulk().map_or(0, |bulk| bulk.first - 1);
    let reached = applied.max(ended).max(bulk);
    if head >= reached {
        return Ok(());
    }
    let what = format!("set {} is not complete, although set {reached} was durable", head + 1);
    Err(JournalError::Damaged { file: volume.describe("redo"), offset: 0, what })
}
