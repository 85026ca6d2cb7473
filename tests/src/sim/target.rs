//! The target agent's side: the real journal, applier, board, sessions and admission, driven in one thread.
//!
//! What the agent does in threads and tasks is a step here: taking a message, taking a piece of a part, a batch of the
//! journal's core, a command of the apply core, a look of the upkeep. Between two steps anything else may come. What
//! the agent's tasks only wait for (room for a frame, the end of a session) is waited for by trying again.

mod sessions;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use master_target::apply::{Applier, MemDisks};
use master_target::group::board::Board;
use master_target::group::session::Session;
use master_target::group::{ApplyCore, Effect, FRAME_KIB_MIN, Idle, JournalCore, Patience, Taken, ToApply, ToJournal};
use master_target::journal::{Fuse, Journal, MarksVoidRecord, MemVolume, Options, WhenFull};
use master_target::receive::admission::{Door, GroupRules};
use master_target::receive::{BaseNeeded, Encoders, Piece, base_needed, check, end_of, frame_of};
use master_target::recover::RecoveryState;
use master_target::recover::steps::FenceAnswer;
use master_target::retention::ThinPolicy;
use prost::Message;
use proto::frame::{Decoder, FrameError};
use proto::replication::source_message::Body;
use proto::replication::{DiskSpec, SourceMessage, TargetMessage};
use proto::time::Timestamp;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use self::sessions::{Ended, Opening};
use super::link::{Connection, at_once};
use super::trace;
use crate::random::Random;

/// What writes the disks.
pub type SimApplier = Applier<MemVolume, MemDisks>;
/// The journal.
pub type SimJournal = Journal<MemVolume>;

/// How often a full volume is looked at again before a frame is given up.
const LAG_LOOKS_MAX: u32 = 20;

/// Journal, disks and the cores of their threads, while they are open.
pub struct Works {
    journal_core: JournalCore<MemVolume>,
    apply_core: ApplyCore<MemVolume, MemDisks>,
    to_journal: VecDeque<ToJournal>,
    to_apply: VecDeque<ToApply<SimApplier>>,
    budget: Arc<Semaphore>,
    compare_budget: Arc<Semaphore>,
    lag_looks: u32,
}

/// What an image of the target keeps.
#[derive(Clone)]
pub struct TargetImage {
    files: std::collections::BTreeMap<String, Vec<u8>>,
    disks: Vec<Vec<u8>>,
    /// The note in it.
    pub note: Option<MarksVoidRecord>,
}

/// The target. See the module's documentation.
pub struct Target {
    /// Cuts the power of volume and disks in the middle of anything.
    pub fuse: Fuse,
    /// The retention volume.
    pub volume: MemVolume,
    /// The VMDKs.
    pub disks: MemDisks,
    /// What `status` shows; new with each start.
    pub board: Arc<Board>,
    /// Where sessions are let in.
    pub door: Door,
    /// The journal, while it is open.
    pub journal: Option<Arc<SimJournal>>,
    /// What works with it.
    pub works: Option<Works>,
    /// A failback that a restart found, to be gone on with.
    pub found: RecoveryState,
    /// What is chosen about the journal.
    pub options: Options,
    /// How long points are kept.
    pub retention: Duration,
    /// The note that the source's marks are void, as the journal had it when it was last seen.
    pub note: Option<MarksVoidRecord>,
    pub(super) specs: Vec<DiskSpec>,
    rules: GroupRules,
    existed: bool,
    session: Option<Session>,
    ending: Option<Ended>,
    openings: VecDeque<Opening>,
    keys: u64,
    decoder: Decoder,
    encoders: Encoders,
}

impl Target {
    /// A target with an empty volume, whose disks were made for the group, or were there before (`existed`).
    pub fn new(random: &mut Random, specs: Vec<DiskSpec>, existed: bool) -> Self {
        let fuse = Fuse::default();
        let sizes: Vec<u64> = specs.iter().map(|spec| spec.size).collect();
        let when_full = if random.percent(50) { WhenFull::DropOldest } else { WhenFull::Pause };
        let options = Options {
            generation_age: Duration::from_millis(200 + random.below(4000)),
            generation_bytes: [1 << 40, 60_000, 200_000][random.below(3) as usize],
            segment_bytes: 4000 + random.below(60_000),
            reserve_bytes: [0, 4000][random.below(2) as usize],
            when_full,
            group: "web".to_owned(),
            identity: Some([random.next_u64() as u8 | 1; 32]),
            first_touch_leaves: 64,
            ..Options::default()
        };
        Self {
            volume: MemVolume::new(random.next_u64(), fuse.clone()),
            disks: MemDisks::new(&sizes, random.next_u64(), fuse.clone()),
            fuse,
            board: board(),
            door: Door::Open,
            journal: None,
            works: None,
            found: RecoveryState::Normal,
            note: None,
            options,
            retention: Duration::from_millis(500 + random.below(6000)),
            rules: GroupRules {
                name: "web".to_owned(),
                process_server: "ps-1".to_owned(),
                disks: specs.iter().map(|spec| spec.name.clone()).collect(),
            },
            specs,
            existed,
            session: None,
            ending: None,
            openings: VecDeque::new(),
            keys: 0,
            decoder: Decoder::new(),
            encoders: Encoders::default(),
        }
    }

