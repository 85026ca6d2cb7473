//! What the journal thread does with frames, part ends and seals, without waiting: a step for each, and one that commits.
//!
//! Nothing is acknowledged before the sync after it (rule J15). Commands of a session that has ended, and of a group that
//! takes nothing, are dropped. It checks no frame (the part stream's task did) and applies none (`apply_core` does).

use std::collections::VecDeque;
use std::sync::Arc;

use proto::endpoint::CloseCode;
use proto::ids::Phase;
use proto::replication::target_message::Body;
use proto::replication::{MarksVoid, MarksVoided, PartDurable, PartKind, SetDurable};

use super::board::Board;
use super::effect::Effect;
use super::journal_thread::ToJournal;
use super::session::Pass;
use crate::journal::{Accepted, Durable, Journal, JournalError, MarksVoidRecord, Volume};

/// Redo that waits to be applied beyond which content has to come whole, bytes: a delta costs the disks a read, for which they
/// have no time then.
const DELTA_BACKLOG_BYTES_MAX: u64 = 64 << 20;

/// What became of a command.
pub enum Taken {
    /// It was taken, or dropped.
    Done,
    /// The volume is full, and sets are still being applied: applied, their undo is no longer to be reserved, and their
    /// generation may go. To be given again in a moment.
    Later(ToJournal),
}

/// Whether a command may be handed back for want of room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It may.
    Some,
    /// It was, often enough.
    None,
}

/// What the commands since the last sync ask for.
#[derive(Default)]
struct Batch {
    parts: Vec<(u64, u32)>,
    sealed: bool,
    pass: Option<Pass>,
    /// The last durable set when it began.
    before: Option<u64>,
}

/// The core of the journal thread.
pub struct JournalCore<V> {
    journal: Arc<Journal<V>>,
    board: Arc<Board>,
    batch: Batch,
    effects: VecDeque<Effect>,
}

impl<V: Volume> JournalCore<V> {
    /// The writer of this journal.
    pub fn new(journal: Arc<Journal<V>>, board: Arc<Board>) -> Self {
        Self { journal, board, batch: Batch::default(), effects: VecDeque::new() }
    }

    /// The next thing to carry out. Call until `None` after each step.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Appends one command's content. After an error the group takes nothing more: [`JournalCore::fail`] says so.
    pub fn take(&mut self, command: ToJournal, patience: Patience) -> Result<Taken, JournalError> {
        let before = self.journal.last_durable_set().0;
        self.batch.before.get_or_insert(before);
        let taken = self.take_one(command, patience);
        if taken.is_err() {
            self.batch = Batch::default();
        }
        taken
    }

    fn take_one(&mut self, command: ToJournal, patience: Patience) -> Result<Taken, JournalError> {
        if self.board.is_shut() || !command.pass().is_valid() {
            return Ok(Taken::Done);
        }
        let pass = command.pass().clone();
        let phase = Phase(pass.about().phase);
        let taken = match &command {
            ToJournal::Frame { number, record, .. } => match self.journal.append_frame(phase, *number, record) {
                Err(JournalError::Full { .. }) if !self.board.is_shut() => {
                    if patience == Patience::Some && self.lags()? {
                        self.effects.push_back(Effect::Wake);
                        return Ok(Taken::Later(command));
                    }
                    self.journal.append_frame(phase, *number, record).map(|_| ())
                }
                done => done.map(|_| ()),
            },
            ToJournal::EndPart { begin, end, .. } => {
                let accepted = self.journal.end_part(phase, begin.number, begin.part, *end);
                accepted.map(|accepted| {
                    if accepted != Accepted::OtherPhase {
                        self.batch.parts.push((begin.number, begin.part));
                    }
                })
            }
            ToJournal::Commit { .. } => {
                self.batch.sealed = true;
                Ok(())
            }
            ToJournal::NoteMarks { void, .. } => self.note_marks(&pass, void),
            ToJournal::Seal { seal, .. } => {
                let accepted = self.journal.seal(seal.clone());
                accepted.map(|accepted| self.batch.sealed |= accepted != Accepted::OtherPhase)
            }
        };
        match taken {
            // Its connection ends, and nothing of it was taken: the group itself is well.
            Err(JournalError::Protocol { what }) => {
                tracing::error!(group = pass.about().group, what, "the source broke the protocol");
                pass.about().link.wire.close(CloseCode::Protocol, &what);
            }
            Err(error) => return Err(error),
            Ok(()) => self.batch.pass = Some(pass),
        }
        Ok(Taken::Done)
    }

