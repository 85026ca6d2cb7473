//! What a journal holds in memory: small, and never locked across I/O.
//!
//! The manifest inside is the one that is durable; what it does not say yet (sets, counters, marks, undo records) is
//! beside it. Each field says who changes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::header::{SegmentBytes, SegmentId};
use super::index::SegmentIndex;
use super::manifest::Manifest;
use super::sets::{CompleteSet, RedoRun, Sets};

/// Where an undo record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UndoPlace {
    /// Segment of the generation.
    pub index: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes of the record.
    pub len: u64,
    /// Bytes of its payload, at its end.
    pub payload_len: u32,
}

/// A segment file that is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Bytes that count.
    pub bytes: u64,
    /// Redo: highest set of which it holds something.
    pub highest: u64,
}

/// A reader's claim on everything from its generation on (rule J12).
#[derive(Debug)]
pub struct Pin {
    /// The generation of its point.
    pub generation: u64,
    /// The set after which its point stands.
    pub set: u64,
    revoked: AtomicBool,
}

impl Pin {
    /// A claim on `generation` and later ones.
    #[must_use]
    pub fn on(generation: u64, set: u64) -> Self {
        Self { generation, set, revoked: AtomicBool::new(false) }
    }

    /// True once the files were given up for room.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Ends the reader.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }
}

/// The state of a journal.
#[derive(Debug)]
pub struct State {
    /// As it stands on the volume. Changed by `Journal::update_manifest` alone.
    pub manifest: Manifest,
    /// Complete sets and those in the making. Changed by the receiving thread and by pruning.
    pub sets: Sets,
    /// The last set of the gapless run that is durable.
    pub durable: u64,
    /// Counter of the newest acknowledgement that may be given (rule L1).
    pub counter: u64,
    /// Highest counter that was handed to a commit record, durable or not.
    pub counter_given: u64,
    /// A source has opened the group since the journal was opened: counters go on.
    pub is_greeted: bool,
    /// Sets up to this one are on the disks, durably. Changed by apply.
    pub applied: u64,
    /// What of `applied` is durable in the journal itself (rules J4 and J6).
    pub applied_durable: u64,
    /// The phase of the session; none until a source has opened one in this process.
    pub phase: Option<u64>,
    /// Undo records by generation, in the order in which they were made.
    pub undo: BTreeMap<u64, Vec<UndoPlace>>,
    /// Grows with each undo record: a reader that sees no change need not look again (rule J2).
    pub undo_version: u64,
    /// Indexes of closed segments, as far as they are made.
    pub indexes: BTreeMap<SegmentId, Arc<SegmentIndex>>,
    /// Grows when segments go: a reader that lost one looks again where its content is now.
    pub layout: u64,
    /// Generations up to this one are about to go, or to stand in other segments: who wants to read there waits. Changed by
    /// who holds the undo.
    pub closed_through: Option<u64>,
    /// How often an index was made in this process.
    pub index_builds: BTreeMap<SegmentId, u32>,
    /// Catching up has written to the disks since their last sync.
    pub bulk_unsynced: bool,
    /// The record that ends the catching-up is being written: no more content for it is taken.
    pub bulk_closing: bool,
    /// Segments that are there.
    pub segments: BTreeMap<SegmentId, SegmentInfo>,
    /// Bytes of the open segments that are durable, for what vouches for them (rule J16).
    pub synced: BTreeMap<SegmentId, u64>,
    /// What `synced` was when it was last looked at for idleness.
    pub synced_before: BTreeMap<SegmentId, u64>,
    /// Readers, oldest first.
    pub pins: Vec<Arc<Pin>>,
    /// Why nothing is written any more.
    pub stopped: Option<String>,
    /// A damaged range was found, or a session began, since the source was told what is missing.
    pub is_damage_untold: bool,
    /// Bytes that may be appended before the free space is measured again.
    pub room: u64,
    /// Newest reading of the target's clock that a caller brought, microseconds since 1970.
    pub now_us: u64,
}

impl State {
    /// The phase that is open on disk, if any.
    #[must_use]
    pub fn open_phase(&self) -> Option<u64> {
        self.manifest.phases.last().filter(|range| range.last.is_none()).map(|range| range.phase)
    }

    /// Highest set that may count: while catching up, nothing after the set before it (REVIEW K6).
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.manifest.open_bulk().map_or(u64::MAX, |bulk| bulk.first - 1)
    }

    /// Lets complete sets count.
    pub fn advance(&mut self) {
        let limit = self.limit();
        let manifest = &self.manifest;
        self.sets.advance(limit, |number| manifest.phase_of(number));
    }

    /// What is durable of the segments that are appended to.
    #[must_use]
    pub fn open_segments(&self) -> Vec<SegmentBytes> {
        self.synced.iter().map(|(id, bytes)| SegmentBytes::of(*id, *bytes)).collect()
    }

    /// A complete set that is still in redo.
    #[must_use]
    pub fn set(&self, number: u64) -> Option<&CompleteSet> {
        self.sets.complete().get(&number)
    }

    /// The undo records of a segment.
    pub fn undo_of(&self, segment: SegmentId) -> &[UndoPlace] {
        let places = self.undo.get(&segment.generation).map_or(&[][..], Vec::as_slice);
        let from = places.partition_point(|place| place.index < segment.index);
        let to = places.partition_point(|place| place.index <= segment.index);
        &places[from..to]
    }

    /// Runs of the sets from `first` through `last` that stand in certain segments, with their sets, oldest set first.
    pub fn runs_in(&self, is_meant: impl Fn(SegmentId) -> bool, first: u64, last: u64) -> Vec<(u64, RedoRun)> {
        let sets = self.sets.complete().range(first.min(last)..=last);
        sets.flat_map(|(number, set)| set.runs.iter().map(|run| (*number, *run)))
            .filter(|(_, run)| is_meant(run.segment))
            .collect()
    }

    /// Bytes of all segments and indexes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let indexes: u64 = self.indexes.values().map(|index| index.bytes()).sum();
        self.segments.values().map(|segment| segment.bytes).sum::<u64>() + indexes
    }
}
