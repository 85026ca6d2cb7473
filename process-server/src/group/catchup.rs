//! Catching up: only the bitmap grows, rounds send what is dirty, a last cut makes the rest one consistent set.
//!
//! The same mechanism serves the first synchronisation (all bits set), a restart and a link that was too slow. A round
//! takes dirty blocks from the bitmap into parts; a block is not sent again before its part is acknowledged, since a
//! round ends only then (S8, K3). A block's bit is cleared before it is read, and a write sets it on arrival and again
//! on completion, so a read that raced a write is repeated in the next round (S6).

use blockio::{BLOCK, DirtyMap, SECTOR};
use proto::frame::{Bases, RawContent, RawExtent};
use proto::ids::DiskIndex;
use proto::replication::{BeginBulk, PartBegin, PartKind};

use super::action::{Action, ReadOutcome};
use super::core::{Disk, Group, Mode};
use super::limits::{REST_SHARE, ROUND_LEAVES, ROUND_OF};
use super::queue::QueuedSet;
use super::rounds::{RoundReport, Running};
use super::sending::{COMPRESSION, ReadPurpose};
use crate::changeset::{Captured, ChangeSet};
use crate::rules::Rule;
use crate::send::{PartJob, ToLink};

/// Blocks of holes in one part at most: 4 GiB, a bound on what one acknowledgement covers.
const BULK_PART_BLOCKS_MAX: u64 = (4 << 30) / BLOCK;
/// Extents of one part at most.
const BULK_PART_RUNS_MAX: usize = 4096;
/// Blocks of one comparison at most: 512 MiB of holes, whose answer is a kilobyte.
const COMPARE_BLOCKS_MAX: u64 = (512 << 20) / BLOCK;
/// Runs of one comparison at most, as many as its message takes.
const COMPARE_RUNS_MAX: usize = 256;
/// Parts of a round that are read, sent or unacknowledged at the same time: 32 MiB of buffers.
const BULK_PARTS_IN_FLIGHT: usize = 8;
/// Comparisons that are read, digested or unanswered at the same time. Twice as many: the target compares several
/// together, and the next are read and digested meanwhile. Those that were digested hold no buffers.
const COMPARES_IN_FLIGHT: usize = 16;
/// Blocks of one read: 1 MiB.
const READ_BLOCKS_MAX: u64 = (1 << 20) / BLOCK;
/// Sectors of one zero extent on the wire at most: 64 MiB.
const ZERO_SECTORS_MAX: u64 = (64 << 20) / SECTOR;

/// Why the group does not stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUpReason {
    /// The agent has started: it does not know what the target lacks.
    SourceStart,
    /// The agent ended without a clean stop: what it was writing is compared.
    SourceCrash,
    /// Nothing is known of the disks, or they may have been changed behind the agent's back: all is compared.
    SourceDoubt,
    /// Captured data had reached the memory budget.
    MemoryBudget,
    /// Captured data had reached the memory budget, and the spool was full.
    SpoolFull,
    /// The cache volume failed: the spool could not be written, or what lay there could not be read.
    CacheVolume,
    /// The target is not the one that was replicated to, or has lost sets that it had acknowledged.
    TargetChanged,
    /// The marks of an earlier start are void: nothing is known of the disks.
    MarksVoid,
    /// Captured data was damaged in memory and is read again from the disk.
    DamagedCapture,
}

impl CatchUpReason {
    /// The reason code that status shows.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::SourceStart => "source-start",
            Self::SourceCrash => "source-crash",
            Self::SourceDoubt => "source-doubt",
            Self::MemoryBudget => "memory-budget",
            Self::SpoolFull => "spool-full",
            Self::CacheVolume => "cache-volume",
            Self::TargetChanged => "target-changed",
            Self::MarksVoid => "marks-void",
            Self::DamagedCapture => "damaged-capture",
        }
    }

    /// What became of sets that were dropped for it, in words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::MemoryBudget => "captured data had reached the memory budget",
            Self::SpoolFull => "captured data had reached the memory budget and the size of the spool",
            Self::CacheVolume => "the cache volume failed",
            _ => self.code(),
        }
    }
}

/// Where a catching-up stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Between rounds: cut, or another round?
    Deciding,
    /// The target has been asked to open a bulk generation.
    BulkAsked,
    /// Comparing; the next suspect block to look at is this one.
    Comparing { disk: u32, block: u64 },
    /// Sending; the next dirty block to look at is this one.
    Round { disk: u32, block: u64 },
}

/// One catching-up from its cause to its last cut.
#[derive(Debug)]
pub(super) struct CatchUp {
    pub(super) reason: CatchUpReason,
    pub(super) step: Step,
    pub(super) rounds: u32,
    /// Dirty bytes when the round that ran last began.
    round_bytes: Option<u64>,
    /// The round that runs.
    running: Option<Running>,
}

