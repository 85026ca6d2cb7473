//! The thread that writes a group's disks: durable sets from the journal, and bulk content as it arrives.
//!
//! It is the only one that does, so that order is the order of its commands. It gives them to `apply_core`, lets it look
//! for new sets whenever no command waits, and carries out what it asks for. It waits; it decides nothing.

use proto::frame::DecodedFrame;
use proto::replication::{CompareBlocks, RepairBlock};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::apply_core::{ApplyCore, Idle};
use super::effect::Effect;
use super::journal_thread::ToJournal;
use super::session::Pass;
use super::target_disks::TargetDisks;
use super::works::GroupApplier;
use crate::agent::Clock;
use crate::journal::DirVolume;

/// Work for the thread that only its caller knows.
pub type Work<A = GroupApplier> = Box<dyn FnOnce(&mut A) + Send>;

/// What the thread is asked to do; `A` writes the disks.
pub enum ToApply<A = GroupApplier> {
    /// Look for sets to apply.
    Wake,
    /// Write content of a bulk part.
    BulkFrame {
        /// The session it came in.
        pass: Pass,
        /// The content, checked.
        frame: DecodedFrame,
        /// How far the source's write-intent marks had come when it was read.
        marks: u64,
        /// Its share of the group's memory for receiving.
        permit: OwnedSemaphorePermit,
    },
    /// All frames of the bulk part have been given.
    BulkEnd {
        /// The session it came in.
        pass: Pass,
        /// Number of the part.
        part: u32,
    },
    /// Say which blocks the disks hold as well, with all that is durable on them.
    Compare {
        /// The session that asks.
        pass: Pass,
        /// What it asks.
        compare: CompareBlocks,
        /// Its share of the group's memory for comparing.
        permit: OwnedSemaphorePermit,
    },
    /// Write a block that a verification found damaged, without undo (rule J11).
    Repair {
        /// The session that mends it.
        pass: Pass,
        /// What belongs there.
        repair: RepairBlock,
        /// Its share of the group's memory for comparing.
        permit: OwnedSemaphorePermit,
    },
    /// Read what a set and those before it left there: the base of deltas of a later one.
    Previous {
        /// The session of the later set.
        pass: Pass,
        /// The set; acknowledged.
        set: u64,
        /// Where: disk, first sector, sectors; as they stand in a checked header.
        ranges: Vec<(u32, u64, u32)>,
        /// Takes the content, one range after the other. Dropped where the session is over or the group failed.
        reply: oneshot::Sender<Vec<u8>>,
    },
    /// Apply and sync everything, open a bulk generation, say so.
    BeginBulk {
        /// The session that asks.
        pass: Pass,
    },
    /// Sync the disks, then let the journal commit the set that closes the bulk (REVIEW K6).
    SyncBulk {
        /// The session of that set.
        pass: Pass,
    },
    /// Rotate, prune and thin what is due.
    Maintain,
    /// Something else with the disks.
    Work(Work<A>),
}

/// The thread's state.
pub struct ApplyThread {
    /// Decides.
    pub core: ApplyCore<DirVolume, TargetDisks>,
    /// Commands.
    pub commands: mpsc::Receiver<ToApply>,
    /// For commits that had to wait for a sync; weak, since the journal thread in turn can reach this one.
    pub to_journal: mpsc::WeakSender<ToJournal>,
    /// For points' ages.
    pub clock: Clock,
}

impl ApplyThread {
    /// Works until every sender of commands is gone.
    pub fn run(mut self) {
        let mut idle = Idle::Look;
        loop {
            let command = match idle {
                Idle::Sleep => self.commands.blocking_recv().ok_or(TryRecvError::Disconnected),
                Idle::Look => self.commands.try_recv(),
            };
            let done = match command {
                Ok(command) => {
                    idle = Idle::Look;
                    self.core.take(command, self.clock.wall())
                }
                Err(TryRecvError::Empty) => self.core.between_commands().map(|next| idle = next),
                Err(TryRecvError::Disconnected) => return self.core.end(),
            };
            self.carry_out();
            if let Err(error) = done {
                self.core.fail(&error);
                idle = Idle::Sleep;
            }
        }
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.core.poll() {
            match effect {
                Effect::Answer(pass, body) => pass.answer(body),
                Effect::Commit(pass) => {
                    // Without a journal thread the group is being closed, and its session with it.
                    if let Some(to_journal) = self.to_journal.upgrade() {
                        let _ = to_journal.blocking_send(ToJournal::Commit { pass });
                    }
                }
                Effect::Wake | Effect::SyncBulk(_) => unreachable!("this is the thread that would be asked"),
            }
        }
    }
}
