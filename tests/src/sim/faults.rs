//! The weather of a seed: which faults there are, how often, and what each does to the world.

use master_target::recover::steps::{Choice, Source as Without};

use super::judge::Known;
use super::target::TargetImage;
use super::trace;
use super::world::{SECTORS, World};
use crate::random::Random;

/// An image of the target and what it means to the judge.
pub struct Saved {
    target: TargetImage,
    known: Known,
}

/// What the target logs of rot that it finds.
const ROT_LINES: [&str; 1] = ["a target does not hold what was written to it"];

/// What a seed has in store.
#[derive(Debug, Default)]
pub struct Weather {
    /// One in this many operations of the source's disks fails; 0: none.
    pub source_errors: u64,
    /// Somebody asks for verifications.
    pub verifies: bool,
    /// The volume has little room.
    pub is_tight: bool,
    links: bool,
    source_ends: bool,
    target_ends: bool,
    power: bool,
    images: bool,
    target_errors: bool,
    tight: bool,
    failback: bool,
    /// Bytes of the target's disks flip.
    pub rots: bool,
    clock: bool,
    is_over: bool,
    unexpected: Vec<String>,
}

impl Weather {
    /// The weather of a seed: some seeds are calm, most have a few kinds of faults.
    pub fn new(random: &mut Random) -> Self {
        let mut has = |percent| random.percent(percent);
        if has(5) {
            return Self::default();
        }
        let mut weather = Self {
            verifies: has(20),
            links: has(60),
            source_ends: has(50),
            target_ends: has(50),
            power: has(60),
            images: has(20),
            target_errors: has(25),
            tight: has(20),
            failback: has(25),
            clock: has(30),
            ..Self::default()
        };
        // What a failback refuses for rot, and whose choice it then is, is not played here.
        weather.rots = has(30) && !weather.failback;
        weather.source_errors = if has(30) { [60, 400][random.below(2) as usize] } else { 0 };
        weather
    }

    /// The target logs something at WARN or ERROR.
    pub fn logged(&mut self, line: &str) {
        // A failure that was injected before may be found later, and so may rot.
        let is_rot = self.rots && ROT_LINES.iter().any(|rot| line.contains(rot));
        if self.is_over && !line.contains("injected") && !is_rot {
            self.unexpected.push(line.to_owned());
        }
    }

    /// What was logged after all faults were over.
    pub fn unexpected(&self) -> &[String] {
        &self.unexpected
    }
}

impl World {
    /// Perhaps something goes wrong.
    pub(super) fn fault(&mut self) {
        self.start_target_in_time();
        let weather = &self.weather;
        match self.random.below(40) {
            0..4 if weather.links => self.break_link(),
            4 if weather.source_ends => self.source_ends(),
            5 if weather.target_ends && self.target_down.is_none() => {
                // In the middle of something that comes.
                self.target.fuse.burn_after(self.random.below(30) as u32);
            }
            6 if weather.images && self.target_down.is_none() && !self.target.fuse.is_burnt() => {
                trace::step("an image of the target is taken", 0, 0);
                let target = self.target.image();
                self.images.push_back(Saved { target, known: self.judge.known() });
            }
            7 if weather.target_errors => {
                trace::step("target I/O fails", 0, 0);
                match self.random.below(2) {
                    0 => self.target.volume.lose_syncs(1),
                    _ => self.target.disks.fail_next(1),
                }
            }
            8 if weather.tight && !weather.is_tight => {
                let used = self.target.volume.used_bytes();
                self.target.volume.set_capacity(used + self.random.below(60_000));
                trace::step("the volume has little room", used, 0);
                self.weather.is_tight = true;
                self.judge.was_tight = true;
            }
            9..11 if weather.is_tight => self.make_room(),
            11 if weather.clock => {
                self.skew_us = self.random.below(30_000_000);
            }
            13..30 if weather.rots => (0..4).for_each(|_| self.rots()),
            12 if weather.failback && self.random.below(3) == 0 => self.begin_failback(),
            _ => {}
        }
    }

