//! Undo and marks: what a block held before it was overwritten for the first time in a generation, and how far the
//! sets are on the disks.
//!
//! One thread per group (apply) writes here. A block counts as saved only once its record is durable; the bits are
//! rebuilt from the records after a crash (rule J9). The map holds what is *not* saved, since it may mark too much when
//! memory is short: a block that is saved twice is harmless, the first record wins.

use blockio::{DirtyMap, LeafPool};
use bytes::{Bytes, BytesMut};
use prost::Message;
use proto::ids::{Counter, SetNumber};
use proto::record::{Record, RecordKind};

use super::core::{Journal, lock};
use super::error::{JournalError, JournalResult};
use super::header::{SegmentId, UndoHeader, UndoRun};
use super::limits::{BLOCK_BYTES, SEGMENT_EXTENTS_MAX, UNDO_BLOCKS_MAX, UNDO_RUNS_MAX};
use super::segment::{SegmentWriter, read_header};
use super::state::UndoPlace;
use super::volume::Volume;
use crate::rules::Rule;

/// Content of a block from before it was overwritten.
#[derive(Debug, Clone)]
pub struct UndoBlock {
    /// Index of the disk.
    pub disk: u32,
    /// The block.
    pub block: u64,
    /// Its bytes; none where all are zero.
    pub content: Option<Bytes>,
    /// The content is there, and not what was written.
    pub is_damaged: bool,
}

/// The end of undo.
#[derive(Debug)]
pub(crate) struct UndoWriter {
    pub generation: u64,
    pub segment: Option<SegmentWriter>,
    /// Runs of the segment.
    runs: u64,
    unsaved: Vec<DirtyMap>,
    pool: LeafPool,
    /// The newest applied mark that was appended.
    marked: u64,
}

impl UndoWriter {
    pub fn new(leaves_max: usize) -> Self {
        Self { generation: 0, segment: None, runs: 0, unsaved: Vec::new(), pool: LeafPool::new(leaves_max), marked: 0 }
    }
}

impl<V: Volume> Journal<V> {
    /// Blocks of a range that were not saved in this generation yet, as (first, count).
    pub fn unsaved(&self, generation: u64, disk: u32, block: u64, blocks: u64) -> JournalResult<Vec<(u64, u64)>> {
        let mut undo = lock(&self.undo);
        self.enter_generation(&mut undo, generation)?;
        let map =
            undo.unsaved.get(disk as usize).ok_or(JournalError::State { what: "there is no disk of this index" })?;
        let (mut at, end) = (block, block + blocks);
        let mut runs = Vec::new();
        while at < end
            && let Some((first, count)) = map.next_run(at, end - at)
            && first < end
        {
            let count = count.min(end - first);
            runs.push((first, count));
            at = first + count;
        }
        Ok(runs)
    }

    /// Saves blocks, durably: afterwards they may be overwritten (rule J15). They come in the order of their places.
    pub fn save_undo(&self, generation: u64, blocks: &[UndoBlock]) -> JournalResult<()> {
        let mut undo = lock(&self.undo);
        self.check_running()?;
        self.enter_generation(&mut undo, generation)?;
        let mut places = Vec::new();
        for (header, payload) in undo_records(blocks) {
            let record = Record::encode(RecordKind::Undo, &header, &payload);
            self.make_room_for_undo(record.len() as u64, &mut undo)?;
            let segment = self.undo_segment(&mut undo)?;
            let offset = segment.append(&self.volume, &record).map_err(|error| self.stop(error))?;
            let (index, payload_len) = (segment.id().index, u32::try_from(payload.len()).unwrap_or(0));
            undo.runs += header.runs.len() as u64;
            places.push(UndoPlace { index, offset, len: record.len() as u64, payload_len });
        }
        if Rule::UndoBeforeWrite.holds() {
            self.sync_undo(&mut undo)?;
        } else if let Some(segment) = &mut undo.segment {
            segment.flush(&self.volume)?;
        }
        for block in blocks {
            if let Some(map) = undo.unsaved.get_mut(block.disk as usize) {
                map.clear(block.block, 1);
            }
        }
        // Published before the disk is written: a reader that finds new content there finds these too (rule J2).
        {
            let mut state = self.state();
            state.undo_version += places.len() as u64;
            state.undo.entry(generation).or_default().extend(places);
        }
        self.close_full_undo(&mut undo)
    }

