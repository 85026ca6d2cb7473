//! The world around the core: a guest, disks whose operations take time and fail, a state volume, a cache volume, a link
//! that drops, and starts after clean stops, kills and losses of power.

mod cache;
mod ends;
mod images;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use blockio::SECTOR;
use bytes::Bytes;
use proto::frame::{Compression, Encoder, Parcel};
use proto::ids::DiskIndex;
use proto::replication::{DiskSpec, PointKind};
use proto::time::Timestamp;

pub(super) use images::Broken;
use images::{SourceImage, Volume};

use super::super::*;
use super::judge::{Content, Judge};
use super::target::{Image, Target};
use super::verify::{Verified, Verifying};
use crate::control::GroupState;
use crate::dirty::{Exact, Intent, Layout, PAGE_BYTES};
use crate::send::{PartJob, ToLink, frames_of};

pub(super) const DISKS: u32 = 2;
pub(super) const SECTORS: u64 = 8 * 24 + 3;
/// Blocks of a region of marks: 7 regions on each disk.
const REGION_BLOCKS: u64 = 4;

/// A small generator of its own: the tests must not change with a library's.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64, Steele, Lea and Flood 2014.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

#[derive(Debug)]
pub(super) enum DiskOp {
    Write {
        id: WriteId,
        landed: u64,
        lands: Vec<Content>,
        disk: u32,
        sector: u64,
    },
    /// Pages of marks: those that were written, then the sync.
    Marks {
        pages: Vec<(u32, Bytes)>,
        written: usize,
    },
    Flush {
        id: FlushOf,
        disks: Vec<u32>,
        seen: Vec<Vec<Content>>,
        /// How many flushes had begun.
        begun: u64,
    },
    Read {
        id: ReadId,
        disk: u32,
        sector: u64,
        sectors: u64,
        seen: Vec<Content>,
        may_be_hole: bool,
    },
}

/// Whose flush it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum FlushOf {
    Core(u64),
    Guest(FlushId),
}

