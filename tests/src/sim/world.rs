//! The simulated world: a guest, both agents, the link between them, and one step after the other.
//!
//! Everything that may happen next is a step, chosen by the seed; `faults` are steps too. Between steps the world hands
//! on what one side said to the other and asks the judge.

use std::collections::VecDeque;
use std::time::Duration;

use process_server::group::{PointAsked, PointOutcome};
use process_server::send::ToLink;
use proto::frame::{Compression, Encoder};
use proto::message::decode;
use proto::replication::target_message::Body as TargetBody;
use proto::replication::{SourceHeartbeat, SourceMessage, TargetMessage};
use proto::time::Timestamp;

use super::failback::Job;
use super::faults::Weather;
use super::judge::Judge;
use super::link::Connection;
use super::source::{Said, Source, moment, specs};
use super::target::Target;
use super::verify::Verifying;
use super::{log, trace};
use crate::random::Random;

/// Sectors of the disks: the last block of one is short.
pub const SECTORS: [u64; 2] = [8 * 12, 8 * 9 + 3];
/// Memory that sets may pin beyond the budget: what one write adds before the budget is looked at.
const MEMORY_SLACK: u64 = 24 << 10;

/// The world. See the module's documentation.
pub struct World {
    pub(super) random: Random,
    pub(super) weather: Weather,
    pub(super) source: Source,
    pub(super) target: Target,
    pub(super) connections: Vec<Connection>,
    pub(super) judge: Judge,
    pub(super) job: Job,
    pub(super) verifying: Option<Verifying>,
    /// How many verifications found something, or nothing.
    pub(super) verified: u64,
    /// The source has not yet seen that the target came back from an image.
    pub(super) is_rewound: bool,
    /// Steps until the target's agent starts again.
    pub(super) target_down: Option<u64>,
    pub(super) images: VecDeque<super::faults::Saved>,
    pub(super) keys: u64,
    pub(super) time_us: u64,
    pub(super) skew_us: u64,
    pub(super) asked: u64,
    pub(super) answered: u64,
    encoder: Encoder,
    level: Compression,
    phase_asked: u64,
    quiet: bool,
}

