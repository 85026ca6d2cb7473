//! Makes the indexes that are missing, finds those that are there, removes those of segments that went.
//!
//! A background step of its own ([`Journal::build_index`]): receiving and applying never wait for it, and a point can be
//! read without any index. Nothing here is told to a source or changes what counts: an index that is lost costs time.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::format::{Identity, encode, index_name, segment_of};
use super::read::SegmentIndex;
use super::{Flat, IndexFault, visit_redo};
use crate::journal::JournalResult;
use crate::journal::core::{Journal, lock};
use crate::journal::header::SegmentId;
use crate::journal::limits::{INDEX_BUILDS_MAX, INDEX_ROOM_BYTES};
use crate::journal::sets::RedoRun;
use crate::journal::state::{State, UndoPlace};
use crate::journal::volume::Volume;

/// What is to be read for an index.
struct Material {
    identity: Identity,
    redo: Vec<(u64, RedoRun)>,
    undo: Vec<UndoPlace>,
    sizes: Vec<u64>,
}

impl Material {
    fn of(state: &State, segment: SegmentId, segment_bytes: u64, redo: Vec<(u64, RedoRun)>) -> Self {
        let undo = if segment.is_redo() { Vec::new() } else { state.undo_of(segment).to_vec() };
        let mut journal = [0; 16];
        let known = &state.manifest.journal;
        journal[..known.len().min(16)].copy_from_slice(&known[..known.len().min(16)]);
        let places = redo.iter().map(|(set, run)| (*set, run.offset, run.len));
        let places = places.chain(undo.iter().map(|place| (0, place.offset, place.len)));
        let bytes: Vec<u8> =
            places.flat_map(|(set, offset, len)| [set, offset, len]).flat_map(u64::to_le_bytes).collect();
        let identity = Identity {
            journal,
            segment,
            segment_bytes,
            runs: (redo.len() + undo.len()) as u64,
            fingerprint: blockio::crc32(&bytes),
        };
        let sizes = state.manifest.disks.iter().map(|disk| disk.size).collect();
        Self { identity, redo, undo, sizes }
    }
}

impl<V: Volume> Journal<V> {
    /// Finds the indexes that an earlier process left, and removes those whose segment is gone. Reads a page of each.
    pub(in crate::journal) fn find_indexes(&self) -> JournalResult<()> {
        let present: Vec<(String, SegmentId)> =
            self.volume.list()?.into_iter().filter_map(|name| segment_of(&name).map(|id| (name, id))).collect();
        let mut runs: BTreeMap<SegmentId, Vec<(u64, RedoRun)>> = BTreeMap::new();
        let state = self.state();
        for (number, set) in state.sets.complete() {
            set.runs.iter().for_each(|run| runs.entry(run.segment).or_default().push((*number, *run)));
        }
        let mut wanted = Vec::new();
        let mut orphans = Vec::new();
        for (name, id) in present {
            match state.segments.get(&id) {
                Some(info) => {
                    let material = Material::of(&state, id, info.bytes, runs.remove(&id).unwrap_or_default());
                    wanted.push(material.identity);
                }
                None => orphans.push(name),
            }
        }
        drop(state);
        for name in orphans {
            self.remove_index_file(&name);
        }
        for identity in wanted {
            match SegmentIndex::open(&self.volume, &self.pages, &identity) {
                Ok(index) => drop(self.state().indexes.insert(identity.segment, Arc::new(index))),
                Err(fault) => tracing::info!("an index of the journal is made anew: {fault}"),
            }
        }
        Ok(())
    }

