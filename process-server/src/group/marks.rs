//! Write-intent marks in the life of a group: writes that wait for theirs, commits, and when a region may be unmarked.
//!
//! A region is unmarked when all of this holds (rule S7): nothing in it is dirty, suspect or on its way; no write to it
//! has been in flight since the watch began; every set that was open then is durably acknowledged; and its source disk
//! was flushed after that. Without the last, a loss of power takes the source back behind a target that nothing marks.
//!
//! A watch goes over the marks every few seconds, so they lag behind the acknowledgements by that and by the regions
//! that one watch looks at.

use std::collections::BTreeSet;
use std::time::Duration;

use blockio::{DirtyMap, LeafPool};
use proto::ids::{DiskIndex, Epoch};

use super::action::{Action, WriteId};
use super::catchup::CatchUpReason;
use super::core::{Disk, Group, LEAVES_MAX};
use super::void::Validity;
use crate::dirty::{Exact, Intent, Key, Run};
use crate::rules::Rule;

/// Regions that one watch looks at: 64 GiB, and some milliseconds of the group's thread. The next goes on behind them.
const WATCH_REGIONS_MAX: usize = 65_536;
/// Time before a commit that failed is tried again; twice as long after each failure.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest time between two tries, so that a volume that is back is soon noticed.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What is known of the disks at a start.
#[derive(Debug)]
pub struct Tracking {
    intent: Intent,
    dirty: Vec<Run>,
    suspect: Vec<Run>,
    reason: CatchUpReason,
}

impl Tracking {
    /// After a crash, a first start or any doubt: what is marked is compared.
    #[must_use]
    pub fn marked(intent: Intent, reason: CatchUpReason) -> Self {
        let mut suspect = Vec::new();
        let region_blocks = intent.layout().region_blocks();
        for disk in 0..intent.layout().disks() as u32 {
            let runs = intent.marked(DiskIndex(disk)).into_iter();
            suspect.extend(runs.map(|(region, count)| (disk, region * region_blocks, count * region_blocks)));
        }
        Self { intent, dirty: Vec::new(), suspect, reason }
    }

    /// After a clean stop: the record says more than the marks, which stay as they are (rule S10).
    #[must_use]
    pub fn exact(mut intent: Intent, exact: Exact) -> Self {
        if let Some(key) = exact.key() {
            intent.learn(key);
        }
        Self { intent, dirty: exact.dirty, suspect: exact.suspect, reason: CatchUpReason::SourceStart }
    }
}

/// The marks of a group and who waits for them.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) intent: Intent,
    /// Writes that are otherwise ready.
    waiting: Vec<WriteId>,
    /// After a failed commit: when it is tried again.
    retry_at: Option<Duration>,
    /// Time from the last failure to the next try.
    retry_after: Duration,
    /// What the marks are worth.
    pub(super) validity: Validity,
    /// The highest number of commits that the target may know of beside those of this start: that of the marks as they
    /// were found, and what it has said (REVIEW W6).
    marks_known: u64,
    /// The target has opened the group in this start: from then on it may know of this start's commits.
    is_known: bool,
    watch: Watch,
    /// Disk and region at which the next watch goes on.
    next: (u32, u64),
    unmarked: u64,
}

/// A pass over the marks.
#[derive(Debug)]
enum Watch {
    /// The next one begins at this time.
    Idle(Duration),
    /// What was written before is in sets up to this epoch, and in the bitmaps.
    Watching(Epoch),
    /// The source disks of these regions are being flushed.
    Flushing(u64, Vec<(DiskIndex, u64)>),
}

