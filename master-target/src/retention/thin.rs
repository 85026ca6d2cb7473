//! Thinning: older history keeps fewer points. First the redo of whole generations goes, so that only their ends stay points;
//! later neighbouring generations become one, whose undo is that of both.
//!
//! Both only below the durable applied mark (rule J6), never while a failback is under way (J10), never with the newest
//! point (J7), and never under a reader (J12). Nothing is moved in place: new files, one manifest, then the old files go.

use blockio::{DirtyMap, LeafPool};
use proto::record::{Record, RecordKind};
use proto::time::Timestamp;

use super::policy::{Kept, ThinPolicy};
use super::prune::end_point;
use crate::journal::limits::{BLOCK_BYTES, SEGMENT_EXTENTS_MAX};
use crate::journal::{
    Generation, Journal, JournalError, JournalResult, SegmentBytes, SegmentId, SegmentWriter, State, UndoBlock,
    UndoPlace, Volume, lock, read_record, read_undo_header, undo_records,
};

/// Two neighbouring generations that become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    older: u64,
    newer: u64,
}

impl<V: Volume> Journal<V> {
    /// Drops the redo of generations that the policy thins, oldest first. Gives how many points went.
    pub fn thin(&self, now: Timestamp, policy: &ThinPolicy) -> JournalResult<usize> {
        let Some(before) = policy.thins_before(now) else { return Ok(0) };
        self.sync_undo(&mut lock(&self.undo))?;
        let mut gone = 0;
        loop {
            let _undo = lock(&self.undo);
            if self.recovery_state().is_some() {
                break;
            }
            let index = {
                let mut state = self.state();
                let Some(index) = to_thin(&state, before) else { break };
                state.closed_through = Some(state.manifest.generations[index].id);
                index
            };
            let dropped = self.drop_redo(index);
            self.state().closed_through = None;
            let points = dropped?;
            if let Some(first) = points.first() {
                let group = &self.options.group;
                tracing::info!(
                    group,
                    points = points.len(),
                    first,
                    "points were thinned: they are older than the first rule"
                );
            }
            gone += points.len();
        }
        Ok(gone)
    }

    /// The generation at `index` keeps its undo only, and its end as a point. Gives the points that went.
    fn drop_redo(&self, index: usize) -> JournalResult<Vec<u64>> {
        let (last, start, before) = {
            let state = self.state();
            let generation = &state.manifest.generations[index];
            (generation.last.unwrap_or(0), end_point(&state, generation), state.points())
        };
        self.forget_redo(last, &[], |manifest| manifest.generations[index + 1].start = start)?;
        let kept = self.state().points();
        let is_gone = |set: &u64| !kept.iter().any(|point| point.set.0 == *set);
        Ok(before.iter().map(|point| point.set.0).filter(is_gone).collect())
    }

    /// Makes two thinned generations one, where the policy gives up the point between them. Reads and writes as much as the
    /// undo of both; blocks. False where there is nothing to do now. `may_go_on` is asked now and then.
    pub fn merge_thinned(
        &self,
        now: Timestamp,
        policy: &ThinPolicy,
        may_go_on: impl Fn() -> bool,
    ) -> JournalResult<bool> {
        self.check_running()?;
        let busy = lock(&self.undo).generation;
        let pair = {
            let state = self.state();
            let found = to_merge(&state, now, policy)
                .filter(|pair| state.manifest.recovery.is_none() && is_free(&state, busy, *pair));
            let Some(pair) = found else { return Ok(false) };
            pair
        };
        let needed = self.undo_bytes_of(pair);
        if self.free_bytes()? < needed.saturating_add(self.options.reserve_bytes) {
            return Ok(false);
        }
        match self.write_merged(pair, may_go_on)? {
            Some(merged) => self.switch_to(pair, merged),
            None => Ok(false),
        }
    }

    fn undo_bytes_of(&self, pair: Pair) -> u64 {
        let state = self.state();
        let of_pair = state.segments.iter().filter(|(id, _)| [pair.older, pair.newer].contains(&id.generation));
        of_pair.map(|(_, info)| info.bytes).sum()
    }

