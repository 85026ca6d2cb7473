//! Questions of a comparison wait for each other, and are answered as of where they stood among the commands.

use std::sync::Arc;
use std::time::Duration;

use proto::digest::{self, UNIT_BYTES};
use proto::frame::Decoder;
use proto::replication::{CompareBlocks, CompareRun, RepairBlock};
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::apply::MemDisks;
use crate::group::session::{About, Link, Session, Wire};
use crate::journal::tests::rig::{INSTANCE, Rig, data, options};
use crate::journal::{MemVolume, Seeded};
use crate::receive::admission::SourceLife;

const MIB: usize = 1 << 20;
const UNIT_SECTORS: u64 = UNIT_BYTES as u64 / SECTOR_BYTES;

struct Unlosable;

impl Wire for Unlosable {
    fn key(&self) -> u64 {
        1
    }
    fn close(&self, _code: CloseCode, reason: &str) {
        panic!("nothing wrong is asked here: {reason}");
    }
    fn is_open(&self) -> bool {
        true
    }
}

/// A group with one disk of 20 MiB and a session.
struct Desk {
    rig: Rig,
    core: ApplyCore<MemVolume, MemDisks>,
    session: Session,
    room: Arc<Semaphore>,
    requests: u32,
}

impl Desk {
    fn new() -> Self {
        let rig = Rig::new(1, &[20 * MIB as u64], options());
        rig.open(1);
        let board = Arc::new(Board::new("web", "ps-1", Duration::ZERO));
        let applier = Applier::over(rig.journal.clone(), rig.disks.clone());
        let kept = (Duration::from_secs(60), ThinPolicy::default());
        let core = ApplyCore::new(applier, rig.journal.clone(), board, kept);
        let link = Link { outbox: mpsc::channel(1).0, wire: Arc::new(Unlosable), heard_ms: Arc::default() };
        let life = SourceLife { start: 1, instance: INSTANCE };
        let about = About { key: 1, group: "web".into(), phase: 1, life, disks: [].into(), link };
        Self { rig, core, session: Session::new(about), room: Arc::new(Semaphore::new(1 << 20)), requests: 0 }
    }

    fn permit(&self) -> OwnedSemaphorePermit {
        self.room.clone().try_acquire_owned().expect("there is room")
    }

    fn take(&mut self, command: ToApply<Applier<MemVolume, MemDisks>>) {
        self.core.take(command, self.rig.now).unwrap();
    }

    /// Asks whether the disk holds this from a unit on; gives the number of the question.
    fn ask(&mut self, unit: u64, content: &[u8]) -> u32 {
        self.requests += 1;
        let sectors = (content.len() as u64 / SECTOR_BYTES) as u32;
        let run = CompareRun { disk: 0, sector: unit * UNIT_SECTORS, sectors, digests: digest::of_run(content) };
        let compare = CompareBlocks { group: "web".into(), phase: 1, request: self.requests, runs: vec![run] };
        let (pass, permit) = (self.session.pass(), self.permit());
        self.take(ToApply::Compare { pass, compare, permit });
        self.requests
    }

    fn begin_bulk(&mut self) {
        let pass = self.session.pass();
        self.take(ToApply::BeginBulk { pass });
        self.answers();
    }

    fn bulk(&mut self, unit: u64, content: &[u8]) {
        let record = self.rig.record(0, 0, &[data(0, unit * UNIT_SECTORS, content.to_vec())]);
        let frame = Decoder::new().decode(&record).unwrap();
        let (pass, permit) = (self.session.pass(), self.permit());
        self.take(ToApply::BulkFrame { pass, frame, marks: 0, permit });
    }

    /// Each question that was answered, with whether anything differs.
    fn answers(&mut self) -> Vec<(u32, bool)> {
        let mut answers = Vec::new();
        while let Some(effect) = self.core.poll() {
            if let Effect::Answer(_, Body::BlocksCompared(compared)) = effect {
                answers.push((compared.request, compared.differs.iter().any(|bits| *bits != 0)));
            }
        }
        answers
    }