impl Tracked {
    /// The marks at a start; what they say about the blocks goes to the disks.
    pub(super) fn new(tracking: Tracking, disks: &mut [Disk]) -> (Self, CatchUpReason) {
        let Tracking { mut intent, dirty, suspect, reason } = tracking;
        intent.wait_for_target();
        for (runs, map) in [(dirty, Disk::dirty_mut as fn(&mut Disk) -> &mut DirtyMap), (suspect, Disk::suspect_mut)] {
            for (disk, block, blocks) in runs {
                let disk = &mut disks[disk as usize];
                let end = (block + blocks).min(disk.blocks);
                if block < end {
                    map(disk).set(block, end - block);
                }
            }
        }
        let watch = Watch::Idle(Duration::ZERO);
        let tracked = Self {
            marks_known: intent.committed(),
            is_known: false,
            intent,
            waiting: Vec::new(),
            retry_at: None,
            retry_after: RETRY_MIN,
            validity: Validity::new(),
            watch,
            next: (0, 0),
            unmarked: 0,
        };
        (tracked, reason)
    }

    /// Whether marks can't be made durable at the moment.
    pub(super) fn is_failing(&self) -> bool {
        self.retry_at.is_some()
    }

    /// Whether a write waits for marks.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Group {
    /// Submits a write that waits for nothing else, once its regions are marked durably.
    pub(super) fn submit_when_marked(&mut self, id: WriteId) {
        if self.is_marked(id) {
            self.actions.push_back(Action::Submit(id));
        } else {
            self.wait_for_mark(id);
        }
    }

    /// Whether a write may be submitted as far as its marks are concerned.
    pub(super) fn is_marked(&self, id: WriteId) -> bool {
        if !Rule::MarksWait.holds() || self.tracked.validity.is_void() {
            return true;
        }
        let write = self.writes.at(id);
        self.tracked.intent.covers(write.disk, write.block, write.blocks)
    }

    /// A write that would be submitted but for its marks waits for them.
    pub(super) fn wait_for_mark(&mut self, id: WriteId) {
        self.tracked.waiting.push(id);
    }

    /// The pages of the commit under way are durable, or at least one could not be made so.
    pub fn marks_committed(&mut self, ok: bool) {
        self.tracked.intent.commit_ended(ok);
        if !ok {
            self.tracked.retry_at = Some(self.now.mono + self.tracked.retry_after);
            self.tracked.retry_after = (self.tracked.retry_after * 2).min(RETRY_MAX);
            return;
        }
        self.tracked.retry_at = None;
        self.tracked.retry_after = RETRY_MIN;
        self.settle_validity();
        self.release_waiting();
    }

    /// Submits the writes that no longer have to wait for marks.
    pub(super) fn release_waiting(&mut self) {
        for id in std::mem::take(&mut self.tracked.waiting) {
            self.submit_when_marked(id);
        }
    }

    /// Begins what is due: a commit, a watch, the flush at its end.
    pub(super) fn pump_marks(&mut self) {
        self.pump_watch();
        self.pump_validity();
        if self.tracked.retry_at.is_some_and(|at| self.now.mono < at) {
            return;
        }
        if let Some(commit) = self.tracked.intent.begin_commit() {
            self.actions.push_back(Action::CommitMarks(commit));
        }
    }

    /// What the target acknowledged is known to the marks before anything is unmarked on its strength (rule L1).
    pub(super) fn learn_key(&mut self) {
        if let Some(lineage) = self.lineage {
            self.tracked.intent.learn(Key { lineage, counter: self.counter });
        }
    }

    /// Whether the target has content that this source has forgotten: it has seen later marks than these (REVIEW W6).
    /// Where no acknowledgement is known, nothing was ever unmarked, and all is compared anyway.
    pub(super) fn is_behind(&mut self, marks: u64) -> bool {
        let tracked = &mut self.tracked;
        let of_this_start = if tracked.is_known { tracked.intent.committed() } else { 0 };
        let known = tracked.marks_known.max(of_this_start);
        tracked.is_known = true;
        tracked.marks_known = known.max(marks);
        let is_behind = tracked.intent.key().is_some() && marks > known && Rule::OldMarksAreDoubt.holds();
        if is_behind {
            tracked.intent.doubt_below(marks);
        } else {
            tracked.intent.target_is_heard();
            tracked.intent.number_above(marks);
        }
        is_behind
    }

    /// Everything is in doubt: all regions are marked, durably before anything that follows counts (rule S12), and
    /// compared.
    pub(super) fn doubt_everything(&mut self) {
        self.tracked.intent.doubt();
        for disk in &mut self.disks {
            disk.suspect.set_all();
        }
        self.restart_watch();
    }