#[derive(Debug)]
pub(super) struct Guest {
    epoch: u64,
    disk: u32,
    sector: u64,
    content: Vec<Content>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) random: Random,
    pub(super) group: Group,
    time_us: u64,
    pub(super) disks: Vec<Vec<Content>>,
    /// What the disks hold after a loss of power at the least.
    flushed: Vec<Vec<Content>>,
    /// The state volume: pages of marks, as written and as synced.
    marks: Vec<u8>,
    synced_marks: Vec<u8>,
    starts: u64,
    ops: Vec<DiskOp>,
    pub(super) cache: cache::Cache,
    pub(super) guest: BTreeMap<WriteId, Guest>,
    versions: u64,
    /// Number of cuts seen, which is the epoch the core counts from 1.
    judge: Judge,
    /// Epoch of each cut by its time.
    pub(super) link: VecDeque<ToLink>,
    link_up: bool,
    pub(super) target: Target,
    points: u64,
    fence_attempts: u32,
    lift_attempts: u32,
    asked: u64,
    answered: u64,
    /// Epochs that were cut while the machines were quiesced.
    quiesced: BTreeSet<u64>,
    /// One in this many disk operations fails, and links drop in proportion; 0: none do.
    faults: u64,
    /// An image of the target, taken a while ago.
    image: Option<Image>,
    unmarked: u64,
    /// Where the guest writes for a while.
    pub(super) hot: u64,
    /// Steps in which a crash is likely, since marks have just changed.
    just_marked: u32,
    /// Disks can't be read.
    pub(super) reads_fail: bool,
    /// Reads fail now and then, like all operations.
    reads_may_fail: bool,
    /// The guest pauses.
    quiet: bool,
    /// The link gets slow at times in this world, and whether it is.
    pub(super) slow: (bool, bool),
    /// Content of the target rots in this world.
    rots: bool,
    /// The state volume fails for whiles in this world, and either side is restored from an image.
    breaks: bool,
    volume: Volume,
    pub(super) verifying: Option<Verifying>,
    pub(super) verified: Verified,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        // In these the link gets slow at times, so that memory runs short; lives are longer.
        let overloaded = seed % 4 == 3;
        let breaks = seed % 4 == 2;
        let faults = match (breaks, overloaded) {
            (true, _) => 400,
            (_, true) => [0, 300, 1000][random.below(3) as usize],
            _ => [0, 60, 400][random.below(3) as usize],
        };
        let memory_bytes = match overloaded {
            true => [120_000, 240_000][random.below(2) as usize],
            false => [40_000, 90_000, 400_000][random.below(3) as usize],
        };
        let spool_bytes = [if overloaded { 1 << 20 } else { 0 }, 96 << 10, 1 << 20][random.below(3) as usize];
        let mut world = Self::of(random, memory_bytes, spool_bytes);
        if overloaded {
            world.until(|world| world.group.state() == GroupState::Streaming);
        }
        world.faults = faults;
        world.slow.0 = overloaded;
        world.breaks = breaks;
        world.rots = seed % 4 == 1;
        world.cache.fail(seed.is_multiple_of(3), seed % 3 < 2);
        if seed % 5 == 4 {
            // A handful of parcels.
            world.group.recent.keeps_at_most(3000);
        }
        world
    }

    /// A world without faults, where the group has these budgets.
    pub(super) fn calm(seed: u64, memory_bytes: u64, spool_bytes: u64) -> Self {
        Self::of(Random(seed), memory_bytes, spool_bytes)
    }

    fn of(mut random: Random, memory_bytes: u64, spool_bytes: u64) -> Self {
        let options = GroupOptions {
            name: "web".into(),
            disks: (0..DISKS)
                .map(|disk| DiskSpec { name: format!("d{disk}"), size: SECTORS * SECTOR, logical_block: 512 })
                .collect(),
            memory_bytes,
            spool_bytes,
            part_bytes: [4096, 16 << 10, 1 << 20][random.below(3) as usize],
            point_interval: Duration::from_millis(100),
            watch_interval: Duration::from_millis(20),
            source_start: 1,
            source_instance: [1; 16],
            fenced: false,
            fence_request: 0,
        };
        let now = Now { mono: Duration::ZERO, wall: Timestamp(1_000_000) };
        let mut judge = Judge::default();
        let disks: Vec<Vec<Content>> = (0..DISKS)
            .map(|disk| {
                (0..SECTORS)
                    .map(|sector| {
                        let content = if random.one_in(2) { 0 } else { 1_000_000_000 + sector };
                        judge.initial(disk, sector, content);
                        content
                    })
                    .collect()
            })
            .collect();
        let target = some_target(&mut random, &disks);
        let mut intent = Intent::unknown(layout());
        let marks = intent.whole();
        intent.whole_is_durable();
        Self {
            group: Group::new(options, Tracking::marked(intent, CatchUpReason::SourceDoubt), now),
            flushed: disks.clone(),
            synced_marks: marks.clone(),
            marks,
            starts: 1,
            random,
            time_us: 0,
            disks,
            ops: Vec::new(),
            cache: cache::Cache::new(spool_bytes),
            guest: BTreeMap::new(),
            versions: 0,
            judge,
            link: VecDeque::new(),
            link_up: false,
            target,
            points: 0,
            fence_attempts: 0,
            lift_attempts: 0,
            asked: 0,
            answered: 0,
            quiesced: BTreeSet::new(),
            faults: 0,
            image: None,
            unmarked: 0,
            hot: 0,
            just_marked: 0,
            reads_fail: false,
            reads_may_fail: true,
            quiet: false,
            slow: (false, false),
            rots: false,
            breaks: false,
            volume: Volume::default(),
            verifying: None,
            verified: Verified::default(),
        }
    }

    pub(super) fn restarts(&self) -> u64 {
        self.starts - 1
    }

    pub(super) fn unmarked(&self) -> u64 {
        self.unmarked + self.group.regions_unmarked()
    }

    pub(super) fn same_sectors(&self) -> u64 {
        self.target.same.0
    }

    pub(super) fn points_judged(&self) -> u64 {
        self.points
    }

    fn now(&self) -> Now {
        Now { mono: Duration::from_micros(self.time_us), wall: Timestamp(1_000_000 + self.time_us) }
    }

    pub(super) fn step(&mut self) {
        self.just_marked = self.just_marked.saturating_sub(1);
        if self.just_marked > 0 && self.faults > 0 && self.random.one_in(self.faults * 4) {
            self.restart();
        }
        if self.breaks && self.faults > 0 {
            self.break_something();
        }
        let may_turn = self.slow.1 || matches!(self.group.state(), GroupState::Streaming);
        if self.slow.0 && may_turn && self.random.one_in(if self.slow.1 { 300 } else { 40 }) {
            self.slow.1 = !self.slow.1;
        }
        if self.random.one_in(2) {
            self.cache_progress();
        }
        match self.random.below(20) {
            0 if self.random.one_in(20) => self.quiet = !self.quiet,
            0..=5 if !self.quiet => self.guest_writes(),
            6..=10 => self.disk_progress(),
            // Time passes, and with it the sets that wait become more.
            11..=13 if self.slow.1 && !self.random.one_in(20) => {
                self.time_us += self.random.below(8_000);
                self.guest_writes();
                self.disk_progress();
                self.disk_progress();
                self.cache_progress();
            }
            11..=13 => self.link_progress(),
            14 if self.rots && self.random.one_in(12) => self.target.mend(),
            14 => self.target.work(),
            _ if self.rots && self.random.one_in(3) => self.rot_or_verify(),
            15 | 16 => self.answer(),
            17 if self.faults > 0 && self.random.one_in(self.faults / 10) => self.restart(),
            17 => self.time_us += self.random.below(60_000),
            18 if self.faults > 0 && self.random.one_in(self.faults / 5) => self.drop_link(),
            18 if self.link_up && self.faults > 0 && self.random.one_in(self.faults / 5) => self.target.lose_group(),
            18 => self.raise_link(),
            _ if self.random.one_in(if self.slow.0 { 60 } else { 6 }) => {
                self.asked += 1;
                let label = self.random.one_in(2).then(|| format!("label-{}", self.asked));
                self.ask_for_point(label);
            }
            _ => {}
        }
        self.turn();
    }

    /// A point as an operator asks for it, or of machines that are quiesced, perhaps no longer.
    fn ask_for_point(&mut self, label: Option<String>) {
        let now = self.now();
        let asked = match self.random.below(3) {
            0 => PointAsked::App { frozen_until: now.mono + Duration::from_secs(1) },
            1 if self.random.one_in(4) => PointAsked::App { frozen_until: now.mono },
            _ => PointAsked::Crash,
        };
        let epoch = self.group.epochs.current().0;
        let is_cut = self.group.request_point(self.asked, label, asked, now);
        match asked {
            PointAsked::App { frozen_until } if frozen_until == now.mono => assert!(!is_cut, "nothing is quiesced"),
            PointAsked::App { .. } if is_cut => _ = self.quiesced.insert(epoch),
            _ => {}
        }
    }

    /// A while in which nothing crosses the link.
    pub(super) fn hold_the_link(&mut self) {
        for _ in 0..200 {
            self.disk_progress();
            self.time_us += 20_000;
            self.turn();
        }
    }

    /// Time passes, and the core acts.
    pub(super) fn passes(&mut self, us: u64) {
        self.time_us += us;
        self.turn();
    }

    /// No more faults: everything must reach the target, and the copy be identical.
    pub(super) fn settle(&mut self) {
        self.faults = 0;
        self.volume.mend();
        self.cache.heal();
        self.until(|world| {
            let idle = world.group.snapshot().backlog_bytes == 0 && world.guest.is_empty() && world.ops.is_empty();
            // A disk that could not be flushed may have lost what is not read again yet.
            let idle = idle && world.group.unreadable_bytes() == 0 && world.group.unflushable().is_none();
            let idle = idle && world.cache.is_idle();
            let is_quiet = world.link.is_empty() && world.target.answers.is_empty();
            let settled = idle && is_quiet && world.answered == world.asked;
            settled && world.group.state() == GroupState::Streaming
        });
        assert_eq!(self.group.state(), GroupState::Streaming, "{:?}", self.group.snapshot());
        assert_eq!(self.answered, self.asked, "every point that was asked for is answered");
        self.mend_all();
        self.compare();
    }

    /// A failback begins while guests write: they are refused from some moment on, and all from before is in the copy.
    pub(super) fn fail_back(&mut self) {
        self.faults = 0;
        self.volume.mend();
        self.cache.heal();
        self.raise_link();
        self.target.ask_fence();
        self.until(|world| {
            world.guest_writes();
            // A session that ended took the request with it; the target asks again in the next.
            if world.target.fenced.is_none() && world.random.one_in(200) {
                world.target.ask_fence();
            }
            world.target.fenced.is_some()
        });
        assert_eq!(self.group.state(), GroupState::Fenced);
        assert!(self.guest.is_empty(), "the fence is reported after the last write has ended");
        assert!(self.fence_attempts > 1, "a fence that was not durable does not count");
        self.compare();
    }

    /// The target cancels the failback; an earlier cancellation lifts nothing. The guest's writes are taken again.
    pub(super) fn cancel_failback(&mut self) {
        self.raise_link();
        self.target.cancel_failback(true);
        for _ in 0..100 {
            self.answer();
            self.time_us += 20_000;
            self.turn();
        }
        assert_eq!(self.group.state(), GroupState::Fenced, "another failback was cancelled, not this one");
        self.until(|world| {
            // The target says so in each session.
            if world.link_up && world.random.one_in(100) {
                world.target.cancel_failback(false);
            }
            world.group.state() == GroupState::Streaming
        });
        assert!(self.lift_attempts > 1, "a fence that could not be lifted durably holds, and is tried again");
        for _ in 0..50 {
            self.guest_writes();
            self.disk_progress();
            self.turn();
        }
        self.settle();
    }

    pub(super) fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..40_000 {
            self.disk_progress();
            self.cache_progress();
            self.link_progress();
            self.target.work();
            self.target.mend();
            self.answer();
            self.raise_link();
            self.time_us += 20_000;
            self.turn();
            if done(self) {
                return;
            }
        }
    }

    /// Until the target has everything that the core knows of.
    pub(super) fn acknowledged(&mut self) {
        self.until(|world| {
            let is_sent = world.group.snapshot().backlog_bytes == 0 && world.link.is_empty();
            world.guest.is_empty() && is_sent && world.group.state() == GroupState::Streaming
        });
    }

    /// Nothing is on its way to a disk or from it.
    pub(super) fn ops_are_done(&self) -> bool {
        self.ops.is_empty()
    }

    pub(super) fn compare(&self) {
        for disk in 0..DISKS {
            for sector in 0..SECTORS {
                // Only a failback comes without a verification before it.
                if self.target.rotten.contains(&(disk, sector)) {
                    continue;
                }
                let copy = self.target.content[&(disk, sector)];
                let original = self.disks[disk as usize][sector as usize];
                assert_eq!(copy, original, "disk {disk} sector {sector} after everything has settled");
            }
        }
    }

    fn turn(&mut self) {
        self.watch_rot();
        self.group.advance(self.now());
        while let Some(action) = self.group.poll() {
            match action {
                Action::Submit(id) => self.submit(id),
                Action::Read { id, disk, offset, len, may_be_hole } => {
                    let (sector, sectors) = (offset / SECTOR, u64::from(len) / SECTOR);
                    self.ops.push(DiskOp::Read { id, disk: disk.0, sector, sectors, seen: Vec::new(), may_be_hole });
                }
                Action::Link(message) if self.link_up => self.link.push_back(message),
                Action::Link(_) => {}
                Action::PointDone { .. } => self.answered += 1,
                Action::CommitMarks(commit) => self.ops.push(DiskOp::Marks { pages: commit.pages, written: 0 }),
                Action::FlushDisks { id, disks } => {
                    let disks: Vec<u32> = disks.into_iter().map(|disk| disk.0).collect();
                    let seen = disks.iter().map(|disk| self.disks[*disk as usize].clone()).collect();
                    let begun = self.volume.flush_begins();
                    self.ops.push(DiskOp::Flush { id: FlushOf::Core(id), disks, seen, begun });
                }
                Action::OpenSpool => self.cache.open(),
                Action::WriteSpool { id, offset, len, pieces } => self.cache.write(id, offset, len, &pieces),
                Action::ReadSpool { id, offset, len } => self.cache.read(id, offset, len),
                Action::EmptySpool => self.cache.empty(),
                Action::RoundEnded(_) => {}
                Action::VerifyDone(found) => self.verify_done(found),
                // The first attempt fails: the state volume is full.
                Action::PersistFence => {
                    self.fence_attempts += 1;
                    self.group.fence_persisted(self.fence_attempts > 1);
                }
                Action::LiftFence => {
                    self.lift_attempts += 1;
                    self.group.fence_lifted(self.lift_attempts > 1);
                }
            }
        }
        let memory = self.group.queue.charged();
        // Points that were asked for while the group caught up are cut all at once.
        assert!(memory <= self.group.options.memory_bytes + self.slack(), "sets pin {memory} bytes");
        self.judge_cache();
        self.judge_points();
    }

    fn guest_writes(&mut self) {
        if self.guest.len() > 12 {
            return;
        }
        let disk = self.random.below(u64::from(DISKS)) as u32;
        let sectors = match self.slow.1 {
            true => [1, 8, 24, 40][self.random.below(4) as usize],
            false => [1, 3, 8, 8, 8, 20][self.random.below(6) as usize],
        };
        // Mostly in one place for a while, so that other regions come to rest and are unmarked; and elsewhere while that
        // is being written down.
        let marking = self.ops.iter().any(|op| matches!(op, DiskOp::Marks { .. }));
        if self.random.one_in(if marking || self.slow.1 { 4 } else { 40 }) {
            self.hot = self.random.below(SECTORS);
        }
        // What is being mended is what a guest should overwrite.
        if let Some((_, sector)) = self.target.to_be_mended() {
            self.hot = sector;
        }
        let sector = match self.random.one_in(30) {
            true => self.random.below(SECTORS - sectors + 1),
            false => (self.hot + self.random.below(16)).min(SECTORS - sectors),
        };
        let sector = if sectors == 8 { (sector / 8 * 8).min(SECTORS - 8) } else { sector };
        let zero = self.random.one_in(6);
        self.guest_writes_at(disk, sector, sectors, zero);
    }

    pub(super) fn guest_writes_at(&mut self, disk: u32, sector: u64, sectors: u64, zero: bool) {
        self.versions += 1;
        let content: Vec<Content> =
            (0..sectors).map(|index| if zero { 0 } else { self.versions * 100 + index }).collect();
        let change = if zero { Change::Zero } else { Change::Data(bytes_of(&content)) };
        let epoch = self.group.epochs.current().0;
        let Ok(admitted) = self.group.admit(DiskIndex(disk), sector, sectors, change) else { return };
        let (Admitted::Submit(id) | Admitted::Wait(id)) = admitted;
        self.guest.insert(id, Guest { epoch, disk, sector, content });
        if matches!(admitted, Admitted::Submit(_)) {
            self.submit(id);
        }
    }

    fn submit(&mut self, id: WriteId) {
        let guest = &self.guest[&id];
        let lands = guest.content.clone();
        self.ops.push(DiskOp::Write { id, landed: 0, lands, disk: guest.disk, sector: guest.sector });
    }

    /// One operation goes on by some sectors, or ends.
    pub(super) fn disk_progress(&mut self) {
        if self.ops.is_empty() {
            return;
        }
        let index = self.random.below(self.ops.len() as u64) as usize;
        let steps = 1 + self.random.below(if self.slow.1 { 60 } else { 12 });
        let is_marks = matches!(self.ops[index], DiskOp::Marks { .. });
        let fails = self.faults > 0 && self.random.one_in(self.faults) || is_marks && self.volume.is_bad;
        match &mut self.ops[index] {
            DiskOp::Write { landed, lands, disk, sector, .. } => {
                let until = (*landed + steps).min(lands.len() as u64);
                for at in *landed..until {
                    self.disks[*disk as usize][(*sector + at) as usize] = lands[at as usize];
                }
                *landed = until;
                if until == lands.len() as u64 || fails {
                    self.write_ends(index, !fails);
                }
            }
            DiskOp::Marks { .. } if self.volume.is_stuck => {}
            DiskOp::Marks { pages, written } if *written < pages.len() => {
                let (page, bytes) = &pages[*written];
                put_page(&mut self.marks, *page, bytes);
                *written += 1;
            }
            DiskOp::Marks { .. } => {
                self.ops.swap_remove(index);
                if !fails {
                    self.synced_marks.clone_from(&self.marks);
                }
                self.volume.broken.failed_commits += u64::from(fails);
                self.group.marks_committed(!fails);
                self.just_marked = 20;
            }
            DiskOp::Flush { .. } => self.flush_ends(index, fails),
            DiskOp::Read { disk, sector, sectors, seen, .. } => {
                for _ in 0..steps {
                    if (seen.len() as u64) < *sectors {
                        seen.push(self.disks[*disk as usize][*sector as usize + seen.len()]);
                    }
                }
                if seen.len() as u64 == *sectors {
                    self.read_ends(index);
                }
            }
        }
    }

    fn write_ends(&mut self, index: usize, ok: bool) {
        let DiskOp::Write { id, .. } = self.ops.swap_remove(index) else { unreachable!() };
        let guest = self.guest.remove(&id).unwrap();
        let open = self.group.epochs.current().0;
        for (at, content) in guest.content.iter().enumerate() {
            let sector = guest.sector + at as u64;
            if ok {
                self.judge.became(guest.disk, sector, guest.epoch, *content);
            } else {
                let there = self.disks[guest.disk as usize][sector as usize];
                self.judge.failed(guest.disk, sector, guest.epoch, open, there);
            }
        }
        self.group.write_done(id, ok);
    }

    fn read_ends(&mut self, index: usize) {
        let DiskOp::Read { id, seen, may_be_hole, .. } = self.ops.swap_remove(index) else { unreachable!() };
        let may_fail = self.reads_may_fail && self.faults > 0;
        let fails = self.reads_fail || may_fail && self.random.one_in(self.faults);
        let outcome = if fails {
            ReadOutcome::Failed
        } else if may_be_hole && seen.iter().all(|content| *content == 0) {
            ReadOutcome::Hole
        } else {
            ReadOutcome::Data(bytes_of(&seen))
        };
        self.group.read_done(id, outcome);
    }

    /// Something that was sent arrives; parts overtake each other and messages.
    pub(super) fn link_progress(&mut self) {
        for _ in 0..self.random.below(4) {
            if self.link.is_empty() {
                return;
            }
            let part = self.link.iter().position(|message| matches!(message, ToLink::Part(_)));
            let index = match part {
                Some(_) if self.random.one_in(2) => {
                    let parts: Vec<usize> =
                        (0..self.link.len()).filter(|index| matches!(self.link[*index], ToLink::Part(_))).collect();
                    parts[self.random.below(parts.len() as u64) as usize]
                }
                // Messages keep their order among themselves.
                _ => self.link.iter().position(|message| !matches!(message, ToLink::Part(_))).unwrap_or_default(),
            };
            let message = self.link.remove(index).unwrap();
            if let ToLink::Part(job) = &message {
                // Mostly the link takes less than the processors compress.
                let compresses = job.begin.number % 16 != 7;
                self.group.link_compresses(compresses);
                let parcels = if compresses { parcels_of(job) } else { Vec::new() };
                self.group.parcels_made(&job.begin, parcels);
            }
            self.target.receive(message);
        }
    }

    pub(super) fn answer(&mut self) {
        if let Some(message) = self.target.answers.pop_front() {
            let now = self.now();
            self.group.message(message, now);
        }
    }

    pub(super) fn drop_link(&mut self) {
        if !self.link_up {
            return;
        }
        self.link_up = false;
        self.link.clear();
        let crashed = self.random.one_in(3);
        self.target.session_ended(crashed);
        let now = self.now();
        self.group.link_down("the cable was pulled".into(), now);
    }

    pub(super) fn raise_link(&mut self) {
        if !self.link_up {
            self.link_up = true;
            let now = self.now();
            self.group.link_up(now);
        }
    }

    /// Each set that has become durable is compared with what its epoch must hold.
    fn judge_points(&mut self) {
        for durable in std::mem::take(&mut self.target.newly_durable) {
            let is_whole = durable.seal.unreadable_bytes == 0;
            if durable.seal.number != self.target.last_set || !durable.seal.is_point || !is_whole {
                continue;
            }
            let epoch = self.group.cuts[&durable.seal.cut_time_us];
            self.points += 1;
            let is_app = durable.seal.kind == PointKind::App as i32;
            assert_eq!(is_app, self.quiesced.contains(&epoch), "set {} of epoch {epoch}", durable.seal.number);
            for ((disk, sector), content) in &self.target.content {
                assert!(
                    self.target.rotten.contains(&(*disk, *sector))
                        || self.judge.allows(*disk, *sector, epoch, *content),
                    "set {} of epoch {epoch}: disk {disk} sector {sector} holds {content}",
                    durable.seal.number
                );
            }
        }
    }
}

