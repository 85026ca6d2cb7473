//! The source agent's side: the real group core with its marks, on simulated disks, as its driver carries it out.
//!
//! Disks take their time, fail, and lose by a loss of power what was not flushed; the state volume tears its pages. What
//! the record of a clean stop and the fence say is replaced as a whole, as the agent does.

mod disk;
mod ends;
mod flushes;
mod spool;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blockio::SECTOR;
use bytes::Bytes;
use process_server::dirty::{Intent, Layout, PAGE_BYTES};
use process_server::group::{
    Action, Admitted, CatchUpReason, Change, FlushId, Group, GroupOptions, Now, PointOutcome, ReadId, ReadOutcome,
    Tracking, VerifiedDisk, WriteId,
};
use process_server::send::ToLink;
use proto::ids::DiskIndex;
use proto::replication::DiskSpec;
use proto::time::Timestamp;

use self::disk::SimDisk;
use self::spool::SimSpool;
use super::history::{Content, History, Image, Tick};
use super::trace;
use crate::random::Random;

/// Blocks of a region of marks.
pub const REGION_BLOCKS: u64 = 3;

#[derive(Debug)]
enum Op {
    Write { id: WriteId, landed: usize },
    Marks { pages: Vec<(u32, Bytes)>, written: usize },
    Flush { id: u64, disks: Vec<u32>, seen: Image },
    GuestFlush { id: FlushId, disk: u32, seen: Vec<Content>, since: Tick },
    Read { id: ReadId, disk: u32, sector: u64, sectors: u64, seen: Vec<Content>, may_be_hole: bool },
}

#[derive(Debug)]
struct Write {
    disk: u32,
    sector: u64,
    content: Vec<Content>,
    number: u64,
}

/// What the world must hear of a turn.
pub enum Said {
    /// For the link.
    Link(ToLink),
    /// A point that was asked for is done.
    Point(u64, PointOutcome),
    /// A verification has ended.
    Verified(Result<Vec<VerifiedDisk>, String>),
}

/// The source. See the module's documentation.
pub struct Source {
    /// The real core.
    pub group: Group,
    /// What the guest may rely on, life by life; the last is the one that runs.
    pub lives: Vec<History>,
    /// The machine is up.
    pub starts: u64,
    /// Where the guest writes for a while.
    pub hot: u64,
    /// One in this many disk operations fails; 0: none does.
    pub errors: u64,
    /// Sectors that could not be read when they were to be sent, and were not written since: the target was told that
    /// they are unreadable, and keeps what it has (rule S17).
    pub unread: BTreeSet<(u32, u64)>,
    options: GroupOptions,
    disks: Vec<SimDisk>,
    sizes: Vec<u64>,
    marks: Vec<u8>,
    synced_marks: Vec<u8>,
    spool: SimSpool,
    /// What the state volume says of a fence: whether there is one, and the newest failback that asked.
    fenced: (bool, u64),
    ops: Vec<Op>,
    writes: BTreeMap<WriteId, Write>,
    versions: u64,
    tick: Tick,
}

/// Sizes of all disks in sectors: the last block of one is short.
pub fn specs(sectors: &[u64]) -> Vec<DiskSpec> {
    let spec = |(index, sectors): (usize, &u64)| DiskSpec {
        name: format!("d{index}"),
        size: sectors * SECTOR,
        logical_block: 512,
    };
    sectors.iter().enumerate().map(spec).collect()
}

/// Bytes of sectors, each filled with its content.
#[must_use]
pub fn bytes_of(content: &[Content]) -> Bytes {
    let mut bytes = Vec::with_capacity(content.len() * SECTOR as usize);
    for content in content {
        for _ in 0..SECTOR / 8 {
            bytes.extend_from_slice(&content.to_le_bytes());
        }
    }
    bytes.into()
}

impl Source {
    /// A source whose disks hold something.
    pub fn new(random: &mut Random, sectors: &[u64], now: Now) -> Self {
        let options = GroupOptions {
            name: "web".into(),
            disks: specs(sectors),
            memory_bytes: [30_000, 70_000, 400_000][random.below(3) as usize],
            spool_bytes: [0, 96 << 10, 1 << 20][random.below(3) as usize],
            part_bytes: [4096, 16 << 10, 1 << 20][random.below(3) as usize],
            point_interval: Duration::from_millis(100),
            watch_interval: Duration::from_millis(20),
            source_start: 1,
            source_instance: [1; 16],
            fenced: false,
            fence_request: 0,
        };
        let disks: Vec<SimDisk> = sectors
            .iter()
            .map(|sectors| {
                let content = |sector| if random.percent(50) { 0 } else { 1_000_000_000 + sector };
                SimDisk { now: (0..*sectors).map(content).collect(), unflushed: BTreeMap::new() }
            })
            .collect();
        let mut intent = Intent::unknown(layout(sectors));
        let marks = intent.whole();
        intent.whole_is_durable();
        let group = Group::new(options.clone(), Tracking::marked(intent, CatchUpReason::SourceDoubt), now);
        let mut source = Self {
            spool: SimSpool::new(options.spool_bytes),
            group,
            lives: Vec::new(),
            starts: 1,
            hot: 0,
            errors: 0,
            unread: BTreeSet::new(),
            options,
            disks,
            sizes: sectors.to_vec(),
            synced_marks: marks.clone(),
            marks,
            fenced: (false, 0),
            ops: Vec::new(),
            writes: BTreeMap::new(),
            versions: 0,
            tick: 0,
        };
        source.lives.push(History::new(&source.image()));
        source
    }

