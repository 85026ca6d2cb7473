//! The journal of a replication group on the retention volume: redo, undo, and the points between them.
//!
//! ```text
//! receive --append, sync--> redo segments --------------------\
//!                                |                             > recover::PointReader
//!                                v                            /
//! apply <--- next batch --- complete sets      undo segments-/
//!   \------- save_undo, mark_applied -----------^
//! ```
//!
//! History is a chain of generations. A *stream* generation owns a range of sets; a *bulk* generation is a stretch of
//! catching up, or a rollback, whose content goes straight to the disks. Content of a block at point p of generation
//! g: the newest redo of g at or before p; else undo of g, of g+1, and so on; else redo of earlier generations that is
//! not applied yet; else the disk (rule J1). Order on disk: redo durable, acknowledge; undo durable, write the disk, sync
//! it, move the mark (rule J15). docs/journal-format.md has every byte.
//!
//! Files in the order in which a set travels: [`Volume`] and its two kinds, `segment` (records in files), `header` and
//! `manifest` (what stands in them), `open` (recovery), `receive` (into redo), `sets` (which sets count), `shrink` (how
//! compressible they are), `undo`, `bulk` (where generations begin and end), `turn` (how a failback is left), `index` (where
//! content is found fast), `room` (what gives way on a full volume), `source_marks` (what the source's marks are worth),
//! `disks` (which disks a point has), `sums` (what the disks must hold), `damage` (what they don't), `scrub` (is all of it right). `core` holds the locks.

mod bulk;
mod core;
mod damage;
mod dir_volume;
mod disks;
mod error;
mod header;
pub mod index;
pub(crate) mod limits;
mod manifest;
mod mem_volume;
mod open;
mod receive;
mod room;
mod scrub;
mod segment;
mod sets;
mod shrink;
mod source_marks;
mod state;
mod sums;
mod turn;
mod undo;
mod volume;

#[cfg(test)]
pub(crate) mod tests;

pub use bulk::{OpenBulk, Rollback};
pub use core::{Journal, Options};
pub use damage::MissingRange;
pub use dir_volume::DirVolume;
pub use disks::{KnownDisk, Standing};
pub use error::{JournalError, JournalResult, PhaseError};
pub use header::SegmentId;
pub(crate) use header::{SegmentBytes, UndoHeader, UndoRun};
pub(crate) use manifest::MANIFEST;
pub use manifest::{MarksVoidRecord, RecoveryRecord};
pub use mem_volume::{Fuse, MemVolume, Seeded};
pub use receive::{Accepted, Durable, PhaseOpened};
pub use room::WhenFull;
pub use scrub::{Damage, Scrubbed};
pub use shrink::Shrink;
pub use turn::{History, Turn};
pub use undo::UndoBlock;
pub use volume::{Volume, VolumeError, VolumeResult};

pub(crate) use core::lock;
pub(crate) use manifest::{Generation, Manifest, StartPoint};
pub(crate) use segment::{SegmentWriter, read_header, read_record};
pub(crate) use sets::{CompleteSet, RedoRun};
pub use state::Pin;
pub(crate) use state::{State, UndoPlace};
pub(crate) use sums::{Sum, Verdict};
pub(crate) use undo::{UndoWriter, read_undo, read_undo_header, undo_records};
