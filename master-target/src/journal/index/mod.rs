//! Indexes: for each segment that is closed, which of its content stands for which sectors, sorted, so that a point is
//! read without reading the headers of the journal first.
//!
//! ```text
//! closed segment --headers, once--> Flat --encode--> redo-NNNNNNNN.idx --PageCache--> SegmentIndex::overlapping
//! ```
//!
//! The index of a redo segment has the newest content of each sector among its sets; a point in the middle of its sets
//! can't use it, and reads the headers of that one segment. The index of an undo segment has the first (rule J9).
//! An index is made of what is durable and never relied upon for what it does not know: it is rebuilt where it is missing,
//! damaged or of other records, and each place that it names is checked against the record there.
//!
//! `format` has the bytes (docs/journal-format.md, "Indexes"), `flat` what goes into them, `read` finds places in them,
//! `cache` keeps pages, `upkeep` makes and removes the files, `tail` stands in for
//! the index of an undo segment that has none. Which places make a point is in `crate::recover`.

mod cache;
mod flat;
mod format;
pub mod fuzz;
mod read;
mod tail;
mod upkeep;

pub(crate) use cache::PageCache;
pub(crate) use flat::{Flat, visit_redo};
pub(crate) use read::{IndexFault, SegmentIndex};
pub(crate) use tail::UndoTail;

/// Where the content of a run of sectors stands in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The set it is of; 0 in undo.
    pub set: u64,
    /// First byte of its record.
    pub offset: u64,
    /// Bytes of the record.
    pub len: u32,
    /// Where in the decoded content of the record, in sectors; [`Place::ZERO`] where all is zero.
    pub at: u32,
}

impl Place {
    /// The content is zero and has no bytes in the record.
    pub const ZERO: u32 = u32::MAX;
}

impl blockio::Slice for Place {
    fn slice(&self, from: u64, _len: u64) -> Self {
        // A record holds a few thousand sectors of content. What a damaged one says must not become the mark for zeroes.
        let moved = u64::from(self.at).saturating_add(from).min(u64::from(Self::ZERO - 1));
        let at = if self.at == Self::ZERO { Self::ZERO } else { moved as u32 };
        Self { at, ..*self }
    }
}

/// A run of sectors with its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Index of the disk.
    pub disk: u32,
    /// First sector.
    pub sector: u64,
    /// How many.
    pub sectors: u64,
    /// Where they are.
    pub place: Place,
}

#[cfg(test)]
mod tests;
