//! The thread that writes a group's journal: frames, part ends and seals in, durable acknowledgements out.
//!
//! It gives `journal_core` what has queued up meanwhile, has it commit once, and carries out what it asks for. It waits,
//! for commands and on a full volume; it decides nothing.

use std::time::Duration;

use proto::endpoint::CloseCode;
use proto::record::Record;
use proto::replication::{MarksVoid, PartBegin, PartEnd, SealSet};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::apply_thread::ToApply;
use super::effect::Effect;
use super::journal_core::{JournalCore, Patience, Taken};
use super::session::Pass;
use crate::journal::{DirVolume, JournalError};

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
    pub(super) fn pass(&self) -> &Pass {
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
    /// Decides.
    pub core: JournalCore<DirVolume>,
    /// Commands.
    pub commands: mpsc::Receiver<ToJournal>,
    /// To tell the apply thread that there is something.
    pub to_apply: mpsc::Sender<ToApply>,
}

impl JournalThread {
    /// Works until every sender of commands is gone.
    pub fn run(mut self) {
        while let Some(first) = self.commands.blocking_recv() {
            if let Err(error) = self.batch(first) {
                self.core.fail(&error);
            }
        }
    }

    fn batch(&mut self, first: ToJournal) -> Result<(), JournalError> {
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(command) = next.take() {
            self.take(command)?;
            taken += 1;
            if taken < BATCH_COMMANDS_MAX {
                next = self.commands.try_recv().ok();
            }
        }
        let done = self.core.commit();
        self.carry_out();
        done
    }

    /// Has one command taken; on a full volume only once what came before it is applied, or can't be.
    fn take(&mut self, mut command: ToJournal) -> Result<(), JournalError> {
        for look in 0..=LAG_LOOKS_MAX {
            let patience = if look < LAG_LOOKS_MAX { Patience::Some } else { Patience::None };
            let taken = self.core.take(command, patience);
            self.carry_out();
            match taken? {
                Taken::Done => break,
                Taken::Later(again) => command = again,
            }
            std::thread::sleep(LAG_LOOK_EVERY);
        }
        Ok(())
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.core.poll() {
            match effect {
                Effect::Answer(pass, body) => pass.answer(body),
                // A full queue means that the apply thread is awake and will look for sets anyway.
                Effect::Wake => drop(self.to_apply.try_send(ToApply::Wake)),
                // The thread that syncs the disks may wait for room here, so this must not wait for room there.
                Effect::SyncBulk(pass) => {
                    if self.to_apply.try_send(ToApply::SyncBulk { pass: pass.clone() }).is_err() {
                        pass.about().link.wire.close(CloseCode::Protocol, "too much content at once: send it again");
                    }
                }
                Effect::Commit(_) => unreachable!("the journal's core is what commits"),
            }
        }
    }
}
