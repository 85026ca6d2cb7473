//! Where each sector of a point is found: the content rule (rule J1) as a map from sectors to places in the journal.
//!
//! The map holds places, not bytes. It is built from record headers when a point is opened and grows by the undo
//! records that apply makes afterwards (rule J2). What it does not cover is on the disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockio::{ExtentMap, Slice};
use prost::Message;
use proto::ids::SetNumber;
use proto::replication::{Content, FrameHeader};

use crate::journal::limits::{BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES};
use crate::journal::{
    Journal, JournalError, JournalResult, Reader, RedoRun, SegmentId, State, UndoPlace, Volume, read_undo_header,
};
use crate::rules::Rule;

/// Where content is found.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// In a frame, `raw_at` bytes into its decoded payload.
    Redo { segment: SegmentId, offset: u64, len: u64, raw_at: u64 },
    /// In a run of saved blocks, `skip` sectors into it.
    Undo { run: Arc<SavedRun>, skip: u64 },
    /// It is zero.
    Zero,
}

/// Saved blocks that stand together in an undo record.
#[derive(Debug)]
pub(super) struct SavedRun {
    pub segment: SegmentId,
    /// Where the first block stands in the file.
    pub offset: u64,
    /// Bytes of all of them; the last may be short.
    pub bytes: u64,
    /// CRC-32 of each.
    pub crcs: Vec<u32>,
    /// Where the first block stood on its disk.
    pub disk_offset: u64,
    /// They are not what was written there.
    pub is_damaged: bool,
}

impl Slice for Source {
    fn slice(&self, from: u64, _len: u64) -> Self {
        match self {
            Self::Redo { segment, offset, len, raw_at } => {
                Self::Redo { segment: *segment, offset: *offset, len: *len, raw_at: raw_at + from * SECTOR_BYTES }
            }
            Self::Undo { run, skip } => Self::Undo { run: run.clone(), skip: skip + from },
            Self::Zero => Self::Zero,
        }
    }
}

/// What the journal has of a point.
#[derive(Debug)]
pub(super) struct PointContent {
    pub disks: Vec<ExtentMap<Source>>,
    sizes: Vec<u64>,
    generation: u64,
    /// Undo records taken in so far, by generation.
    taken: BTreeMap<u64, usize>,
}

/// The records that make a point, in the order of rule J1.
struct Plan {
    redo: Vec<RedoRun>,
    earlier: Vec<RedoRun>,
}

/// The generation in which a point stands; none where there is no such point.
pub(super) fn generation_of(state: &State, set: u64) -> Option<u64> {
    if state.point_of_set(set).is_some() {
        return state.manifest.generation_of(set).map(|generation| generation.id);
    }
    let oldest = state.manifest.generations.first()?;
    state.start_point().filter(|point| point.set.0 == set).map(|_| oldest.id)
}

impl PointContent {
    /// Finds the content of the point after `set`, in `generation`.
    pub fn build<V: Volume>(journal: &Journal<V>, generation: u64, set: u64) -> JournalResult<Self> {
        let (plan, sizes) = {
            let state = journal.state();
            (plan(&state, generation, set), state.manifest.disks.iter().map(|disk| disk.size).collect::<Vec<_>>())
        };
        let disks = sizes.iter().map(|_| ExtentMap::new()).collect();
        let mut content = Self { disks, sizes, generation, taken: BTreeMap::new() };
        for run in plan.redo {
            content
                .take_redo(journal.volume(), run, |map, sector, sectors, source| map.insert(sector, sectors, source))?;
        }
        content.refresh(journal)?;
        for run in plan.earlier {
            content.take_redo(journal.volume(), run, |map, sector, sectors, source| {
                map.fill(sector, sectors, source);
            })?;
        }
        Ok(content)
    }

    /// Takes in the undo records that were made since: older ones win.
    pub fn refresh<V: Volume>(&mut self, journal: &Journal<V>) -> JournalResult<()> {
        let fresh: Vec<(u64, Vec<UndoPlace>)> = {
            let state = journal.state();
            let since = |(id, places): (&u64, &Vec<UndoPlace>)| {
                let taken = self.taken.get(id).copied().unwrap_or(0);
                places.get(taken..).filter(|places| !places.is_empty()).map(|places| (*id, places.to_vec()))
            };
            state.undo.range(self.generation..).filter_map(since).collect()
        };
        for (generation, places) in fresh {
            for place in &places {
                self.take_undo(journal.volume(), generation, place)?;
            }
            *self.taken.entry(generation).or_default() += places.len();
        }
        Ok(())
    }