    /// What the disks hold.
    #[must_use]
    pub fn image(&self) -> Image {
        self.disks.iter().map(|disk| disk.now.clone()).collect()
    }

    /// Bytes that sets may pin.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.options.memory_bytes
    }

    /// This moment, in the order of what the guest sees.
    pub fn now(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.writes.is_empty() && self.spool.is_idle()
    }

    /// The blocks of writes that have not ended.
    pub fn in_flight(&self) -> impl Iterator<Item = (u32, u64, u64)> {
        self.writes.values().map(|write| {
            let block = write.sector / 8;
            (write.disk, block, (write.sector + write.content.len() as u64).div_ceil(8) - block)
        })
    }

    /// The guest writes something somewhere. False: it was refused.
    pub fn guest_writes(&mut self, random: &mut Random) -> bool {
        if self.writes.len() > 12 {
            return true;
        }
        let disk = random.below(self.disks.len() as u64) as u32;
        let size = self.sizes[disk as usize];
        let sectors = [1, 3, 8, 8, 8, 20][random.below(6) as usize];
        // Mostly in one place for a while, so that other regions come to rest; elsewhere while that is written down.
        let is_marking = self.ops.iter().any(|op| matches!(op, Op::Marks { .. }));
        if random.below(if is_marking { 4 } else { 40 }) == 0 {
            self.hot = random.below(size);
        }
        let sector = match random.below(30) {
            0 => random.below(size - sectors + 1),
            _ => (self.hot + random.below(16)).min(size - sectors),
        };
        let sector = if sectors == 8 { (sector / 8 * 8).min(size - 8) } else { sector };
        let is_zero = random.below(8) == 0;
        self.versions += 1;
        let number = self.versions;
        let content: Vec<Content> = (0..sectors).map(|at| if is_zero { 0 } else { number * 100 + at }).collect();
        let change = if is_zero { Change::Zero } else { Change::Data(bytes_of(&content)) };
        let now = self.now();
        let Ok(admitted) = self.group.admit(DiskIndex(disk), sector, sectors, change) else { return false };
        trace::step("guest writes (disk, sector)", disk.into(), sector);
        let (Admitted::Submit(id) | Admitted::Wait(id)) = admitted;
        self.life().issued(disk, sector, &content, number, now);
        self.writes.insert(id, Write { disk, sector, content, number });
        if matches!(admitted, Admitted::Submit(_)) {
            self.ops.push(Op::Write { id, landed: 0 });
        }
        true
    }

    /// The guest flushes a disk.
    pub fn guest_flushes(&mut self, disk: u32) {
        let since = self.now();
        let seen = self.disks[disk as usize].now.clone();
        let id = self.group.flush_begins(DiskIndex(disk));
        self.ops.push(Op::GuestFlush { id, disk, seen, since });
    }

    fn life(&mut self) -> &mut History {
        self.lives.last_mut().expect("there is always one")
    }

    /// One turn of the driver.
    pub fn turn(&mut self, now: Now) -> Vec<Said> {
        let mut said = Vec::new();
        self.group.advance(now);
        while let Some(action) = self.group.poll() {
            match action {
                Action::Submit(id) => self.ops.push(Op::Write { id, landed: 0 }),
                Action::Read { id, disk, offset, len, may_be_hole } => {
                    let (sector, sectors) = (offset / SECTOR, u64::from(len) / SECTOR);
                    self.ops.push(Op::Read { id, disk: disk.0, sector, sectors, seen: Vec::new(), may_be_hole });
                }
                Action::Link(message) => said.push(Said::Link(message)),
                Action::CommitMarks(commit) => self.ops.push(Op::Marks { pages: commit.pages, written: 0 }),
                Action::FlushDisks { id, disks } => {
                    let disks: Vec<u32> = disks.into_iter().map(|disk| disk.0).collect();
                    let seen = disks.iter().map(|disk| self.disks[*disk as usize].now.clone()).collect();
                    self.ops.push(Op::Flush { id, disks, seen });
                }
                Action::PersistFence | Action::LiftFence if self.errors > 0 && self.tick.is_multiple_of(2) => {
                    // What is not durable may be found all the same.
                    if self.tick.is_multiple_of(4) {
                        self.fenced = (matches!(action, Action::PersistFence), self.group.fence_request());
                    }
                    self.group.fence_persisted(false);
                    self.group.fence_lifted(false);
                }
                Action::PersistFence => {
                    self.fenced = (true, self.group.fence_request());
                    self.group.fence_persisted(true);
                }
                Action::LiftFence => {
                    self.fenced = (false, self.group.fence_request());
                    self.group.fence_lifted(true);
                }
                Action::OpenSpool => self.spool.open(),
                Action::WriteSpool { id, offset, len, pieces } => self.spool.write(id, offset, len, &pieces),
                Action::ReadSpool { id, offset, len } => self.spool.read(id, offset, len),
                Action::EmptySpool => self.spool.empty(),
                Action::RoundEnded(_) => {}
                Action::VerifyDone(found) => said.push(Said::Verified(found)),
                Action::PointDone { token, outcome } => said.push(Said::Point(token, outcome)),
            }
        }
        said
    }

    /// One operation goes on by some sectors, or ends.
    pub fn disk_progress(&mut self, random: &mut Random) {
        if !self.spool.is_idle() && (self.ops.is_empty() || random.below(3) == 0) {
            return self.spool.progress(&mut self.group, self.errors, random);
        }
        if self.ops.is_empty() {
            return;
        }
        let index = random.below(self.ops.len() as u64) as usize;
        let steps = 1 + random.below(12) as usize;
        let fails = self.errors > 0 && random.below(self.errors) == 0;
        match &mut self.ops[index] {
            Op::Write { id, landed } => {
                let write = &self.writes[id];
                let until = (*landed + steps).min(write.content.len());
                for at in *landed..until {
                    self.disks[write.disk as usize].put(write.sector as usize + at, write.content[at]);
                }
                *landed = until;
                if until == write.content.len() || fails {
                    self.write_ends(index, !fails);
                }
            }
            Op::Marks { pages, written } if *written < pages.len() => {
                let (page, bytes) = &pages[*written];
                put_page(&mut self.marks, *page, bytes);
                *written += 1;
            }
            Op::Marks { .. } => {
                self.ops.swap_remove(index);
                if !fails {
                    self.synced_marks.clone_from(&self.marks);
                }
                self.group.marks_committed(!fails);
            }
            Op::Flush { .. } | Op::GuestFlush { .. } => self.flush_ends(index, !fails, random),
            Op::Read { disk, sector, sectors, seen, .. } => {
                for _ in 0..steps {
                    if (seen.len() as u64) < *sectors {
                        seen.push(self.disks[*disk as usize].now[*sector as usize + seen.len()]);
                    }
                }
                if seen.len() as u64 == *sectors {
                    self.read_ends(index, fails);
                }
            }
        }
    }

    fn write_ends(&mut self, index: usize, ok: bool) {
        let Op::Write { id, .. } = self.ops.swap_remove(index) else { unreachable!() };
        let write = self.writes.remove(&id).expect("a write that lands was issued");
        if ok {
            let now = self.now();
            let Write { disk, sector, number, ref content } = write;
            let sectors = content.len() as u64;
            self.life().acknowledged(disk, sector, sectors, number, now);
            self.unread.retain(|(on, at)| *on != disk || !(sector..sector + sectors).contains(at));
        }
        self.group.write_done(id, ok);
    }

    fn read_ends(&mut self, index: usize, fails: bool) {
        let Op::Read { id, disk, sector, sectors, seen, may_be_hole } = self.ops.swap_remove(index) else {
            unreachable!()
        };
        let outcome = if fails {
            // A longer read is tried again block by block.
            if sectors <= 8 {
                let all = sector..sector + sectors;
                self.unread.extend(all.clone().map(|sector| (disk, sector)));
                self.life().unreadable(disk, all);
            }
            ReadOutcome::Failed
        } else if may_be_hole && seen.iter().all(|content| *content == 0) {
            ReadOutcome::Hole
        } else {
            ReadOutcome::Data(bytes_of(&seen))
        };
        self.group.read_done(id, outcome);
    }
}

fn layout(sectors: &[u64]) -> Layout {
    Layout::with_regions(sectors.iter().map(|sectors| sectors * SECTOR), REGION_BLOCKS)
}

fn put_page(marks: &mut [u8], page: u32, bytes: &[u8]) {
    let at = page as usize * PAGE_BYTES;
    marks[at..at + PAGE_BYTES].copy_from_slice(bytes);
}

/// The two clocks of a moment.
#[must_use]
pub fn moment(time_us: u64, skew_us: u64) -> Now {
    Now { mono: Duration::from_micros(time_us), wall: Timestamp(1_000_000_000 + time_us + skew_us) }
}