/// What becomes of a part's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BulkKind {
    /// It is sent.
    Copy,
    /// The target is asked whether it has the same.
    Compare,
}

/// Part of a round, from the bitmap until its acknowledgement.
#[derive(Debug)]
pub(super) struct BulkPart {
    pub(super) kind: BulkKind,
    /// What goes back to the bitmap when the session ends.
    runs: Vec<(DiskIndex, u64, u64)>,
    reads_left: u32,
    data_bytes: u64,
    blocks: u64,
    extents: Vec<RawExtent>,
    pub(super) handed: bool,
    /// What the target was asked to compare: disk, first sector, sectors.
    pub(super) compared: Vec<(DiskIndex, u64, u64)>,
}

impl CatchUp {
    pub(super) fn new(reason: CatchUpReason) -> Self {
        Self { reason, step: Step::Deciding, rounds: 0, round_bytes: None, running: None }
    }
}

impl Group {
    /// What was taken for parts that are not acknowledged goes back to the bitmap.
    pub(super) fn return_bulk(&mut self) {
        for part in std::mem::take(&mut self.bulk).into_values() {
            for (disk, block, blocks) in part.runs {
                let disk = &mut self.disks[disk.0 as usize];
                let (map, rule) = match part.kind {
                    BulkKind::Copy => (&mut disk.dirty, Rule::TravellingReturns),
                    BulkKind::Compare => (&mut disk.suspect, Rule::SuspectsReturn),
                };
                if rule.holds() {
                    map.set(block, blocks);
                }
            }
        }
        if let Mode::CatchingUp(catch_up) = &mut self.mode {
            catch_up.step = Step::Deciding;
        }
    }

    /// Goes on with the catching-up as far as the target and the window allow.
    pub(super) fn pump_catch_up(&mut self) {
        // Sets that were kept go first: bulk data would be overtaken by their older content (J4).
        // A block that is being mended could be overtaken by the repair (docs/verify.md).
        if !self.peer.is_open() || self.queue.len() > 0 || !self.mends.is_empty() {
            return;
        }
        loop {
            let Mode::CatchingUp(catch_up) = &self.mode else { return };
            match catch_up.step {
                Step::Deciding => self.decide(),
                Step::BulkAsked => return,
                Step::Comparing { .. } => {
                    if !self.pump_round(BulkKind::Compare) {
                        return;
                    }
                }
                Step::Round { .. } => {
                    if !self.pump_round(BulkKind::Copy) {
                        return;
                    }
                }
            }
        }
    }

    /// Between rounds: the rest becomes a set if it fits the budget with what may be written meanwhile, or if rounds
    /// no longer shrink (S11, S18); otherwise another round.
    fn decide(&mut self) {
        if self.has_suspects() {
            return self.begin_comparing();
        }
        let rest = self.dirty_bytes();
        let Mode::CatchingUp(catch_up) = &mut self.mode else { return };
        // What was dirtied while the last round was sent, per byte sent: the rest will meet the same.
        let growth = catch_up.round_bytes.map_or(0.0, |sent| rest as f64 / sent.max(1) as f64);
        let fits = rest as f64 * (1.0 + growth) <= (self.options.memory_bytes / REST_SHARE) as f64;
        let stuck = catch_up.round_bytes.is_some_and(|before| rest > before / ROUND_OF * ROUND_LEAVES);
        if fits || stuck {
            self.last_cut_of_catch_up();
        } else if self.peer.bulk_begun() {
            catch_up.rounds += 1;
            catch_up.round_bytes = Some(rest);
            catch_up.running = Some(Running {
                began_bytes: rest,
                written_before: self.counters.captured_bytes,
                sent_before: self.counters.sent_bytes,
                at: self.now.mono,
            });
            catch_up.step = Step::Round { disk: 0, block: 0 };
        } else {
            catch_up.step = Step::BulkAsked;
            let message = BeginBulk { group: self.options.name.clone(), phase: self.phase.0 };
            self.actions.push_back(Action::Link(ToLink::BeginBulk(message)));
        }
    }