    /// The agent starts: journal and disks are opened. On a failure it is tried again by [`Target::mend`].
    pub fn start(&mut self, now: Timestamp) {
        self.board = board();
        self.door = Door::Open;
        match self.open_journal(now) {
            Ok(journal) => {
                self.found = RecoveryState::of(&journal);
                if self.found == RecoveryState::Normal {
                    self.open_works();
                } else {
                    self.door = Door::Fenced;
                }
            }
            Err(why) => self.board.fail(why),
        }
    }

    /// Whether the journal tells of a failback.
    #[must_use]
    pub fn found_failback(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| RecoveryState::of(journal) != RecoveryState::Normal)
    }

    fn open_journal(&mut self, now: Timestamp) -> Result<Arc<SimJournal>, String> {
        if let Some(journal) = &self.journal {
            return Ok(journal.clone());
        }
        let opened = Journal::open(self.volume.clone(), &self.specs, now, self.options.clone());
        let journal = Arc::new(opened.map_err(|error| error.to_string())?);
        self.board.set_history(journal.has_history(), journal.bulk_open());
        self.board.set_durable(journal.last_durable_set().into());
        self.journal = Some(journal.clone());
        Ok(journal)
    }

    fn open_works(&mut self) {
        let Some(journal) = self.journal.clone() else { return };
        let applier = Applier::over(journal.clone(), self.disks.clone());
        self.works = Some(Works {
            journal_core: JournalCore::new(journal.clone(), self.board.clone()),
            apply_core: ApplyCore::new(applier, journal, self.board.clone(), (self.retention, ThinPolicy::default())),
            to_journal: VecDeque::new(),
            to_apply: VecDeque::new(),
            budget: Arc::new(Semaphore::new(128)),
            // The agent waits for room; here all of the disks may be repaired and compared at once.
            compare_budget: Arc::new(Semaphore::new(1024)),
            lag_looks: 0,
        });
    }

    /// Opens what is needed where it is not open, or anew after a failure (rule J13).
    pub fn ready(&mut self, now: Timestamp) -> Result<(), String> {
        if self.board.has_failed() || self.journal.as_ref().is_some_and(|journal| journal.has_stopped()) {
            self.works = None;
            self.journal = None;
        }
        self.open_journal(now)?;
        if self.works.is_none() {
            self.open_works();
        }
        self.board.clear_failure();
        self.board.clear_shortage();
        Ok(())
    }

    /// The process is gone, with all it knew. Connections end.
    pub fn crash(&mut self, power: bool) {
        trace::step("target crashes (power)", power.into(), 0);
        self.works = None;
        self.journal = None;
        self.session = None;
        self.ending = None;
        self.openings.clear();
        if power {
            self.volume.lose_power();
            self.disks.lose_power();
        }
        self.fuse.replace();
        self.volume.fail_syncs(0);
        self.disks.fail_next(0);
    }

    /// What is on volume and disks now.
    #[must_use]
    pub fn image(&self) -> TargetImage {
        TargetImage { files: self.volume.image(), disks: self.disks.image(), note: self.note }
    }

    /// Volume and disks come back from an image. The agent must have ended.
    pub fn restore(&mut self, image: &TargetImage) {
        self.note = image.note;
        self.volume.restore(&image.files);
        self.disks.restore(&image.disks);
    }

    /// Whether the threads have nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let queues = self.works.as_ref().is_none_or(|works| works.to_journal.is_empty() && works.to_apply.is_empty());
        let applied = self.journal.as_ref().is_none_or(|journal| journal.applied_set() == journal.last_durable_set());
        queues && applied && self.openings.is_empty() && self.ending.is_none()
    }

    /// Keeps what the journal says of the source's marks.
    pub fn watch_note(&mut self) {
        if let Some(journal) = &self.journal {
            self.note = journal.marks_void();
        }
    }

    /// Takes a message of a connection.
    pub fn receive(&mut self, connection: &mut Connection, message: SourceMessage) {
        match message.body {
            Some(Body::OpenGroup(open)) => self.asked_to_open(connection, open),
            Some(Body::Heartbeat(beat)) if connection.pass.is_some() => self.board.heard_time(beat.time_us),
            Some(Body::Fenced(fenced)) if connection.pass.is_some() => self.board.fenced(FenceAnswer {
                request: fenced.request,
                last_set: fenced.last_set,
                fenced_at_us: fenced.fenced_at_us,
            }),
            Some(body) => self.ordered(connection, body),
            None => unreachable!("a message without a body does not pass its check"),
        }
    }

    fn ordered(&mut self, connection: &mut Connection, body: Body) {
        let phase = match &body {
            Body::BeginBulk(begin) => begin.phase,
            Body::SealSet(seal) => seal.phase,
            Body::CompareBlocks(compare) => compare.phase,
            Body::RepairBlock(repair) => repair.phase,
            Body::MarksVoid(void) => void.phase,
            _ => return,
        };
        // A message of any other phase belongs to a session that is over (rule L2).
        let Some(pass) = connection.pass.clone().filter(|pass| pass.about().phase == phase) else { return };
        let Some(works) = &mut self.works else { return };
        let room = |bytes: usize| reserve(&works.compare_budget, bytes).expect("the source asks for little at a time");
        match body {
            Body::BeginBulk(_) => works.to_apply.push_back(ToApply::BeginBulk { pass }),
            Body::SealSet(seal) => works.to_journal.push_back(ToJournal::Seal { pass, seal }),
            Body::MarksVoid(void) => works.to_journal.push_back(ToJournal::NoteMarks { pass, void }),
            Body::CompareBlocks(compare) => {
                let permit = room(compare.encoded_len());
                works.to_apply.push_back(ToApply::Compare { pass, compare, permit });
            }
            Body::RepairBlock(repair) => {
                let permit = room(repair.encoded_len());
                works.to_apply.push_back(ToApply::Repair { pass, repair, permit });
            }
            _ => unreachable!("looked at above"),
        }
    }

    /// Takes the next piece of a part. Gives what is wrong with it, which ends the connection.
    pub fn take_piece(&mut self, connection: &mut Connection, index: usize) -> Result<(), String> {
        let stream = &mut connection.streams[index];
        if stream.begin.is_none() {
            stream.begin = Some(at_once(stream.reader.begin()).map_err(|error| error.to_string())?);
        }
        let begin = stream.begin.clone().expect("it was read above");
        let pass = connection.pass.clone().filter(|pass| pass.about().phase == begin.phase && pass.is_valid());
        let (Some(pass), Some(works)) = (pass, &mut self.works) else {
            // Content of a phase that is over is dropped (rule L2).
            connection.streams.swap_remove(index);
            return Ok(());
        };
        if let Some((record, reply)) = &mut stream.base {
            match reply.try_recv() {
                Ok(base) => {
                    let frame = self.decoder.decode_over(record, &base);
                    if matches!(frame, Err(FrameError::Base { .. })) {
                        self.board.refuse_deltas();
                    }
                    let frame = check(&begin, &pass.about().disks, frame)?;
                    let record = self.encoders.whole(&frame).map_err(|error| error.to_string())?;
                    let bytes = record.encoded().len().max(frame.raw.len());
                    stream.held = Some((record, frame, bytes));
                    stream.base = None;
                }
                Err(TryRecvError::Empty) => return Ok(()),
                // The session is over, or the group failed.
                Err(TryRecvError::Closed) => {
                    connection.streams.swap_remove(index);
                    return Ok(());
                }
            }
        } else if stream.held.is_none() {
            match at_once(stream.reader.next()).map_err(|error| error.to_string())? {
                Some(record) => {
                    if let Some(BaseNeeded { set, ranges }) =
                        base_needed(&begin, &record).map_err(|error| error.to_string())?
                    {
                        let (reply, base) = oneshot::channel();
                        stream.base = Some((record, base));
                        works.give(Piece::Apply(ToApply::Previous { pass, set, ranges, reply }));
                        return Ok(());
                    }
                    let frame = check(&begin, &pass.about().disks, self.decoder.decode(&record))?;
                    let bytes = record.encoded().len().max(frame.raw.len());
                    stream.held = Some((record, frame, bytes));
                }
                None => {
                    let end = *stream.reader.end().expect("the part was read to its end");
                    connection.streams.swap_remove(index);
                    works.give(end_of(&begin, &pass, end));
                    return Ok(());
                }
            }
        }
        let bytes = stream.held.as_ref().map_or(0, |(_, _, bytes)| *bytes);
        // Without room it waits.
        if let Some(permit) = reserve(&works.budget, bytes)
            && let Some((record, frame, _)) = stream.held.take()
        {
            works.give(frame_of(&begin, &pass, record, frame, permit));
        }
        Ok(())
    }

    /// The journal thread takes what there is, up to a bound, and commits.
    pub fn journal_step(&mut self, random: &mut Random) {
        let Some(works) = &mut self.works else { return };
        let count = 1 + random.below(12);
        let mut done = Ok(());
        for _ in 0..count {
            let Some(command) = works.to_journal.pop_front() else { break };
            let patience = if works.lag_looks < LAG_LOOKS_MAX { Patience::Some } else { Patience::None };
            let taken = works.journal_core.take(command, patience);
            works.lag_looks = if matches!(taken, Ok(Taken::Later(_))) { works.lag_looks + 1 } else { 0 };
            match taken {
                Ok(Taken::Done) => {}
                Ok(Taken::Later(command)) => {
                    works.to_journal.push_front(command);
                    // The thread waits here; nothing is committed meanwhile.
                    return works.carry_out();
                }
                Err(error) => {
                    done = Err(error);
                    break;
                }
            }
        }
        let done = done.and_then(|()| works.journal_core.commit());
        works.carry_out();
        if let Err(error) = done {
            trace::step("the journal fails", 0, 0);
            works.journal_core.fail(&error);
        }
    }

    /// The apply thread takes a command, or looks for sets.
    pub fn apply_step(&mut self, now: Timestamp) {
        let Some(works) = &mut self.works else { return };
        let done = match works.to_apply.pop_front() {
            Some(command) => works.apply_core.take(command, now).map(|()| Idle::Look),
            None => works.apply_core.between_commands(),
        };
        works.carry_out();
        if let Err(error) = done {
            trace::step("apply fails", 0, 0);
            works.apply_core.fail(&error);
        }
    }

    /// Has something done with the disks, at once, on what writes them.
    pub fn with_applier<T: Send + 'static>(
        &mut self,
        now: Timestamp,
        work: impl FnOnce(&mut SimApplier) -> T + Send + 'static,
    ) -> Option<T> {
        let works = self.works.as_mut()?;
        let (reply, result) = std::sync::mpsc::sync_channel(1);
        works.to_apply.push_back(ToApply::Work(Box::new(move |applier| {
            let _ = reply.send(work(applier));
        })));
        while self.works.as_ref().is_some_and(|works| !works.to_apply.is_empty()) {
            self.apply_step(now);
        }
        result.try_recv().ok()
    }

    /// What the upkeep does once a second: rotation and pruning, and what a group in trouble needs.
    pub fn upkeep_step(&mut self, connections: &mut [Connection], now: Timestamp) {
        if self.board.has_failed() {
            if self.door == Door::Open {
                self.leave(connections, true);
                // All old work ends first: what is queued is dropped.
                self.works = None;
                self.journal = None;
                if !self.has_left() {
                    return;
                }
                self.mend(now);
            }
            return;
        }
        if let Some((_, needed)) = self.board.shortage() {
            self.leave(connections, true);
            if !self.has_left() {
                return;
            }
            let Some(journal) = &self.journal else { return };
            match journal.find_room(needed) {
                Ok(false) => {}
                Ok(true) => self.board.clear_shortage(),
                Err(error) => self.board.fail(format!("journal: {error}")),
            }
        }
        if let Some(works) = self.works.as_mut().filter(|_| self.door == Door::Open) {
            works.to_apply.push_back(ToApply::Maintain);
        }
    }

    fn mend(&mut self, now: Timestamp) {
        trace::step("target mends", 0, 0);
        match self.ready(now) {
            Ok(()) => {
                self.found = self.journal.as_ref().map_or(RecoveryState::Normal, |journal| RecoveryState::of(journal));
                if self.found != RecoveryState::Normal {
                    self.works = None;
                    self.door = Door::Fenced;
                }
            }
            Err(why) => {
                self.works = None;
                self.journal = None;
                self.board.still_failed(why);
            }
        }
    }
}