    /// A byte of the target's disks flips.
    fn rots(&mut self) {
        if self.target.fuse.is_burnt() {
            return;
        }
        let disk = self.random.below(SECTORS.len() as u64) as u32;
        let sector = self.random.below(SECTORS[disk as usize]);
        let byte = self.random.next_u64();
        self.judge.watch_rot(&self.target);
        if self.judge.rot().flip(&self.target, disk, sector, byte) {
            trace::step("a sector rots", disk.into(), sector);
            self.judge.rotted += 1;
            self.may_be_found(disk, sector);
        }
    }

    fn make_room(&mut self) {
        trace::step("there is room again", 0, 0);
        self.target.volume.set_capacity(1 << 40);
        self.weather.is_tight = false;
    }

    fn break_link(&mut self) {
        if self.connections.is_empty() {
            return;
        }
        let index = self.random.below(self.connections.len() as u64) as usize;
        if self.random.percent(50) && !self.connections[index].source_gone {
            self.source_loses_link(index);
        } else {
            trace::step("target loses a connection", self.connections[index].key, 0);
            self.connections[index].target_gone = true;
        }
    }

    fn source_ends(&mut self) {
        // Nobody could notice it: a doubt that can be kept nowhere, since marks can't be written and the target has no note.
        if self.source.group.is_doubt_unkept() && self.target.note.is_none() {
            return;
        }
        self.forget_points();
        self.verifying = None;
        for connection in &mut self.connections {
            connection.source_gone = true;
            connection.digesting.clear();
        }
        let now = super::source::moment(self.time_us, self.skew_us);
        match self.random.below(3) {
            0 => self.source.stop(now),
            _ => {
                let power = self.weather.power && self.random.percent(60);
                self.source.crash(power, &mut self.random, now);
            }
        }
        // An image of the target may have come back while nobody looked.
        self.mark_check();
    }

    /// The target's process has ended in the middle of something.
    pub(super) fn target_crashes(&mut self) {
        let power = self.weather.power && self.random.percent(60);
        self.job.crash();
        for connection in &mut self.connections {
            connection.target_gone = true;
            connection.pass = None;
        }
        self.target.crash(power);
        self.judge.watch_rot(&self.target);
        if power {
            self.judge.power_lost(&self.target);
        }
        let which = self.random.below(self.images.len().max(1) as u64) as usize;
        // Nor a note that is gone with the target that had it, if the source ends too (docs/tracking.md, "Limits").
        let note = self.target.note;
        let saved = self.images.get(which).filter(|saved| note.is_none() || saved.target.note == note);
        if let Some(saved) = saved.filter(|_| self.random.percent(40)) {
            trace::step("the target comes back from an image", which as u64, 0);
            self.target.restore(&saved.target);
            self.judge.restored(saved.known.clone());
            self.is_rewound = true;
            self.verifying = None;
            self.job = super::failback::Job::default();
        }
        self.target_down = Some(self.random.below(6));
    }

    fn start_target_in_time(&mut self) {
        match self.target_down {
            Some(0) => self.start_target(),
            Some(left) => self.target_down = Some(left - 1),
            None => {}
        }
    }

    /// The target's agent starts, if it is down.
    pub(super) fn start_target(&mut self) {
        if self.target_down.take().is_some() {
            trace::step("the target starts", 0, 0);
            let now = self.wall();
            self.target.start(now);
            self.job.resume(&mut self.target);
        }
    }

    fn begin_failback(&mut self) {
        let source = if self.random.percent(60) { Without::Fence } else { Without::Without };
        let points = self.target.journal.as_ref().map(|journal| journal.points()).unwrap_or_default();
        let choice = match points.len() as u64 {
            0 => return,
            count if self.random.percent(40) => Choice::Point(points[self.random.below(count) as usize].set.0),
            _ => Choice::Latest,
        };
        let request = 1_000_000 + self.time_us;
        self.job.begin(&self.target, choice, source, request);
    }

    /// No more faults; what is broken mends itself.
    pub(super) fn end_faults(&mut self) {
        trace::step("no more faults", 0, 0);
        self.source.errors = 0;
        self.make_room();
        self.target.volume.fail_syncs(0);
        self.target.disks.fail_next(0);
        if self.target.fuse.is_burnt() {
            self.target_crashes();
        }
        self.target.fuse.replace();
        self.turn();
        // What failed before may be found later.
        let has_stopped = self.target.journal.as_ref().is_some_and(|journal| journal.has_stopped());
        self.weather.is_over = !self.target.board.has_failed() && !has_stopped;
    }
}
