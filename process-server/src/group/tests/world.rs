//! The world around the core: a guest, disks whose operations take time and fail, a state volume, a cache volume, a link
//! that drops, and starts after clean stops, kills and losses of power.

mod cache;
mod disk;
mod ends;
mod failback;
mod guest;
mod images;
mod judging;
mod link;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use blockio::SECTOR;
use bytes::Bytes;
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
use crate::send::ToLink;

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
    pub(super) time_us: u64,
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

    pub(super) fn now(&self) -> Now {
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
