//! What goes into an index: the extents of the records of a segment, each sector once.
//!
//! Both kinds of records are read here, headers only, for indexes and for what has none yet.

use blockio::ExtentMap;
use prost::Message;
use proto::replication::{Content, FrameHeader};

use super::{Entry, Place};
use crate::journal::header::SegmentId;
use crate::journal::limits::{BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES};
use crate::journal::segment::Reader;
use crate::journal::sets::RedoRun;
use crate::journal::state::UndoPlace;
use crate::journal::undo::read_undo_header;
use crate::journal::volume::Volume;
use crate::journal::{JournalError, JournalResult};

/// Reads the headers of frames that follow each other, and gives their extents.
pub(crate) fn visit_redo(
    volume: &impl Volume,
    run: RedoRun,
    set: u64,
    mut found: impl FnMut(Entry),
) -> JournalResult<()> {
    let name = run.segment.to_string();
    let damaged = |offset, what| JournalError::Damaged { file: volume.describe(&name), offset, what };
    let end = run.offset + run.len;
    let mut reader = Reader::new(volume, &name, end);
    let mut offset = run.offset;
    while offset < end {
        let record = reader.record(offset, false)?.map_err(|what| damaged(offset, what))?;
        let header = FrameHeader::decode(&record.header[..]).map_err(|error| damaged(offset, error.to_string()))?;
        let mut content_at: u32 = 0;
        for extent in &header.extents {
            let at = match extent.content() {
                Content::Data => {
                    let at = content_at;
                    // What only looks like a frame is found out when it is decoded.
                    content_at = at.saturating_add(extent.sectors).min(Place::ZERO - 1);
                    at
                }
                Content::Zero => Place::ZERO,
                Content::Unreadable => continue,
            };
            let place = Place { set, offset, len: record.len as u32, at };
            let (disk, sector, sectors) = (extent.disk, extent.sector, u64::from(extent.sectors));
            found(Entry { disk, sector, sectors, place });
        }
        offset += record.len;
    }
    Ok(())
}

/// Reads the header of an undo record, and gives its extents.
pub(crate) fn visit_undo(
    volume: &impl Volume,
    generation: u64,
    place: &UndoPlace,
    sizes: &[u64],
    mut found: impl FnMut(Entry),
) -> JournalResult<()> {
    let segment = SegmentId { generation, index: place.index };
    let header = read_undo_header(volume, segment, place, sizes)?;
    let mut content_at = 0;
    for run in &header.runs {
        let size = sizes.get(run.disk as usize).copied().unwrap_or(0);
        let from = run.block * BLOCK_BYTES;
        let bytes = (from + u64::from(run.blocks) * BLOCK_BYTES).min(size).saturating_sub(from);
        let sectors = bytes / SECTOR_BYTES;
        let at = if run.zero { Place::ZERO } else { content_at };
        if !run.zero {
            content_at += sectors as u32;
        }
        let place = Place { set: 0, offset: place.offset, len: place.len as u32, at };
        found(Entry { disk: run.disk, sector: run.block * BLOCK_SECTORS, sectors, place });
    }
    Ok(())
}

/// Extents of which each sector has one place.
#[derive(Debug, Default)]
pub(crate) struct Flat {
    disks: Vec<ExtentMap<Place>>,
}

impl Flat {
    /// Nothing yet, of so many disks.
    pub fn of_disks(disks: usize) -> Self {
        Self { disks: (0..disks).map(|_| ExtentMap::new()).collect() }
    }

    /// Takes in an extent that wins over what was taken in before.
    pub fn put_newer(&mut self, entry: Entry) {
        if let Some(map) = self.disks.get_mut(entry.disk as usize) {
            map.insert(entry.sector, entry.sectors, entry.place);
        }
    }

    /// Takes in an extent where nothing was taken in before.
    pub fn put_later(&mut self, entry: Entry) {
        if let Some(map) = self.disks.get_mut(entry.disk as usize) {
            map.fill(entry.sector, entry.sectors, entry.place);
        }
    }

    /// What lies in a range, cut to it.
    pub fn overlapping(&self, disk: u32, sector: u64, sectors: u64) -> impl Iterator<Item = Entry> {
        let map = self.disks.get(disk as usize);
        let found = map.into_iter().flat_map(move |map| map.clipped(sector, sectors));
        found.map(move |(sector, sectors, place)| Entry { disk, sector, sectors, place })
    }

    /// The first sector at or after `sector` of which it has something.
    pub fn next_at(&self, disk: u32, sector: u64) -> Option<u64> {
        let map = self.disks.get(disk as usize)?;
        map.overlapping(sector, u64::MAX - sector).next().map(|(at, _, _)| at.max(sector))
    }

    /// All of it, sorted, in entries whose length fits an index.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (disk, map) in (0..).zip(&self.disks) {
            for (sector, sectors, place) in map.iter() {
                let mut done = 0;
                while done < sectors {
                    let part = (sectors - done).min(u64::from(u32::MAX));
                    let place = blockio::Slice::slice(place, done, part);
                    entries.push(Entry { disk, sector: sector + done, sectors: part, place });
                    done += part;
                }
            }
        }
        entries
    }
}