    /// Notes what the source's marks are worth, and says so when it is durable.
    fn note_marks(&mut self, pass: &Pass, void: &MarksVoid) -> Result<(), JournalError> {
        let MarksVoid { number, valid, marks, .. } = *void;
        let note = MarksVoidRecord { source_start: pass.about().life.start, number };
        let counter = self.journal.note_marks(note, valid, marks)?.into();
        let (group, phase) = (pass.about().group.clone(), pass.about().phase);
        if valid {
            tracing::info!(group, "the source's write-intent marks count again");
        } else {
            tracing::info!(group, "the source can't write its write-intent marks: they are void until it can");
        }
        let body = Body::MarksVoided(MarksVoided { group, phase, number, valid, counter });
        self.effects.push_back(Effect::Answer(pass.clone(), body));
        Ok(())
    }

    /// Whether something durable is not applied yet.
    fn lags(&self) -> Result<bool, JournalError> {
        let durable = self.journal.sync()?;
        Ok(self.journal.applied_set().0 < durable.last_set)
    }

    /// Syncs what was taken since the last call, once (group commit), and acknowledges what has become durable.
    pub fn commit(&mut self) -> Result<(), JournalError> {
        let batch = std::mem::take(&mut self.batch);
        let is_wanted = batch.sealed || !batch.parts.is_empty();
        let Some(pass) = batch.pass.as_ref().filter(|_| is_wanted) else { return Ok(()) };
        let durable = self.journal.sync()?;
        self.acknowledge(pass, &batch, &durable);
        if durable.needs_bulk_sync {
            self.effects.push_back(Effect::SyncBulk(pass.clone()));
        }
        Ok(())
    }

    fn acknowledge(&mut self, pass: &Pass, batch: &Batch, durable: &Durable) {
        let about = pass.about();
        let counter = durable.counter;
        for &(number, part) in &batch.parts {
            let body = Body::PartDurable(PartDurable {
                group: about.group.clone(),
                phase: about.phase,
                kind: PartKind::Ordered.into(),
                number,
                part,
                counter,
            });
            self.effects.push_back(Effect::Answer(pass.clone(), body));
        }
        let last_set = durable.last_set;
        // The last part can come after its seal, and a seal can come again for a set that is durable.
        if batch.sealed || batch.before.is_some_and(|before| last_set > before) {
            self.board.set_durable(last_set);
            self.board.set_history(self.journal.has_history(), self.journal.bulk_open());
            let body = Body::SetDurable(SetDurable {
                group: about.group.clone(),
                phase: about.phase,
                number: last_set,
                counter,
                takes_deltas: self.board.takes_deltas() && self.journal.unapplied_bytes() < DELTA_BACKLOG_BYTES_MAX,
            });
            self.effects.push_back(Effect::Answer(pass.clone(), body));
            self.effects.push_back(Effect::Wake);
        }
    }

    /// A step has failed: the group takes nothing more. Where only room is missing, the journal stays as it is until there
    /// is some (rule J10); else it is opened again before anything else is written (rule J13).
    pub fn fail(&mut self, error: &JournalError) {
        self.batch = Batch::default();
        match error {
            JournalError::Full { needed, .. } => self.board.run_short(error.to_string(), *needed),
            error => self.board.fail(format!("journal: {error}")),
        }
    }
}