    /// The rest becomes one set, held on disk by copy before write, and the group captures again.
    fn last_cut_of_catch_up(&mut self) {
        self.restart_watch();
        let mark = self.cut_mark();
        let ended = self.epochs.cut();
        let mut set = ChangeSet::new(ended, self.disks.len());
        for (index, disk) in self.disks.iter_mut().enumerate() {
            let mut from = 0;
            while let Some((block, blocks)) = disk.dirty.next_run(from, disk.blocks) {
                set.on_disk(DiskIndex(index as u32), block, blocks, disk.sectors);
                disk.held.set(block, blocks);
                from = block + blocks;
            }
            disk.dirty.clear_all();
        }
        set.cut(mark);
        let mut queued = QueuedSet::new(set);
        queued.closes_bulk = self.peer.bulk_open();
        queued.is_rest = true;
        self.queue.push(queued);
        self.mode = Mode::Streaming;
        self.last_cut = self.now.mono;
        self.new_open_set();
        self.cut_for_points();
        self.seal();
    }

    /// Fills the window with parts. True: the round has ended and the next step is to be decided.
    fn pump_round(&mut self, kind: BulkKind) -> bool {
        let in_flight_max = match kind {
            BulkKind::Copy => BULK_PARTS_IN_FLIGHT,
            BulkKind::Compare => COMPARES_IN_FLIGHT,
        };
        while self.bulk.len() < in_flight_max {
            let id = self.bulk_parts_used;
            let part = BulkPart {
                kind,
                runs: Vec::new(),
                reads_left: 0,
                data_bytes: 0,
                blocks: 0,
                extents: Vec::new(),
                handed: false,
                compared: Vec::new(),
            };
            self.bulk.insert(id, part);
            self.fill_part(id);
            if self.bulk.get(&id).is_some_and(|part| part.runs.is_empty()) {
                self.bulk.remove(&id);
                break;
            }
            self.bulk_parts_used += 1;
        }
        if !self.bulk.is_empty() {
            return false;
        }
        let Mode::CatchingUp(catch_up) = &mut self.mode else { return false };
        catch_up.step = Step::Deciding;
        if kind == BulkKind::Copy {
            self.round_ended();
        }
        true
    }

    /// A round has ended: what it came to is told, for status and the log.
    fn round_ended(&mut self) {
        let left_bytes = self.dirty_bytes();
        let Mode::CatchingUp(catch_up) = &mut self.mode else { return };
        let Some(running) = catch_up.running.take() else { return };
        let report = RoundReport {
            round: catch_up.rounds,
            began_bytes: running.began_bytes,
            left_bytes,
            written_bytes: self.counters.captured_bytes - running.written_before,
            sent_bytes: self.counters.sent_bytes - running.sent_before,
            took: self.now.mono.saturating_sub(running.at),
        };
        self.progress.round_ended(report);
        self.actions.push_back(Action::RoundEnded(report));
    }

    /// Takes dirty blocks into a part, clearing their bits before they are read, until it is full or the round ends.
    fn fill_part(&mut self, id: u32) {
        loop {
            let part = &self.bulk[&id];
            let (blocks_max, runs_max) = match part.kind {
                BulkKind::Copy => (BULK_PART_BLOCKS_MAX, BULK_PART_RUNS_MAX),
                BulkKind::Compare => (COMPARE_BLOCKS_MAX, COMPARE_RUNS_MAX),
            };
            let full =
                part.data_bytes >= self.options.part_bytes || part.blocks >= blocks_max || part.runs.len() >= runs_max;
            if full {
                return;
            }
            let Some((disk, block, blocks)) = self.take_next() else { return };
            let sectors_of_disk = self.disks[disk.0 as usize].sectors;
            let sector = block * (BLOCK / SECTOR);
            let sectors = (blocks * (BLOCK / SECTOR)).min(sectors_of_disk - sector);
            let part = self.bulk.get_mut(&id).expect("the part is being filled");
            part.runs.push((disk, block, blocks));
            part.blocks += blocks;
            part.data_bytes += sectors * SECTOR;
            part.reads_left += 1;
            self.start_read(ReadPurpose::Bulk(id), disk, sector, sectors, true);
        }
    }

    /// The next run of blocks of the round, dirty or suspect, at most 1 MiB and not across a multiple of 1 MiB.
    fn take_next(&mut self) -> Option<(DiskIndex, u64, u64)> {
        let Mode::CatchingUp(CatchUp { step, .. }) = &mut self.mode else { return None };
        let (disk, block, map) = match step {
            Step::Round { disk, block } => (disk, block, Disk::dirty_mut as fn(&mut Disk) -> &mut DirtyMap),
            Step::Comparing { disk, block } => (disk, block, Disk::suspect_mut as _),
            Step::Deciding | Step::BulkAsked => return None,
        };
        while let Some(state) = self.disks.get_mut(*disk as usize) {
            let map = map(state);
            if let Some((first, count)) = map.next_run(*block, READ_BLOCKS_MAX) {
                let end = (first + count).min((first / READ_BLOCKS_MAX + 1) * READ_BLOCKS_MAX);
                map.clear(first, end - first);
                *block = end;
                return Some((DiskIndex(*disk), first, end - first));
            }
            *disk += 1;
            *block = 0;
        }
        None
    }