    fn read_bytes(&self) -> u64 {
        self.rig.disks.traffic().0
    }
}

#[test]
fn questions_wait_until_they_ask_about_16_mib_or_no_command_waits_and_are_answered_after_a_sync() {
    let mut desk = Desk::new();
    let content = vec![7; MIB];
    (0..20).for_each(|at| desk.rig.disks.overwrite(0, at * MIB as u64, &content));
    let units = (MIB / UNIT_BYTES) as u64;
    for at in 0..15 {
        desk.ask(at * units, &content);
    }
    assert_eq!(desk.read_bytes(), 0, "the disk is not read for one question at a time");
    desk.ask(15 * units, &content);
    assert_eq!(desk.read_bytes(), 16 * MIB as u64, "enough is asked to read the disk at depth");
    desk.ask(16 * units, &content);
    assert_eq!(desk.read_bytes(), 16 * MIB as u64, "the next ones are counted anew");
    assert_eq!(desk.answers(), [], "an answer waits for a sync");
    desk.core.between_commands().unwrap();
    assert_eq!(desk.read_bytes(), 17 * MIB as u64, "nothing waits any more");
    assert_eq!(desk.answers(), (1..=17).map(|request| (request, false)).collect::<Vec<_>>());
}

#[test]
fn a_question_is_answered_before_what_came_after_it_and_after_what_came_before() {
    let [old, new, newer] = [1, 2, 3].map(|value| vec![value; UNIT_BYTES]);
    // Content of a catching-up.
    let mut desk = Desk::new();
    desk.rig.disks.overwrite(0, 0, &old);
    desk.begin_bulk();
    let before = desk.ask(0, &old);
    desk.bulk(0, &new);
    let after = desk.ask(0, &new);
    let stale = desk.ask(0, &old);
    desk.core.between_commands().unwrap();
    assert_eq!(desk.answers(), [(before, false), (after, false), (stale, true)]);
    // Whatever else is done with the disks, and a block that is mended.
    let mut desk = Desk::new();
    desk.rig.disks.overwrite(0, 0, &old);
    let before = desk.ask(0, &old);
    let (disks, content) = (desk.rig.disks.clone(), new.clone());
    desk.take(ToApply::Work(Box::new(move |_: &mut Applier<_, _>| disks.overwrite(0, 0, &content))));
    let after = desk.ask(0, &new);
    let repair = RepairBlock {
        group: "web".into(),
        phase: 1,
        request: 1,
        disk: 0,
        sector: 0,
        crc: blockio::crc32(&newer[..4096]),
        data: newer[..4096].to_vec(),
    };
    let (pass, permit) = (desk.session.pass(), desk.permit());
    desk.take(ToApply::Repair { pass, repair, permit });
    let mended = desk.ask(0, &[&newer[..4096], &new[4096..]].concat());
    let stale = desk.ask(0, &new);
    desk.core.between_commands().unwrap();
    assert_eq!(desk.answers(), [(before, false), (after, false), (mended, false), (stale, true)]);
}

#[test]
fn l4_every_question_is_answered_as_of_where_it_stood_among_the_commands() {
    for seed in 0..40 {
        let mut random = Seeded::new(seed);
        let mut desk = Desk::new();
        desk.begin_bulk();
        let (mut model, mut expected, mut answered) = ([0; 4], Vec::new(), Vec::new());
        for _ in 0..60 {
            let unit = random.below(4) as usize;
            let value = random.below(3) as u8;
            let content = vec![value; UNIT_BYTES];
            match random.below(10) {
                0..=4 => expected.push((desk.ask(unit as u64, &content), model[unit] != value)),
                5..=7 => {
                    desk.bulk(unit as u64, &content);
                    model[unit] = value;
                }
                8 => desk.take(ToApply::Wake),
                _ => _ = desk.core.between_commands().unwrap(),
            }
            answered.extend(desk.answers());
        }
        desk.core.between_commands().unwrap();
        answered.extend(desk.answers());
        assert_eq!(answered, expected, "seed {seed}");
    }
}