    /// The undo of both, of each block the first record. Nothing if it was told to stop.
    fn write_merged(&self, pair: Pair, may_go_on: impl Fn() -> bool) -> JournalResult<Option<Merged>> {
        let (sizes, places, mut index) = {
            let state = self.state();
            let of =
                |id: u64| state.undo.get(&id).into_iter().flatten().map(move |place| (id, *place)).collect::<Vec<_>>();
            let sizes: Vec<u64> = state.manifest.disks.iter().map(|disk| disk.size).collect();
            let newest = state.segments.keys().filter(|id| id.generation == pair.older).map(|id| id.index).max();
            (sizes, [of(pair.older), of(pair.newer)].concat(), newest.unwrap_or(0))
        };
        let pool = LeafPool::new(self.options.first_touch_leaves);
        let mut unsaved: Vec<DirtyMap> = sizes
            .iter()
            .map(|size| {
                let mut map = DirtyMap::new(*size, &pool);
                map.set_all();
                map
            })
            .collect();
        let mut merged = Merged::default();
        let mut writer = None;
        let mut runs = 0;
        for (generation, place) in places {
            if !may_go_on() {
                return Ok(None);
            }
            let id = SegmentId { generation, index: place.index };
            let blocks = first_of(self.volume(), id, &place, &sizes, &mut unsaved)?;
            for (header, payload) in undo_records(&blocks) {
                let record = Record::encode(RecordKind::Undo, &header, &payload);
                let segment = match &mut writer {
                    Some(segment) => segment,
                    none => {
                        index += 1;
                        none.insert(self.create_segment(SegmentId { generation: pair.older, index }, 0)?)
                    }
                };
                let offset = segment.append(&self.volume, &record).map_err(|error| self.stop(error))?;
                let payload_len = u32::try_from(payload.len()).unwrap_or(0);
                merged.places.push(UndoPlace { index, offset, len: record.len() as u64, payload_len });
                runs += header.runs.len() as u64;
                if segment.len() >= self.options.segment_bytes || runs >= SEGMENT_EXTENTS_MAX {
                    runs = 0;
                    merged.segments.extend(writer.take().map(|full| self.finish_merged(full)).transpose()?);
                }
            }
        }
        merged.segments.extend(writer.take().map(|last| self.finish_merged(last)).transpose()?);
        Ok(Some(merged))
    }

    /// Lets the merged files count in place of those of both generations. False where something has come in between: a
    /// reader, or their removal.
    fn switch_to(&self, pair: Pair, merged: Merged) -> JournalResult<bool> {
        let undo = lock(&self.undo);
        let found = {
            let mut state = self.state();
            let index = state
                .manifest
                .generations
                .windows(2)
                .position(|two| (two[0].id, two[1].id) == (pair.older, pair.newer));
            let found = index.filter(|_| state.manifest.recovery.is_none() && is_free(&state, undo.generation, pair));
            // From here on nobody begins to read the undo of either, until it stands in the merged files (rule J12).
            state.closed_through = found.map(|_| pair.newer);
            found
        };
        let Some(index) = found else {
            self.remove_files(merged.segments.iter().map(SegmentBytes::id).collect());
            return Ok(false);
        };
        let is_new = |id: SegmentId| merged.segments.iter().any(|segment| segment.id() == id);
        let is_old = |id: SegmentId| [pair.older, pair.newer].contains(&id.generation) && !is_new(id);
        let switched = self.update_manifest(|manifest| {
            let newer = manifest.generations.remove(index + 1);
            absorb(&mut manifest.generations[index], &newer);
            manifest.segments.retain(|segment| !is_old(segment.id()));
            manifest.segments.extend(merged.segments.iter().cloned());
        });
        let old: Vec<SegmentId> = {
            let mut state = self.state();
            state.closed_through = None;
            switched?;
            state.undo.insert(pair.older, merged.places.clone());
            state.undo.remove(&pair.newer);
            state.segments.keys().copied().filter(|id| is_old(*id)).collect()
        };
        drop(undo);
        self.remove_files(old);
        tracing::info!(
            group = self.options.group,
            older = pair.older,
            newer = pair.newer,
            "two thinned generations became one"
        );
        Ok(true)
    }

    /// Syncs a merged file.
    fn finish_merged(&self, mut writer: SegmentWriter) -> JournalResult<SegmentBytes> {
        writer.sync(&self.volume).map_err(|error| self.stop(error))?;
        let (id, bytes) = (writer.id(), writer.len());
        self.volume.finish(&id.to_string());
        self.state().segments.entry(id).or_default().bytes = bytes;
        Ok(SegmentBytes::of(id, bytes))
    }
}

/// Undo that was written anew.
#[derive(Debug, Default)]
struct Merged {
    places: Vec<UndoPlace>,
    segments: Vec<SegmentBytes>,
}