    /// Sets are about to be written to the disks: says in undo how far redo is durable, so that redo that is cut below what the
    /// disks hold is noticed even where nothing has to be saved (rule J16). A kill does not lose it; a loss of power may.
    pub fn begin_batch(&self, generation: u64) -> JournalResult<()> {
        let mut undo = lock(&self.undo);
        self.check_running()?;
        self.enter_generation(&mut undo, generation)?;
        self.append_commit(&mut undo, RecordKind::Applied)?;
        match &mut undo.segment {
            Some(segment) => segment.flush(&self.volume).map_err(|error| self.stop(error)),
            None => Ok(()),
        }
    }

    /// All sets up to this one are on the disks, whose sync has succeeded. Durable with the next sync of undo.
    pub fn mark_applied(&self, generation: u64, number: SetNumber) -> JournalResult<()> {
        let mut undo = lock(&self.undo);
        self.check_running()?;
        self.enter_generation(&mut undo, generation)?;
        self.state().applied = number.0;
        self.append_commit(&mut undo, RecordKind::Applied)?;
        undo.marked = number.0;
        Ok(())
    }

    /// Makes the applied mark durable (rules J4 and J6).
    pub fn sync_marks(&self) -> JournalResult<()> {
        self.sync_undo(&mut lock(&self.undo))
    }

    /// The disks were synced while catching up: what was written to them may be acknowledged with this counter.
    pub fn mark_bulk(&self) -> JournalResult<Counter> {
        let mut undo = lock(&self.undo);
        self.check_running()?;
        let bulk = self.state().manifest.open_bulk().map(|bulk| bulk.id);
        let bulk = bulk.ok_or(JournalError::State { what: "no catching-up is open" })?;
        self.enter_generation(&mut undo, bulk)?;
        let counter = self.append_commit(&mut undo, RecordKind::BulkMark)?;
        self.sync_undo(&mut undo)?;
        let mut state = self.state();
        state.bulk_unsynced = false;
        state.counter = state.counter.max(counter);
        Ok(Counter(state.counter))
    }

    fn append_commit(&self, undo: &mut UndoWriter, kind: RecordKind) -> JournalResult<u64> {
        let segment = self.undo_segment(undo)?;
        let header = self.next_commit(segment.id(), segment.synced());
        segment.append(&self.volume, &Record::encode(kind, &header, &[])).map_err(|error| self.stop(error))?;
        Ok(header.counter)
    }

