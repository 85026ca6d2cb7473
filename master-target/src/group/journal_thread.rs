//! The thread that writes a group's journal: frames, part ends and seals in, durable acknowledgements out.
//!
//! It takes what has queued up meanwhile, appends it all, syncs once (group commit) and acknowledges what has become
//! durable. It checks no frame (the part stream's task did) and applies none (the apply thread does).
//!
//! Nothing is acknowledged before the sync after it (rule J15). After an error it takes nothing more: the group fails,
//! its session ends, and the journal is opened again before anything else is written (rule J13). Where only room is
//! missing, the session ends as well, and the journal stays as it is until there is some (rule J10).

use std::sync::Arc;
use std::time::Duration;

use proto::endpoint::CloseCode;
use proto::ids::Phase;
use proto::record::Record;
use proto::replication::target_message::Body;
use proto::replication::{MarksVoid, MarksVoided, PartBegin, PartDurable, PartEnd, PartKind, SealSet, SetDurable};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::apply_thread::ToApply;
use super::board::Board;
use super::session::Pass;
use super::works::GroupJournal;
use crate::journal::{Accepted, Durable, JournalError, MarksVoidRecord};

/// Commands taken before a sync, so that an acknowledgement is never far away under a flood.
const BATCH_COMMANDS_MAX: usize = 1024;

/// How often a full volume is looked at again while sets are still being applied: applied, their undo is no longer to be
/// reserved, and their generation may go.
const LAG_LOOKS_MAX: u32 = 200;
/// Time between two looks.
const LAG_LOOK_EVERY: Duration = Duration::from_millis(10);

/// What the thread is asked to do.
pub enum ToJournal {
    /// Append a frame of an ordered part, as received.
    Frame {
        /// The session it came in.
        pass: Pass,
        /// The part it belongs to.
        number: u64,
        /// The frame, its CRCs checked.
        record: Record,
        /// Its share of the group's memory for receiving.
        permit: OwnedSemaphorePermit,
    },
    /// All frames of the part have been given.
    EndPart {
        /// The session it came in.
        pass: Pass,
        /// The part.
        begin: PartBegin,
        /// What its end says, checked.
        end: PartEnd,
    },
    /// The set has these parts and no more.
    Seal {
        /// The session it came in.
        pass: Pass,
        /// The seal.
        seal: SealSet,
    },
    /// Note durably what the source's write-intent marks are worth.
    NoteMarks {
        /// The session it came in.
        pass: Pass,
        /// What the source says of them.
        void: MarksVoid,
    },
    /// The disks are synced: the set that closes the bulk can be committed.
    Commit {
        /// The session of that set.
        pass: Pass,
    },
}

impl ToJournal {
    fn pass(&self) -> &Pass {
        match self {
            Self::Frame { pass, .. }
            | Self::EndPart { pass, .. }
            | Self::Seal { pass, .. }
            | Self::NoteMarks { pass, .. }
            | Self::Commit { pass } => pass,
        }
    }
}

/// The thread's state.
pub struct JournalThread {
    /// The journal of the group.
    pub journal: Arc<GroupJournal>,
    /// Commands.
    pub commands: mpsc::Receiver<ToJournal>,
    /// To tell the apply thread that there is something.
    pub to_apply: mpsc::Sender<ToApply>,
    /// What others see of the group.
    pub board: Arc<Board>,
}

/// What the commands since the last sync ask for.
#[derive(Default)]
struct Batch {
    parts: Vec<(u64, u32)>,
    sealed: bool,
    pass: Option<Pass>,
}

impl Batch {
    fn wants_sync(&self) -> bool {
        self.sealed || !self.parts.is_empty()
    }
}

impl JournalThread {
    /// Works until every sender of commands is gone.
    pub fn run(mut self) {
        while let Some(first) = self.commands.blocking_recv() {
            match self.batch(first) {
                Ok(()) => {}
                Err(error @ JournalError::Full { needed, .. }) => self.board.run_short(error.to_string(), needed),
                Err(error) => self.board.fail(format!("journal: {error}")),
            }
        }
    }