    /// Makes one index that is missing. False where none is, or where it has to wait: for sets that are in the making,
    /// or for room. `is_ended` is asked now and then.
    pub fn build_index(&self, is_ended: impl Fn() -> bool) -> JournalResult<bool> {
        let Some(material) = self.next_without_index() else { return Ok(false) };
        let needed = INDEX_ROOM_BYTES.min(self.options.segment_bytes).saturating_add(self.options.reserve_bytes);
        if self.volume.free_bytes()? < needed {
            return Ok(false);
        }
        let segment = material.identity.segment;
        let built = self.flatten(&material, is_ended);
        let flat = match built {
            Ok(Some(flat)) => flat,
            Ok(None) => return Ok(false),
            // It was given up meanwhile, or is damaged: then whoever reads it is told.
            Err(error) => {
                let is_there = self.state().segments.contains_key(&segment);
                if is_there {
                    *self.state().index_builds.entry(segment).or_default() = INDEX_BUILDS_MAX;
                    tracing::warn!("a segment of the journal gets no index: {error}");
                }
                return Ok(true);
            }
        };
        let sets = material.redo.iter().fold((0, 0), |(low, high): (u64, u64), (set, _)| {
            (if low == 0 { *set } else { low.min(*set) }, high.max(*set))
        });
        *self.state().index_builds.entry(segment).or_default() += 1;
        let file = encode(&material.identity, sets, &flat.entries());
        let name = index_name(segment);
        self.volume.replace(&name, &file)?;
        let index = SegmentIndex::open(&self.volume, &self.pages, &material.identity);
        let mut state = self.state();
        match index {
            Ok(index) if state.segments.contains_key(&segment) => {
                state.indexes.insert(segment, Arc::new(index));
                drop(state);
                lock(&self.tails).remove(&segment);
            }
            _ => {
                drop(state);
                self.remove_index_file(&name);
            }
        }
        Ok(true)
    }

    /// A closed segment without index, all of whose sets are complete or over.
    fn next_without_index(&self) -> Option<Material> {
        let state = self.state();
        let closed = state.manifest.segments.iter().map(|segment| (segment.id(), segment.bytes));
        let builds = |id: &SegmentId| state.index_builds.get(id).copied().unwrap_or(0);
        let mut missing = closed.filter(|(id, _)| {
            !state.indexes.contains_key(id)
                && state.segments.contains_key(id)
                && builds(id) < INDEX_BUILDS_MAX
                && !(id.is_redo() && state.sets.is_building_in(*id))
        });
        let (segment, bytes) = missing.next()?;
        let redo = if segment.is_redo() { state.runs_in(|id| id == segment, 0, u64::MAX) } else { Vec::new() };
        Some(Material::of(&state, segment, bytes, redo))
    }

    fn flatten(&self, material: &Material, is_ended: impl Fn() -> bool) -> JournalResult<Option<Flat>> {
        let mut flat = Flat::of_disks(material.sizes.len());
        for (set, run) in &material.redo {
            if is_ended() {
                return Ok(None);
            }
            visit_redo(&self.volume, *run, *set, |entry| flat.put_newer(entry))?;
        }
        for place in &material.undo {
            if is_ended() {
                return Ok(None);
            }
            let generation = material.identity.segment.generation;
            super::flat::visit_undo(&self.volume, generation, place, &material.sizes, |entry| flat.put_later(entry))?;
        }
        Ok(Some(flat))
    }

    /// An index was found bad: its segment is read from now on, until the index is made anew.
    pub(crate) fn drop_index(&self, index: &Arc<SegmentIndex>, fault: &IndexFault) {
        if index.condemn() {
            tracing::warn!(
                "an index of the journal can't be used, its segment is read instead and the index made anew: {fault}"
            );
        }
        let mut state = self.state();
        if state.indexes.get(&index.segment()).is_some_and(|known| Arc::ptr_eq(known, index)) {
            state.indexes.remove(&index.segment());
        }
    }

    /// The index of a segment that was removed goes, too.
    pub(crate) fn forget_index(&self, segment: SegmentId) {
        let known = {
            let mut state = self.state();
            state.index_builds.remove(&segment);
            state.indexes.remove(&segment)
        };
        lock(&self.tails).remove(&segment);
        if known.is_some() {
            self.remove_index_file(&index_name(segment));
        }
    }

    /// A file that stays behind is removed at the next open.
    fn remove_index_file(&self, name: &str) {
        if let Err(error) = self.volume.remove(name) {
            tracing::warn!("{error}");
        }
    }
}