    fn undo_segment<'a>(&self, undo: &'a mut UndoWriter) -> JournalResult<&'a mut SegmentWriter> {
        if undo.segment.is_none() {
            let generation = undo.generation;
            let of_generation = SegmentId { generation, index: 0 }..=SegmentId { generation, index: u64::MAX };
            let newest = self.state().segments.range(of_generation).next_back().map_or(0, |(id, _)| id.index);
            undo.segment = Some(self.create_segment(SegmentId { generation, index: newest + 1 }, 0)?);
            undo.runs = 0;
        }
        undo.segment.as_mut().ok_or(JournalError::State { what: "no undo segment" })
    }

    pub(crate) fn sync_undo(&self, undo: &mut UndoWriter) -> JournalResult<()> {
        self.check_running()?;
        if let Some(segment) = &mut undo.segment {
            let before = segment.synced();
            segment.sync(&self.volume).map_err(|error| self.stop(error))?;
            let (id, bytes) = (segment.id(), segment.len());
            // Undo is read when somebody asks for an old point, if ever.
            self.volume.uncache(&id.to_string(), before, bytes - before);
            let mut state = self.state();
            state.segments.entry(id).or_default().bytes = bytes;
            state.synced.insert(id, bytes);
            state.applied_durable = state.applied_durable.max(undo.marked);
        }
        Ok(())
    }

    fn close_full_undo(&self, undo: &mut UndoWriter) -> JournalResult<()> {
        let has_many = undo.runs >= SEGMENT_EXTENTS_MAX;
        match undo.segment.take_if(|segment| has_many || segment.len() >= self.options.segment_bytes) {
            Some(full) => self.close_segment(full),
            None => Ok(()),
        }
    }

    /// Turns to the undo of another generation: closes the segment of the last one and rebuilds the first-touch bits.
    fn enter_generation(&self, undo: &mut UndoWriter, generation: u64) -> JournalResult<()> {
        if undo.generation == generation {
            return Ok(());
        }
        self.sync_undo(undo)?;
        if let Some(segment) = undo.segment.take() {
            self.close_segment(segment)?;
        }
        let (disks, places) = {
            let state = self.state();
            let disks: Vec<u64> = state.manifest.disks.iter().map(|disk| disk.size).collect();
            (disks, state.undo.get(&generation).cloned().unwrap_or_default())
        };
        undo.generation = 0;
        undo.unsaved.clear();
        for size in &disks {
            let mut map = DirtyMap::new(*size, &undo.pool);
            map.set_all();
            undo.unsaved.push(map);
        }
        for place in places.into_iter().filter(|_| Rule::SavedIsFound.holds()) {
            let id = SegmentId { generation, index: place.index };
            let header = read_undo_header(&self.volume, id, &place, &disks)?;
            for run in header.runs {
                if let Some(map) = undo.unsaved.get_mut(run.disk as usize) {
                    map.clear(run.block, u64::from(run.blocks));
                }
            }
        }
        undo.generation = generation;
        Ok(())
    }
}

/// The header of an undo record, whose runs lie on disks of these sizes and have the content they announce.
pub(crate) fn read_undo_header(
    volume: &impl Volume,
    id: SegmentId,
    place: &UndoPlace,
    sizes: &[u64],
) -> JournalResult<UndoHeader> {
    let damaged = |what| JournalError::Damaged { file: volume.describe(&id.to_string()), offset: place.offset, what };
    match read_undo(volume, id, (place.offset, place.len), sizes)? {
        (header, payload_len) if payload_len == place.payload_len => Ok(header),
        (_, found) => Err(damaged(format!("it has {found} bytes of content instead of {}", place.payload_len))),
    }
}

/// The header of the undo record at an offset and of a length, and the bytes of its payload.
pub(crate) fn read_undo(
    volume: &impl Volume,
    id: SegmentId,
    (offset, len): (u64, u64),
    sizes: &[u64],
) -> JournalResult<(UndoHeader, u32)> {
    let damaged = |what| JournalError::Damaged { file: volume.describe(&id.to_string()), offset, what };
    let scanned = read_header(volume, id, offset, offset + len)?;
    if scanned.kind != RecordKind::Undo || scanned.len != len {
        return Err(damaged(format!("a record of {} bytes stands where undo of {len} is expected", scanned.len)));
    }
    let header = UndoHeader::decode(&scanned.header[..]).map_err(|error| damaged(error.to_string()))?;
    match payload_bytes(sizes, &header).map_err(damaged)? {
        bytes if bytes == u64::from(scanned.payload_len) => Ok((header, scanned.payload_len)),
        bytes => Err(damaged(format!("it has {} bytes of content instead of {bytes}", scanned.payload_len))),
    }
}

/// Bytes of content that an undo record has to have, on disks of these sizes; the text says what is wrong with its runs.
pub(crate) fn payload_bytes(sizes: &[u64], header: &UndoHeader) -> Result<u64, String> {
    let mut bytes = 0;
    for run in &header.runs {
        let size = sizes.get(run.disk as usize).copied().unwrap_or(0);
        let count = u64::from(run.blocks);
        if count == 0 || run.block.checked_add(count).is_none_or(|end| end > size.div_ceil(BLOCK_BYTES)) {
            return Err(format!("{count} blocks at block {} are not on disk {} of the group", run.block, run.disk));
        }
        let crcs = if run.zero { 0 } else { run.blocks as usize };
        if run.crcs.len() != crcs {
            return Err(format!("an undo run of {count} blocks has {} CRCs", run.crcs.len()));
        }
        if !run.zero {
            let from = run.block * BLOCK_BYTES;
            bytes += (from + count * BLOCK_BYTES).min(size) - from;
        }
    }
    Ok(bytes)
}

