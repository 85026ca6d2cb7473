//! The undo of a segment that has no index yet, in memory: the one that is being written, as a rule.

use std::sync::{Arc, Mutex};

use super::flat::{Flat, visit_undo};
use crate::journal::JournalResult;
use crate::journal::core::{Journal, lock};
use crate::journal::header::SegmentId;
use crate::journal::state::UndoPlace;
use crate::journal::volume::Volume;

/// What the records of an undo segment hold, as far as they were taken in. All readers of a journal share it, and it
/// goes with the last of them. A segment has `SEGMENT_EXTENTS_MAX` extents, of some 100 bytes here.
#[derive(Debug)]
pub(crate) struct UndoTail {
    taken: usize,
    /// The extents.
    pub flat: Flat,
}

impl<V: Volume> Journal<V> {
    /// The undo of a segment with all records that were published so far. Reads the headers of the new ones.
    pub(crate) fn undo_tail(&self, segment: SegmentId) -> JournalResult<Arc<Mutex<UndoTail>>> {
        let sizes: Vec<u64> = self.state().manifest.disks.iter().map(|disk| disk.size).collect();
        let tail = lock(&self.tails)
            .entry(segment)
            .or_insert_with(|| Arc::new(Mutex::new(UndoTail { taken: 0, flat: Flat::of_disks(sizes.len()) })))
            .clone();
        let mut taking = lock(&tail);
        let fresh: Vec<UndoPlace> = {
            let state = self.state();
            let places = state.undo_of(segment);
            places.get(taking.taken..).unwrap_or_default().to_vec()
        };
        for place in fresh {
            let UndoTail { flat, .. } = &mut *taking;
            visit_undo(&self.volume, segment.generation, &place, &sizes, |entry| flat.put_later(entry))?;
            // One by one: a record that can't be read is met again by the next reader.
            taking.taken += 1;
        }
        drop(taking);
        Ok(tail)
    }
}
