//! What the target knows of the source's write-intent marks: how far they had come when content was made, and whether
//! they count at all (docs/tracking.md).
//!
//! Both are for the next start of the source. Marks that are older than content which is here belong to a source that was
//! restored from an image (REVIEW W6); marks that are void say nothing about what was written (REVIEW W8). This file keeps
//! and answers; what follows from it is decided by the source.

use proto::ids::Counter;

use super::core::Journal;
use super::error::JournalResult;
use super::manifest::MarksVoidRecord;
use super::volume::Volume;

impl<V: Volume> Journal<V> {
    /// The highest number of commits of the source's marks that content came with: by the seal of the newest durable
    /// set, or by a catching-up; 0 where there is none.
    pub fn marks(&self) -> u64 {
        let state = self.state();
        let newest = state.sets.complete().range(..=state.durable).next_back();
        let sealed = newest.map_or(state.manifest.forgotten_marks, |(_, set)| set.seal.marks);
        sealed.max(state.manifest.bulk_marks)
    }

    /// Content of a catching-up that comes with this number is about to be written to the disks: the number is durable
    /// first, or a crash would leave newer content than the target knows of.
    pub fn raise_marks(&self, marks: u64) -> JournalResult<()> {
        if marks <= self.state().manifest.bulk_marks {
            return Ok(());
        }
        self.update_manifest(|manifest| manifest.bulk_marks = manifest.bulk_marks.max(marks))
    }

    /// The note that the source's marks are void, where there is one.
    pub fn marks_void(&self) -> Option<MarksVoidRecord> {
        self.state().manifest.marks_void
    }

    /// Notes durably that the source's marks are void, or with `valid` that they are whole again. The counter goes into
    /// the answer: a target that falls back behind it has lost the note (rule L1).
    ///
    /// A note is taken back by its own number or a later one only: the words of a session that is over can't lift it.
    pub fn note_marks(&self, note: MarksVoidRecord, valid: bool, marks: u64) -> JournalResult<Counter> {
        let counter = {
            let mut state = self.state();
            state.counter_given += 1;
            state.counter_given
        };
        self.update_manifest(|manifest| {
            manifest.counter = counter;
            manifest.bulk_marks = manifest.bulk_marks.max(marks);
            manifest.marks_void = match manifest.marks_void {
                Some(known) if known > note => Some(known),
                _ => (!valid).then_some(note),
            };
        })?;
        let mut state = self.state();
        state.counter = state.counter.max(counter);
        Ok(Counter(state.counter))
    }
}