    /// A read for a part of a round has ended.
    pub(super) fn bulk_read_done(&mut self, id: u32, disk: DiskIndex, sector: u64, sectors: u64, outcome: ReadOutcome) {
        let Some(part) = self.bulk.get_mut(&id) else { return };
        part.reads_left -= 1;
        let kind = part.kind;
        let content = match outcome {
            ReadOutcome::Data(bytes) => Captured::checksummed(bytes).to_raw(),
            ReadOutcome::Hole => Some(RawContent::Zero { sectors: sectors as u32 }),
            ReadOutcome::Failed if kind == BulkKind::Compare => None,
            ReadOutcome::Failed => Some(RawContent::Unreadable { sectors: sectors as u32 }),
        };
        let is_data = matches!(content, Some(RawContent::Data { .. }));
        let is_lost = content.is_none();
        part.extents.extend(content.map(|content| RawExtent { disk, sector, content }));
        if !is_data {
            // What is not there costs nothing to send: the part takes more.
            part.data_bytes -= (sectors * SECTOR).min(part.data_bytes);
            self.fill_part(id);
        }
        if is_lost {
            self.is_not_comparable(disk, sector, sectors);
        }
        let part = self.bulk.get_mut(&id).expect("the part is still there");
        if part.reads_left > 0 || part.handed {
            return;
        }
        part.handed = true;
        let mut extents = std::mem::take(&mut part.extents);
        extents.sort_unstable_by_key(|extent| (extent.disk.0, extent.sector));
        let extents = join_zeroes(extents);
        if kind == BulkKind::Compare {
            return self.ask_to_compare(id, extents);
        }
        let begin = PartBegin {
            group: self.options.name.clone(),
            phase: self.phase.0,
            kind: PartKind::Bulk as i32,
            number: 0,
            part: id,
            marks: self.tracked.intent.committed(),
        };
        // From here on the target may have it, or what was there.
        for extent in &extents {
            self.recent.forget(extent.disk, extent.sector, extent.sectors());
        }
        let (bases, keep) = (Bases::default(), self.recent.keep_of_bulk());
        let job = PartJob { begin, extents, level: COMPRESSION, bases, keep };
        self.actions.push_back(Action::Link(ToLink::Part(job)));
    }

    /// A part of a round is durable on the target.
    pub(super) fn bulk_durable(&mut self, id: u32) {
        if self.bulk.get(&id).is_some_and(|part| part.kind == BulkKind::Copy && part.handed) {
            self.bulk.remove(&id);
            self.recent.bulk_durable(id);
        }
    }

    /// A read for a part has been split into more.
    pub(super) fn bulk_reads_added(&mut self, id: u32, more: u32) {
        if let Some(part) = self.bulk.get_mut(&id) {
            part.reads_left += more;
        }
    }

    /// The blocks of one disk that are on their way, and whether they are compared.
    pub(super) fn bulk_runs(&self, disk: DiskIndex) -> impl Iterator<Item = (bool, u64, u64)> {
        let all = self.bulk.values().flat_map(|part| part.runs.iter().map(move |run| (part.kind, run)));
        all.filter(move |(_, (on, _, _))| *on == disk)
            .map(|(kind, (_, block, blocks))| (kind == BulkKind::Compare, *block, *blocks))
    }

    /// Bytes of one disk taken from the bitmap and not yet acknowledged.
    pub(super) fn bulk_bytes_of(&self, disk: u32) -> u64 {
        let runs = self.bulk.values().flat_map(|part| &part.runs);
        runs.filter(|(on, _, _)| on.0 == disk).map(|(_, _, blocks)| blocks * BLOCK).sum()
    }

    /// Bytes taken from the bitmap and not yet acknowledged.
    pub(super) fn bulk_bytes(&self) -> u64 {
        self.bulk.values().map(|part| part.blocks * BLOCK).sum()
    }
}

/// Joins neighbouring zero extents, up to the largest the wire takes.
fn join_zeroes(extents: Vec<RawExtent>) -> Vec<RawExtent> {
    let mut joined: Vec<RawExtent> = Vec::with_capacity(extents.len());
    for extent in extents {
        if let (Some(last), RawContent::Zero { sectors: more }) = (joined.last_mut(), &extent.content)
            && let RawContent::Zero { sectors } = &mut last.content
            && last.disk == extent.disk
            && last.sector + u64::from(*sectors) == extent.sector
            && u64::from(*sectors) + u64::from(*more) <= ZERO_SECTORS_MAX
        {
            *sectors += more;
            continue;
        }
        joined.push(extent);
    }
    joined
}