    /// Whether the target must not be told to go on yet: once it has, its counter may rise above what the marks on the
    /// state volume know, and a crash would forget the doubt. While they can't be written the target is asked for a note.
    pub(super) fn doubt_is_pending(&self) -> bool {
        let is_pending = self.tracked.intent.is_in_doubt() && !self.tracked.is_failing();
        is_pending && Rule::DoubtIsDurableFirst.holds()
    }

    /// What was dirty has become part of a set: a watch that has looked at the open sets before must begin anew.
    pub(super) fn restart_watch(&mut self) {
        self.tracked.watch = Watch::Idle(self.now.mono);
    }

    /// A watch has ended, or there is nothing to watch for: the next is due after a while.
    fn rest_watch(&mut self) {
        self.tracked.watch = Watch::Idle(self.now.mono + self.options.watch_interval);
    }

    fn pump_watch(&mut self) {
        match self.tracked.watch {
            Watch::Idle(at) => {
                let may_unmark = self.tracked.validity.is_good() && !self.tracked.intent.is_in_doubt();
                let is_due = self.now.mono >= at && self.peer.is_open() && may_unmark;
                match is_due && self.tracked.intent.any() {
                    true => self.begin_watch(),
                    // All marks were looked at: not again at the next turn.
                    false if is_due => self.rest_watch(),
                    false => {}
                }
            }
            Watch::Watching(epoch) => {
                let is_acknowledged =
                    self.queue.iter().all(|queued| queued.set.epoch().0 > epoch.0 || queued.set.is_empty());
                if is_acknowledged || !Rule::AcknowledgedBeforeUnmark.holds() {
                    self.flush_resting();
                }
            }
            Watch::Flushing(..) => {}
        }
    }

    fn begin_watch(&mut self) {
        let Self { writes, tracked, .. } = self;
        tracked.intent.begin_watch();
        for write in writes.iter().filter(|_| Rule::InFlightKeepsMarks.holds()) {
            tracked.intent.want(write.disk, write.block, write.blocks);
        }
        tracked.watch = Watch::Watching(self.epochs.current());
    }

    /// Flushes the disks of the regions that could be unmarked.
    fn flush_resting(&mut self) {
        let travelling = self.travelling_regions();
        let mut resting = Vec::new();
        for _ in 0..WATCH_REGIONS_MAX {
            let Some((disk, region)) = self.next_at_rest(self.tracked.next) else {
                self.tracked.next = (0, 0);
                break;
            };
            self.tracked.next = (disk.0, region + 1);
            if !self.is_busy(disk, region, &travelling) && !self.is_flush_failing(disk) {
                resting.push((disk, region));
            }
        }
        if resting.is_empty() {
            self.rest_watch();
            return;
        }
        let mut disks: Vec<DiskIndex> = resting.iter().map(|(disk, _)| *disk).collect();
        disks.dedup();
        if !Rule::FlushBeforeUnmark.holds() {
            self.tracked.watch = Watch::Flushing(0, resting);
            return self.watched_disks_flushed(0, true);
        }
        let id = self.flush_disks(disks);
        self.tracked.watch = Watch::Flushing(id, resting);
    }

    /// Disks have been flushed; `ok` is false when one could not be. Is it what a watch waited for?
    pub(super) fn watched_disks_flushed(&mut self, id: u64, ok: bool) {
        match &mut self.tracked.watch {
            Watch::Flushing(expected, resting) if *expected == id => {
                let resting = std::mem::take(resting);
                self.rest_watch();
                let travelling = self.travelling_regions();
                for (disk, region) in resting {
                    if ok && self.tracked.intent.is_at_rest(disk, region) && !self.is_busy(disk, region, &travelling) {
                        self.tracked.intent.unmark(disk, region);
                        self.tracked.unmarked += 1;
                    }
                }
            }
            // A watch that was given up.
            _ => {}
        }
    }

    /// How many regions were unmarked since the start.
    #[must_use]
    pub fn regions_unmarked(&self) -> u64 {
        self.tracked.unmarked
    }