/// A target that was made for the group, or one that holds something: in places what the source holds.
fn some_target(random: &mut Random, disks: &[Vec<Content>]) -> Target {
    let existed = random.one_in(2);
    let mut content = BTreeMap::new();
    for (disk, sectors) in (0..).zip(disks) {
        let mut same = true;
        for (sector, source) in (0..).zip(sectors) {
            same ^= random.one_in(60);
            let there = match (existed, same) {
                (false, _) => 0,
                (true, true) => *source,
                (true, false) => 2_000_000_000 + sector,
            };
            content.insert((disk, sector), there);
        }
    }
    Target::new(content, existed)
}

/// What the link keeps of a part, as it encodes it.
fn parcels_of(job: &PartJob) -> Vec<Arc<Parcel>> {
    thread_local! {
        static ENCODER: RefCell<Encoder> = RefCell::new(Encoder::new());
    }
    let PartJob { begin, extents, bases, keep, .. } = job;
    let place = (begin.number, begin.part);
    let frames = frames_of(extents.clone());
    ENCODER.with_borrow_mut(|encoder| {
        encoder.encode_batch(place, &frames, Compression::Zstd(1), bases, *keep).unwrap().parcels
    })
}

fn layout() -> Layout {
    Layout::with_regions((0..DISKS).map(|_| SECTORS * SECTOR), REGION_BLOCKS)
}

fn put_page(marks: &mut [u8], page: u32, bytes: &[u8]) {
    let at = page as usize * PAGE_BYTES;
    marks[at..at + PAGE_BYTES].copy_from_slice(bytes);
}

fn bytes_of(content: &[Content]) -> Bytes {
    content.iter().flat_map(|content| content.to_le_bytes().repeat(64)).collect::<Vec<u8>>().into()
}