    fn batch(&mut self, first: ToJournal) -> Result<(), JournalError> {
        let mut batch = Batch::default();
        let before = self.journal.last_durable_set().0;
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(command) = next.take() {
            self.take(command, &mut batch)?;
            taken += 1;
            if taken < BATCH_COMMANDS_MAX {
                next = self.commands.try_recv().ok();
            }
        }
        let Some(pass) = batch.pass.as_ref().filter(|_| batch.wants_sync()) else { return Ok(()) };
        let durable = self.journal.sync()?;
        self.acknowledge(pass, &batch, before, &durable);
        // The thread that syncs the disks may wait for room here, so this must not wait for room there.
        if durable.needs_bulk_sync && self.to_apply.try_send(ToApply::SyncBulk { pass: pass.clone() }).is_err() {
            pass.about().link.wire.close(CloseCode::Protocol, "too much content at once: send it again");
        }
        Ok(())
    }

    /// Appends one command's content. What belongs to a session that has ended is dropped.
    fn take(&mut self, command: ToJournal, batch: &mut Batch) -> Result<(), JournalError> {
        if self.board.is_shut() || !command.pass().is_valid() {
            return Ok(());
        }
        let pass = command.pass().clone();
        let phase = Phase(pass.about().phase);
        let taken = match command {
            ToJournal::Frame { number, record, .. } => self.append(phase, number, &record),
            ToJournal::EndPart { begin, end, .. } => {
                self.journal.end_part(phase, begin.number, begin.part, end).map(|accepted| {
                    if accepted != Accepted::OtherPhase {
                        batch.parts.push((begin.number, begin.part));
                    }
                })
            }
            ToJournal::Commit { .. } => {
                batch.sealed = true;
                Ok(())
            }
            ToJournal::NoteMarks { void, .. } => self.note_marks(&pass, &void),
            ToJournal::Seal { seal, .. } => {
                self.journal.seal(seal).map(|accepted| batch.sealed |= accepted != Accepted::OtherPhase)
            }
        };
        match taken {
            // Its connection ends, and nothing of it was taken: the group itself is well.
            Err(JournalError::Protocol { what }) => {
                tracing::error!(group = pass.about().group, what, "the source broke the protocol");
                pass.about().link.wire.close(CloseCode::Protocol, &what);
                Ok(())
            }
            Err(error) => Err(error),
            Ok(()) => {
                batch.pass = Some(pass);
                Ok(())
            }
        }
    }

    /// Notes what the source's marks are worth, and says so when it is durable.
    fn note_marks(&self, pass: &Pass, void: &MarksVoid) -> Result<(), JournalError> {
        let MarksVoid { number, valid, marks, .. } = *void;
        let note = MarksVoidRecord { source_start: pass.about().life.start, number };
        let counter = self.journal.note_marks(note, valid, marks)?.into();
        let (group, phase) = (pass.about().group.clone(), pass.about().phase);
        if valid {
            tracing::info!(group, "the source's write-intent marks count again");
        } else {
            tracing::info!(group, "the source can't write its write-intent marks: they are void until it can");
        }
        pass.answer(Body::MarksVoided(MarksVoided { group, phase, number, valid, counter }));
        Ok(())
    }

    /// Appends a frame; on a full volume only once what came before it is applied, or can't be.
    fn append(&self, phase: Phase, number: u64, record: &Record) -> Result<(), JournalError> {
        for _ in 0..LAG_LOOKS_MAX {
            match self.journal.append_frame(phase, number, record) {
                Err(JournalError::Full { .. }) if !self.board.is_shut() => {}
                done => return done.map(|_| ()),
            }
            let durable = self.journal.sync()?;
            if self.journal.applied_set().0 >= durable.last_set {
                break;
            }
            let _ = self.to_apply.try_send(ToApply::Wake);
            std::thread::sleep(LAG_LOOK_EVERY);
        }
        self.journal.append_frame(phase, number, record).map(|_| ())
    }

    fn acknowledge(&self, pass: &Pass, batch: &Batch, before: u64, durable: &Durable) {
        let about = pass.about();
        let counter = durable.counter;
        for &(number, part) in &batch.parts {
            pass.answer(Body::PartDurable(PartDurable {
                group: about.group.clone(),
                phase: about.phase,
                kind: PartKind::Ordered.into(),
                number,
                part,
                counter,
            }));
        }
        let last_set = durable.last_set;
        // The last part can come after its seal, and a seal can come again for a set that is durable.
        if batch.sealed || last_set > before {
            self.board.set_durable(last_set);
            self.board.set_history(self.journal.has_history(), self.journal.bulk_open());
            pass.answer(Body::SetDurable(SetDurable {
                group: about.group.clone(),
                phase: about.phase,
                number: last_set,
                counter,
            }));
            // A full queue means that the apply thread is awake and will look for sets anyway.
            let _ = self.to_apply.try_send(ToApply::Wake);
        }
    }
}