impl Works {
    fn give(&mut self, piece: Piece<SimApplier>) {
        match piece {
            Piece::Journal(command) => self.to_journal.push_back(command),
            Piece::Apply(command) => self.to_apply.push_back(command),
        }
    }

    fn carry_out(&mut self) {
        let asked = |works: &mut Self| works.journal_core.poll().or_else(|| works.apply_core.poll());
        while let Some(effect) = asked(self) {
            match effect {
                Effect::Answer(pass, body) if pass.is_valid() => {
                    let sent = pass.about().link.outbox.try_send(TargetMessage { body: Some(body) });
                    let is_full = matches!(sent, Err(TrySendError::Full(_)));
                    assert!(!is_full, "more answers than the outbox takes between two steps");
                }
                Effect::Answer(..) | Effect::Wake => {}
                Effect::SyncBulk(pass) => self.to_apply.push_back(ToApply::SyncBulk { pass }),
                Effect::Commit(pass) => self.to_journal.push_back(ToJournal::Commit { pass }),
            }
        }
    }
}

fn board() -> Arc<Board> {
    Arc::new(Board::new("web", "ps-1", Duration::ZERO))
}

fn reserve(budget: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let kib = bytes.div_ceil(1024).max(FRAME_KIB_MIN);
    budget.clone().try_acquire_many_owned(u32::try_from(kib).ok()?).ok()
}