    /// The next region at rest from a place on, over all disks.
    fn next_at_rest(&self, (disk, region): (u32, u64)) -> Option<(DiskIndex, u64)> {
        let mut from = region;
        (disk..self.disks.len() as u32).map(DiskIndex).find_map(|disk| {
            let found = self.tracked.intent.next_at_rest(disk, std::mem::take(&mut from))?;
            Some((disk, found))
        })
    }

    /// Regions of which a part on its way has something.
    fn travelling_regions(&self) -> BTreeSet<(u32, u64)> {
        let region_blocks = self.tracked.intent.layout().region_blocks();
        let disks = 0..self.disks.len() as u32;
        let runs =
            disks.flat_map(|disk| self.bulk_runs(DiskIndex(disk)).map(move |(_, block, blocks)| (disk, block, blocks)));
        runs.flat_map(|(disk, block, blocks)| {
            (block / region_blocks..=(block + blocks - 1) / region_blocks).map(move |region| (disk, region))
        })
        .collect()
    }

    /// Whether something in the region is not on the target, as far as the bitmaps and the parts on their way know.
    fn is_busy(&self, disk: DiskIndex, region: u64, travelling: &BTreeSet<(u32, u64)>) -> bool {
        if !Rule::BusyKeepsMarks.holds() {
            return false;
        }
        let state = &self.disks[disk.0 as usize];
        let region_blocks = self.tracked.intent.layout().region_blocks();
        let first = region * region_blocks;
        let count = region_blocks.min(state.blocks - first);
        let maps = [&state.dirty, &state.suspect, &state.unreadable];
        maps.iter().any(|map| map.any(first, count)) || travelling.contains(&(disk.0, region))
    }

    /// What the target lacks, block by block, and what is not known: for the record of a clean stop. A disk that can't be
    /// flushed may have lost anything written since it could, and nothing but the marks says so (REVIEW W10): that is not known.
    #[must_use]
    pub fn exact(&self) -> (Vec<Run>, Vec<Run>) {
        let pool = LeafPool::new(LEAVES_MAX);
        let (mut dirty, mut suspect) = (Vec::new(), Vec::new());
        for (index, disk) in (0u32..).zip(&self.disks) {
            let mut all = DirtyMap::new(disk.spec.size, &pool);
            all.merge_from(&disk.dirty);
            all.merge_from(&disk.unreadable);
            let mut doubted = DirtyMap::new(disk.spec.size, &pool);
            doubted.merge_from(&disk.suspect);
            let fallen = self.doubtful_since_flush(DiskIndex(index));
            for (block, blocks) in fallen.filter(|_| Rule::ExactHasUnflushed.holds()) {
                doubted.set(block, blocks);
            }
            let in_sets = self.queue.iter().flat_map(|queued| queued.set.block_runs());
            for (_, block, blocks) in in_sets.filter(|(on, _, _)| on.0 == index && Rule::ExactHasSets.holds()) {
                all.set(block, blocks);
            }
            for (compared, block, blocks) in self.bulk_runs(DiskIndex(index)) {
                if compared { doubted.set(block, blocks) } else { all.set(block, blocks) }
            }
            dirty.extend(runs(&all).map(|(block, blocks)| (index, block, blocks)));
            suspect.extend(runs(&doubted).map(|(block, blocks)| (index, block, blocks)));
        }
        (dirty, suspect)
    }

    /// The newest acknowledgement of the target.
    #[must_use]
    pub fn key(&self) -> Option<Key> {
        self.tracked.intent.key()
    }

    /// Number of the newest durable commit of the marks, once none is under way and none is due.
    #[must_use]
    pub fn marks_settled(&self) -> Option<u64> {
        let intent = &self.tracked.intent;
        let is_settled = !intent.is_committing() && !intent.has_changes() && self.tracked.validity.is_good();
        is_settled.then(|| intent.committed())
    }
}

fn runs(map: &DirtyMap) -> impl Iterator<Item = (u64, u64)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let (block, blocks) = map.next_run(from, u64::MAX)?;
        from = block + blocks;
        Some((block, blocks))
    })
}