/// The blocks of an undo record of which none came before.
fn first_of(
    volume: &impl Volume,
    id: SegmentId,
    place: &UndoPlace,
    sizes: &[u64],
    unsaved: &mut [DirtyMap],
) -> JournalResult<Vec<UndoBlock>> {
    let header = read_undo_header(volume, id, place, sizes)?;
    let payload = read_record(volume, id, place.offset, place.len)?.payload;
    let mut blocks = Vec::new();
    let mut at = 0;
    for run in &header.runs {
        let size = sizes.get(run.disk as usize).copied().unwrap_or(0);
        for (index, block) in (run.block..run.block + u64::from(run.blocks)).enumerate() {
            let bytes = (size - block * BLOCK_BYTES).min(BLOCK_BYTES) as usize;
            let content = (!run.zero).then(|| payload.slice(at..at + bytes));
            at += if run.zero { 0 } else { bytes };
            let Some(map) = unsaved.get_mut(run.disk as usize).filter(|map| map.any(block, 1)) else { continue };
            map.clear(block, 1);
            // What is marked damaged has a wrong CRC on purpose, and stays marked.
            let is_wrong = |content: &bytes::Bytes| run.crcs.get(index) != Some(&blockio::crc32(content));
            if !run.damaged && content.as_ref().is_some_and(is_wrong) {
                let what = format!("the saved content of block {block} of disk {} is damaged", run.disk);
                let file = volume.describe(&id.to_string());
                return Err(JournalError::Damaged { file, offset: place.offset, what });
            }
            blocks.push(UndoBlock { disk: run.disk, block, content, is_damaged: run.damaged });
        }
    }
    Ok(blocks)
}

/// The older of two neighbours takes in the newer.
fn absorb(older: &mut Generation, newer: &Generation) {
    if newer.is_bulk() {
        return;
    }
    if older.is_bulk() {
        // Its undo and that of the sets that followed: a stream that begins where it began.
        let (id, start, opened_us) = (older.id, older.start.take(), older.opened_us);
        *older = Generation { id, start, opened_us, ..newer.clone() };
    } else {
        older.last = newer.last;
    }
}

/// The oldest generation whose redo may go, if it is next.
fn to_thin(state: &State, before: Timestamp) -> Option<usize> {
    let generations = &state.manifest.generations;
    let index = generations.iter().position(|generation| {
        !generation.is_bulk()
            && generation.last.is_none_or(|last| last >= generation.first && last > state.manifest.forgotten)
    })?;
    let generation = &generations[index];
    let last = generation.last.filter(|last| *last <= state.applied_durable)?;
    let end = end_point(state, generation);
    let newest = state.point_times().last();
    // The newest point is its end, or comes later.
    let stays = end.is_some() || newest.is_none_or(|(set, _)| set > last);
    let own = || state.point_times().filter(|(set, _)| (generation.first..=last).contains(set));
    let is_old = own().all(|(_, time)| time < before);
    let is_wanted = own().any(|(set, _)| set != last && state.manifest.pinned.contains(&set));
    let is_read = state.pins.iter().any(|pin| pin.generation <= generation.id);
    (stays && is_old && !is_wanted && !is_read && index + 1 < generations.len()).then_some(index)
}

/// Two neighbours without redo, of which the policy gives up the point between them.
fn to_merge(state: &State, now: Timestamp, policy: &ThinPolicy) -> Option<Pair> {
    let spent = |generation: &&Generation| match generation.last {
        _ if generation.is_bulk() => generation.closed && generation.keeps_undo,
        Some(last) => last <= state.manifest.forgotten,
        None => false,
    };
    let spent: Vec<&Generation> = state.manifest.generations.iter().take_while(spent).collect();
    let pair = |index: usize| Some(Pair { older: spent.get(index.checked_sub(1)?)?.id, newer: spent.get(index)?.id });
    // No point is between them any more.
    if let Some(index) = (1..spent.len()).find(|index| spent[*index].start.is_none()) {
        return pair(index);
    }
    let kept = |generation: &&Generation| {
        let start = generation.start.as_ref()?;
        Some(Kept {
            time: Timestamp(start.time_us),
            is_protected: !start.label.is_empty() || state.manifest.pinned.contains(&start.number),
            is_app: start.kind == i32::from(proto::replication::PointKind::App),
        })
    };
    let with_start: Vec<usize> = (0..spent.len()).filter(|index| kept(&spent[*index]).is_some()).collect();
    let points: Vec<Kept> = with_start.iter().filter_map(|index| kept(&spent[*index])).collect();
    pair(with_start[policy.surplus(now, &points)?])
}

/// Nobody reads or writes the undo of either.
fn is_free(state: &State, busy: u64, pair: Pair) -> bool {
    let is_read = state.pins.iter().any(|pin| pin.generation <= pair.newer);
    !is_read && busy != pair.older && busy != pair.newer
}