    fn take_redo(
        &mut self,
        volume: &impl Volume,
        run: RedoRun,
        put: impl Fn(&mut ExtentMap<Source>, u64, u64, Source),
    ) -> JournalResult<()> {
        let name = run.segment.to_string();
        let damaged = |offset, what| JournalError::Damaged { file: volume.describe(&name), offset, what };
        let end = run.offset + run.len;
        let mut reader = Reader::new(volume, &name, end);
        let mut offset = run.offset;
        while offset < end {
            let record = reader.record(offset, false)?.map_err(|what| damaged(offset, what))?;
            let header = FrameHeader::decode(&record.header[..]).map_err(|error| damaged(offset, error.to_string()))?;
            let mut raw_at = 0;
            for extent in &header.extents {
                let sectors = u64::from(extent.sectors);
                let source = match extent.content() {
                    Content::Data => {
                        let at = raw_at;
                        raw_at += sectors * SECTOR_BYTES;
                        Source::Redo { segment: run.segment, offset, len: record.len, raw_at: at }
                    }
                    Content::Zero => Source::Zero,
                    Content::Unreadable => continue,
                };
                if let Some(map) = self.disks.get_mut(extent.disk as usize) {
                    put(map, extent.sector, sectors, source);
                }
            }
            offset += record.len;
        }
        Ok(())
    }

    fn take_undo(&mut self, volume: &impl Volume, generation: u64, place: &UndoPlace) -> JournalResult<()> {
        let segment = SegmentId { generation, index: place.index };
        let header = read_undo_header(volume, segment, place, &self.sizes)?;
        let mut at = place.offset + place.len - u64::from(place.payload_len);
        for run in header.runs {
            let size = self.sizes.get(run.disk as usize).copied().unwrap_or(0);
            let from = run.block * BLOCK_BYTES;
            let bytes = (from + u64::from(run.blocks) * BLOCK_BYTES).min(size).saturating_sub(from);
            let source = if run.zero {
                Source::Zero
            } else {
                let offset = at;
                at += bytes;
                let is_damaged = run.damaged;
                let run = SavedRun { segment, offset, bytes, crcs: run.crcs, disk_offset: from, is_damaged };
                Source::Undo { run: Arc::new(run), skip: 0 }
            };
            if let Some(map) = self.disks.get_mut(run.disk as usize) {
                let (sector, sectors) = (run.block * BLOCK_SECTORS, bytes / SECTOR_BYTES);
                match Rule::FirstRecordWins.holds() {
                    true => drop(map.fill(sector, sectors, source)),
                    false => map.insert(sector, sectors, source),
                }
            }
        }
        Ok(())
    }
}

impl<V: Volume> Journal<V> {
    /// What of a point is known to be lost, as text: saved blocks that had rotted before they were saved. Reads no
    /// content; what rots unseen is found when it is read.
    pub(crate) fn known_damage_of(&self, to: SetNumber) -> JournalResult<Option<String>> {
        let generation = generation_of(&self.state(), to.0);
        let generation = generation.ok_or(JournalError::State { what: "the point is not in the journal" })?;
        let content = PointContent::build(self, generation, to.0)?;
        let mut sources = (0..).zip(&content.disks).flat_map(|(disk, map)| map.iter().map(move |found| (disk, found)));
        Ok(sources.find_map(|(disk, (sector, _, source))| match source {
            Source::Undo { run, .. } if run.is_damaged => {
                Some(format!("disk {} at offset {}", self.disk_name(disk), sector * SECTOR_BYTES))
            }
            _ => None,
        }))
    }

    /// Most undo that putting a point onto the disks can need: each block of which the journal holds a part.
    pub(crate) fn undo_bytes_of_rollback(&self, to: SetNumber) -> JournalResult<u64> {
        let generation = generation_of(&self.state(), to.0);
        let generation = generation.ok_or(JournalError::State { what: "the point is not in the journal" })?;
        let content = PointContent::build(self, generation, to.0)?;
        let blocks =
            |(sector, sectors): (u64, u64)| (sector + sectors).div_ceil(BLOCK_SECTORS) - sector / BLOCK_SECTORS;
        let extents = content.disks.iter().flat_map(ExtentMap::iter);
        Ok(extents.map(|(sector, sectors, _)| blocks((sector, sectors)) * (BLOCK_BYTES + 8)).sum())
    }
}

fn plan(state: &State, generation: u64, set: u64) -> Plan {
    let complete = state.sets.complete();
    let runs = |number: u64| complete.get(&number).map_or_else(Vec::new, |set| set.runs.clone());
    let own = state.manifest.generations.iter().find(|candidate| candidate.id == generation);
    let Some(own) = own else { return Plan { redo: Vec::new(), earlier: Vec::new() } };
    // Oldest first: each set replaces what it overlaps of those before it, whatever their order in the file.
    let of_own = complete.range(own.first.min(set + 1)..set + 1).map(|(number, _)| *number);
    let redo = of_own.flat_map(runs).collect();
    // Apply may lag behind a rotation: sets of earlier generations that the disk does not have yet, newest first.
    let lagging = complete.range(state.applied + 1..own.first.max(state.applied + 1)).rev().map(|(number, _)| *number);
    let lagging = lagging.filter(|_| Rule::EarlierRedoIsRead.holds());
    Plan { redo, earlier: lagging.flat_map(runs).collect() }
}