/// Packs blocks into records within their bounds.
pub(crate) fn undo_records(blocks: &[UndoBlock]) -> Vec<(UndoHeader, BytesMut)> {
    let mut records: Vec<(UndoHeader, BytesMut)> = Vec::new();
    let mut in_payload = 0;
    for block in blocks {
        let zero = block.content.is_none();
        let (header, payload) = match records.last_mut() {
            Some(record) if record.0.runs.len() < UNDO_RUNS_MAX && in_payload < UNDO_BLOCKS_MAX => record,
            _ => {
                in_payload = 0;
                records.push_mut(Default::default())
            }
        };
        let joins = |run: &&mut UndoRun| {
            run.disk == block.disk
                && run.block + u64::from(run.blocks) == block.block
                && run.zero == zero
                && run.damaged == block.is_damaged
        };
        let run = match header.runs.last_mut().filter(joins) {
            Some(run) => run,
            None => header.runs.push_mut(UndoRun {
                disk: block.disk,
                block: block.block,
                zero,
                damaged: block.is_damaged,
                ..Default::default()
            }),
        };
        run.blocks += 1;
        if let Some(content) = &block.content {
            let crc = blockio::crc::crc32(content);
            // An older agent, which doesn't know the mark, must not take it for right either.
            run.crcs.push(if block.is_damaged { !crc } else { crc });
            payload.extend_from_slice(content);
            in_payload += 1;
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(block: u64) -> UndoBlock {
        UndoBlock { disk: 0, block, content: Some(Bytes::from(vec![block as u8; 4096])), is_damaged: false }
    }

    fn zero(block: u64) -> UndoBlock {
        UndoBlock { disk: 0, block, content: None, is_damaged: false }
    }

    #[test]
    fn neighbours_of_a_kind_share_a_run_and_zeroes_take_no_payload() {
        let records = undo_records(&[data(1), data(2), zero(3), zero(4), data(5), data(7)]);
        assert_eq!(records.len(), 1);
        let (header, payload) = &records[0];
        let runs: Vec<_> = header.runs.iter().map(|run| (run.block, run.blocks, run.zero, run.crcs.len())).collect();
        assert_eq!(runs, [(1, 2, false, 2), (3, 2, true, 0), (5, 1, false, 1), (7, 1, false, 1)]);
        assert_eq!(payload.len(), 4 * 4096);
    }

    #[test]
    fn records_stay_within_their_bounds() {
        let scattered: Vec<_> = (0..2000).map(|i| if i % 2 == 0 { data(i * 2) } else { zero(i * 2) }).collect();
        let mut blocks = 0;
        for (header, payload) in undo_records(&scattered) {
            assert!(header.runs.len() <= UNDO_RUNS_MAX);
            blocks += header.runs.iter().map(|run| run.blocks).sum::<u32>();
            let _ = Record::encode(RecordKind::Undo, &header, &payload);
        }
        assert_eq!(blocks, 2000);
    }

    #[test]
    fn runs_that_are_not_on_their_disk_or_miss_their_crcs_are_refused() {
        let sizes = [4096 * 4 + 512];
        let run =
            |disk, block, blocks, crcs| UndoRun { disk, block, blocks, crcs: vec![0; crcs], ..UndoRun::default() };
        let bytes = |run| payload_bytes(&sizes, &UndoHeader { runs: vec![run] });
        assert_eq!(bytes(run(0, 3, 2, 2)), Ok(4096 + 512), "the last block is short");
        let bad = [run(1, 0, 1, 1), run(0, 5, 1, 1), run(0, 4, 2, 2), run(0, 1, 0, 0), run(0, u64::MAX, 1, 1)];
        for run in bad.into_iter().chain([run(0, 0, 1, 0), run(0, 0, 1, 2), UndoRun { zero: true, ..run(0, 0, 1, 1) }])
        {
            assert!(bytes(run.clone()).is_err(), "{run:?}");
        }
    }
}