impl World {
    /// The world of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let weather = Weather::new(&mut random);
        let mut source = Source::new(&mut random, &SECTORS, moment(0, 0));
        source.errors = weather.source_errors;
        let existed = random.percent(50);
        let mut target = Target::new(&mut random, specs(&SECTORS), existed);
        if existed {
            fill(&mut random, &target, &source);
        }
        target.start(Timestamp(1_000_000_000));
        let level = if random.percent(50) { Compression::Off } else { Compression::Zstd(1) };
        Self {
            random,
            weather,
            source,
            target,
            connections: Vec::new(),
            judge: Judge::default(),
            job: Job::default(),
            verifying: None,
            verified: 0,
            is_rewound: false,
            target_down: None,
            images: VecDeque::new(),
            keys: 0,
            time_us: 0,
            skew_us: 0,
            asked: 0,
            answered: 0,
            encoder: Encoder::new(),
            level,
            phase_asked: 0,
            quiet: false,
        }
    }

    pub(super) fn wall(&self) -> Timestamp {
        moment(self.time_us, self.skew_us).wall
    }

    /// One step.
    pub fn step(&mut self) {
        let now = self.wall();
        match self.random.below(100) {
            0 if self.random.below(4) == 0 => self.quiet = !self.quiet,
            0..20 if !self.quiet => {
                self.source.guest_writes(&mut self.random);
            }
            20..42 => self.source.disk_progress(&mut self.random),
            42..56 => self.deliver_to_target(),
            56..62 => self.deliver_to_source(),
            62..70 => self.target.journal_step(&mut self.random),
            70..80 => self.target_works(),
            80..84 => self.time_us += self.random.below(60_000),
            84 if self.target_down.is_none() => self.target.upkeep_step(&mut self.connections, now),
            85 => self.ask_for_point(),
            86 => self.source.guest_flushes(self.random.below(SECTORS.len() as u64) as u32),
            87 | 88 => self.raise_link(),
            89 => self.judge.look_again(&self.target, self.random.next_u64()),
            90 if self.weather.verifies => self.ask_to_verify(),
            91..94 => self.fault(),
            94 if self.target_down.is_none() => self.mark_check(),
            _ => {}
        }
        self.turn();
    }

    /// The apply thread, openings and the failback go on.
    fn target_works(&mut self) {
        let now = self.wall();
        match self.random.below(4) {
            0 => self.target.open_step(&mut self.connections, now),
            1 if self.job.is_running() => self.job.step(&mut self.target, &mut self.connections, now),
            _ => self.target.apply_step(now),
        }
    }

    /// What follows every step: the source's turn, what crosses, what ends, and the judge.
    pub(super) fn turn(&mut self) {
        self.after_target();
        let now = moment(self.time_us, self.skew_us);
        for said in self.source.turn(now) {
            match said {
                Said::Link(message) => self.send(message),
                Said::Point(token, outcome) => self.point_done(token, outcome),
                Said::Verified(found) => self.verify_done(found),
            }
        }
        let bound = self.source.memory_bytes() + MEMORY_SLACK + 1024 * (self.asked - self.answered);
        let memory = self.source.group.pinned_bytes();
        assert!(memory <= bound, "sets pin {memory} bytes, {bound} at most");
    }

    /// The target has done something: it may have lost its power meanwhile.
    fn after_target(&mut self) {
        let lines = log::take();
        self.target.watch_note();
        if self.target.fuse.is_burnt() {
            return self.target_crashes();
        }
        for line in lines {
            assert!(!line.contains("broke the protocol"), "{line}");
            self.weather.logged(&line);
        }
        for connection in &mut self.connections {
            if connection.target_gone {
                while connection.outbox.try_recv().is_ok() {}
            } else {
                connection.gather();
            }
            if let Some(why) = connection.wire.closed() {
                assert!(!why.contains("Protocol"), "the target closed the connection: {why}");
                connection.target_gone = true;
            }
        }
        self.end_connections();
        if self.judge.look(&self.target, &self.source, moment(self.time_us, self.skew_us).wall) {
            self.judge.was_tight &= self.weather.is_tight;
        }
        self.watch_verifying();
    }

    /// A connection that the target closed, or that broke, ends at both ends in its time.
    fn end_connections(&mut self) {
        for index in 0..self.connections.len() {
            let connection = &mut self.connections[index];
            if connection.target_gone && connection.pass.is_some() {
                connection.pass = None;
                let key = connection.key;
                self.target.closed(key, &mut self.connections);
            }
            let connection = &mut self.connections[index];
            if connection.target_gone {
                connection.streams.clear();
                connection.to_target.clear();
                connection.digesting.clear();
            }
            if connection.source_gone {
                connection.to_source.clear();
                connection.digesting.clear();
            }
            // Silence tells the target, sooner or later.
            connection.target_gone |= connection.source_gone && self.random.below(20) == 0;
            let may_notice = connection.target_gone && connection.to_source.is_empty();
            if may_notice && !connection.source_gone && self.random.below(8) == 0 {
                self.source_loses_link(index);
            }
        }
        self.connections.retain(|connection| !(connection.source_gone && connection.target_gone));
    }

    /// The source notices that a connection is gone.
    pub(super) fn source_loses_link(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        trace::step("source loses its link", connection.key, 0);
        connection.source_gone = true;
        connection.to_source.clear();
        let now = moment(self.time_us, self.skew_us);
        self.source.group.link_down("the cable was pulled".into(), now);
    }

    pub(super) fn current(&mut self) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|connection| !connection.source_gone)
    }

    pub(super) fn raise_link(&mut self) {
        if self.current().is_some() || self.target_down.is_some() {
            return;
        }
        self.keys += 1;
        trace::step("the link is up", self.keys, 0);
        self.connections.push(Connection::new(self.keys));
        let now = moment(self.time_us, self.skew_us);
        self.source.group.link_up(now);
    }

    fn send(&mut self, message: ToLink) {
        if let ToLink::Seal(seal) = &message {
            self.judge.sealed(seal, self.source.lives.len() - 1);
        }
        if let ToLink::Open(open) = &message {
            self.phase_asked = open.phase;
        }
        let (level, now) = (self.level, moment(self.time_us, self.skew_us));
        let Some(connection) = self.connections.iter_mut().find(|connection| !connection.source_gone) else { return };
        match message {
            ToLink::Open(open) => connection.send(open),
            ToLink::BeginBulk(begin) => connection.send(begin),
            ToLink::Seal(seal) => connection.send(seal),
            ToLink::Repair(repair) => connection.send(repair),
            ToLink::Fenced(fenced) => connection.send(fenced),
            ToLink::Compare(job) => connection.compare(job),
            ToLink::Part(job) => {
                let begin = job.begin.clone();
                match connection.send_part(&mut self.encoder, level, job) {
                    Ok(parcels) => {
                        self.source.group.link_compresses(level != Compression::Off);
                        self.source.group.parcels_made(&begin, parcels);
                    }
                    Err(_) => self.source.group.part_damaged(now),
                }
            }
            ToLink::MarksVoid(void) => connection.send(void),
            ToLink::Beat(beat) => connection.send(SourceHeartbeat { time_us: now.wall.us(), groups: vec![beat] }),
        }
    }

    /// Something that was sent arrives: parts overtake each other and messages.
    pub(super) fn deliver_to_target(&mut self) {
        if self.connections.is_empty() || self.target_down.is_some() {
            return;
        }
        let index = self.random.below(self.connections.len() as u64) as usize;
        for _ in 0..1 + self.random.below(4) {
            let connection = &mut self.connections[index];
            if connection.target_gone {
                return;
            }
            if !connection.digesting.is_empty() && self.random.below(3) == 0 {
                let at = self.random.below(connection.digesting.len() as u64) as usize;
                let compare = connection.digesting.swap_remove(at);
                connection.send(compare);
            }
            if !connection.streams.is_empty() && (connection.to_target.is_empty() || self.random.percent(60)) {
                let at = self.random.below(connection.streams.len() as u64) as usize;
                let taken = self.target.take_piece(connection, at);
                if let Err(why) = taken {
                    // The disk has rotted below a delta: the agent ends the connection, and takes no more of them.
                    let is_rot = why.contains("a delta came over content") && self.judge.rot().has_happened();
                    assert!(is_rot, "a part that is as it was sent is refused: {why}");
                    connection.target_gone = true;
                    return self.end_connections();
                }
            } else if let Some(bytes) = connection.to_target.pop_front() {
                let message: SourceMessage = decode(&bytes).expect("what was encoded can be decoded");
                self.target.receive(connection, message);
            }
        }
    }

    pub(super) fn deliver_to_source(&mut self) {
        let now = moment(self.time_us, self.skew_us);
        for _ in 0..1 + self.random.below(4) {
            let Some(connection) = self.connections.iter_mut().find(|connection| !connection.source_gone) else {
                return;
            };
            let Some(bytes) = connection.to_source.pop_front() else { return };
            let message: TargetMessage = decode(&bytes).expect("what was encoded can be decoded");
            match &message.body {
                Some(TargetBody::SetDurable(durable)) => {
                    trace::step("sets are durable (last, counter)", durable.number, durable.counter);
                }
                Some(TargetBody::PartDurable(durable)) => {
                    trace::step("a part is durable (set, counter)", durable.number, durable.counter);
                }
                Some(TargetBody::BlocksCompared(answer)) => {
                    trace::step("blocks are compared (request, counter)", answer.request.into(), answer.counter);
                }
                _ => {}
            }
            if let Some(TargetBody::GroupOpened(opened)) = &message.body {
                // From here on the source knows what it is talking to.
                self.is_rewound &= opened.phase != self.phase_asked;
            }
            self.source.group.message(message, now);
        }
    }

    pub(super) fn ask_for_point(&mut self) {
        self.asked += 1;
        let label = self.random.percent(50).then(|| format!("label-{}", self.asked));
        let now = self.source.now();
        self.judge.asked.insert(self.asked, (now, label.clone()));
        let at = moment(self.time_us, self.skew_us);
        let is_app = self.random.percent(30);
        let asked = match is_app {
            true => PointAsked::App { frozen_until: at.mono + Duration::from_millis(50) },
            false => PointAsked::Crash,
        };
        self.source.group.request_point(self.asked, label, asked, at);
    }

    fn point_done(&mut self, token: u64, outcome: PointOutcome) {
        self.answered += 1;
        let asked = self.judge.asked.get(&token).expect("only points that were asked for are answered");
        if let PointOutcome::Durable(id) = outcome
            && let Some(journal) = self.target.journal.as_ref().filter(|_| !self.is_rewound)
        {
            let points = journal.points();
            let found = points.iter().find(|point| point.id == id);
            // It may have been pruned since, with all that is older.
            let is_pruned = points.first().is_none_or(|oldest| oldest.set.0 > id.parse().unwrap_or(0));
            assert!(found.is_some() || is_pruned, "point {id} was promised and is not listed");
            if let (Some(point), (_, Some(label))) = (found, asked) {
                assert_eq!(point.label.as_ref(), Some(label), "a label is at another point");
            }
        }
    }

    /// Points that were asked for in a life that has ended are never answered.
    pub(super) fn forget_points(&mut self) {
        self.answered = self.asked;
    }

    pub(super) fn mark_check(&mut self) {
        // From the lock-out of a failback on, the target goes its own way.
        let is_apart = self.job.is_running() || self.job.is_done || self.target.found_failback();
        // A source that has not heard of the note of an earlier start does not know its doubt yet.
        let is_unheard = self.target.note.is_some_and(|note| note.source_start != self.source.starts);
        if !self.is_rewound && !self.target.fuse.is_burnt() && !is_apart && !is_unheard {
            self.judge.check_marks(&self.target, &self.source);
        }
    }
}

/// The target's disks hold something: in places what the source holds.
fn fill(random: &mut Random, target: &Target, source: &Source) {
    for (disk, sectors) in (0..).zip(source.image()) {
        let mut is_same = true;
        for (sector, content) in (0..).zip(sectors) {
            is_same ^= random.below(40) == 0;
            let there = if is_same { content } else { 2_000_000_000 + sector };
            target.disks.overwrite(disk, sector * 512, &super::source::bytes_of(&[there]));
        }
    }
}
