//! The thread that writes a group's disks: durable sets from the journal, and bulk content as it arrives.
//!
//! It is the only one that does, so that order is the order of its commands: bulk opens when everything durable is
//! applied (rule J4), a set that closes a bulk is sealed after the disks are synced, and a failback works here too.
//! It looks for new sets whenever no command waits.
//!
//! After an error nothing more is written: the group fails until it is opened again. Where only room for undo is missing,
//! the session ends, and what is durable is tried again every second.

use std::sync::Arc;

use proto::digest::Differs;
use proto::endpoint::CloseCode;
use proto::frame::DecodedFrame;
use proto::replication::target_message::Body;
use proto::replication::{BlockRepaired, BlocksCompared, BulkBegun, CompareBlocks, PartDurable, PartKind, RepairBlock};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::board::Board;
use super::journal_thread::ToJournal;
use super::session::Pass;
use super::works::{GroupApplier, GroupJournal};
use crate::agent::Clock;
use crate::apply::{ApplyError, Progress};
use crate::journal::JournalError;
use crate::recover::RecoveryState;
use crate::retention::{ThinPolicy, time_for_ages};

/// Bulk content gathered for one batch of writes, bytes. Enough to keep a disk busy at depth.
const BULK_BATCH_BYTES: u64 = 8 << 20;
/// Bulk content written before the disks are synced and it is acknowledged, bytes: what a lost connection sends again.
const BULK_UNSYNCED_BYTES_MAX: u64 = 64 << 20;
/// Comparisons that are answered with one sync, where content of a catching-up comes in between.
const COMPARED_MAX: usize = 64;

/// Work for the thread that only its caller knows.
pub type Work = Box<dyn FnOnce(&mut GroupApplier) + Send>;

/// What the thread is asked to do.
pub enum ToApply {
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
    Work(Work),
}

/// The thread's state.
pub struct ApplyThread {
    /// Writes the disks.
    pub applier: GroupApplier,
    /// The journal of the group.
    pub journal: Arc<GroupJournal>,
    /// Commands.
    pub commands: mpsc::Receiver<ToApply>,
    /// For commits that had to wait for a sync; weak, since the journal thread in turn can reach this one.
    pub to_journal: mpsc::WeakSender<ToJournal>,
    /// What others see of the group.
    pub board: Arc<Board>,
    /// For points' ages.
    pub clock: Clock,
    /// How long points are kept.
    pub retention: std::time::Duration,
    /// Which points stay as they grow older.
    pub thin: ThinPolicy,
    /// Bulk content on its way.
    pub bulk: Bulk,
}

/// Bulk content between arrival and acknowledgement.
#[derive(Default)]
pub struct Bulk {
    frames: Vec<DecodedFrame>,
    frames_bytes: u64,
    /// The highest number of commits of the source's marks that one of them came with.
    marks: u64,
    /// What the frames hold: their memory, and the session that must not end while they may still be written.
    held: Vec<(Pass, OwnedSemaphorePermit)>,
    ended: Vec<(Pass, u32)>,
    /// Answers to comparisons that wait for the next sync, each with the session and the request.
    compared: Vec<(Pass, u32, Differs)>,
    /// Blocks that were mended, to be acknowledged after the next sync.
    repaired: Vec<(Pass, u32)>,
    unsynced_bytes: u64,
}

/// What the thread does when no command waits.
#[derive(PartialEq, Eq)]
enum Idle {
    Look,
    Sleep,
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
                    self.take(command)
                }
                Err(TryRecvError::Empty) => self.between_commands().map(|next| idle = next),
                Err(TryRecvError::Disconnected) => return self.end(),
            };
            if let Err(error) = done {
                self.fail(&error);
                idle = Idle::Sleep;
            }
        }
    }

    /// Makes the applied mark durable, which saves the next start applying sets again.
    fn end(&self) {
        if !self.board.has_failed()
            && let Err(error) = self.journal.sync_marks()
        {
            tracing::warn!(%error, "the applied mark is not saved; sets are applied again at the next start");
        }
    }

    fn take(&mut self, command: ToApply) -> Result<(), ApplyError> {
        match command {
            ToApply::Work(work) => {
                work(&mut self.applier);
                Ok(())
            }
            _ if self.board.has_failed() => Ok(()),
            ToApply::Wake => Ok(()),
            ToApply::Maintain => self.maintain(),
            _ if self.board.is_shut() => Ok(()),
            ToApply::BulkFrame { pass, frame, marks, permit } => self.bulk_frame(pass, frame, marks, permit),
            ToApply::BulkEnd { pass, part } => {
                self.bulk.ended.push((pass, part));
                Ok(())
            }
            ToApply::Compare { pass, compare, permit } => {
                let done = self.compare(pass, &compare);
                drop(permit);
                done
            }
            ToApply::Repair { pass, repair, permit } => {
                let done = self.repair(pass, repair);
                drop(permit);
                done
            }
            ToApply::BeginBulk { pass } => self.begin_bulk(&pass),
            ToApply::SyncBulk { pass } => self.sync_bulk(pass),
        }
    }

    fn between_commands(&mut self) -> Result<Idle, ApplyError> {
        if self.board.has_failed() {
            self.bulk = Bulk::default();
            return Ok(Idle::Sleep);
        }
        self.settle_bulk()?;
        let applied = self.applier.apply_next()?;
        // Looked at every second too, since maintenance is due then: also what a new session has to be told.
        self.board.tell_missing(|| self.journal.take_untold_damage());
        match applied {
            Progress::Applied { bytes, .. } => {
                self.board.add_applied(bytes);
                Ok(Idle::Look)
            }
            Progress::Idle => Ok(Idle::Sleep),
        }
    }

    fn bulk_frame(
        &mut self,
        pass: Pass,
        frame: DecodedFrame,
        marks: u64,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), ApplyError> {
        if !pass.is_valid() {
            return Ok(());
        }
        if !self.journal.bulk_open() {
            let what = "content of a catching-up came while none is open: the process-server is damaged";
            pass.about().link.wire.close(CloseCode::Protocol, what);
            return Ok(());
        }
        self.bulk.frames_bytes += frame.raw.len() as u64;
        self.bulk.frames.push(frame);
        self.bulk.marks = self.bulk.marks.max(marks);
        self.bulk.held.push((pass, permit));
        if self.bulk.frames_bytes >= BULK_BATCH_BYTES {
            self.write_bulk()?;
        }
        if self.bulk.unsynced_bytes >= BULK_UNSYNCED_BYTES_MAX {
            self.settle_bulk()?;
        }
        Ok(())
    }

    fn write_bulk(&mut self) -> Result<(), ApplyError> {
        if self.bulk.frames.is_empty() {
            return Ok(());
        }
        let frames = std::mem::take(&mut self.bulk.frames);
        self.journal.raise_marks(self.bulk.marks)?;
        let written = self.applier.apply_bulk(&frames)?;
        self.board.add_applied(written);
        self.bulk.unsynced_bytes += std::mem::take(&mut self.bulk.frames_bytes);
        self.bulk.held.clear();
        Ok(())
    }

    /// Compares with the disks as they are with all that came before. "Same" says that the content is there durably, so
    /// the answer waits for a sync (rule L4).
    fn compare(&mut self, pass: Pass, compare: &CompareBlocks) -> Result<(), ApplyError> {
        if !pass.is_valid() {
            return Ok(());
        }
        self.write_bulk()?;
        self.apply_all()?;
        match self.applier.compare(&compare.runs) {
            Ok(differs) => self.bulk.compared.push((pass, compare.request, differs)),
            Err(ApplyError::Journal(JournalError::Protocol { what })) => {
                tracing::error!(group = pass.about().group, what, "the source broke the protocol");
                pass.about().link.wire.close(CloseCode::Protocol, &what);
            }
            Err(error) => return Err(error),
        }
        if self.bulk.compared.len() >= COMPARED_MAX { self.settle_bulk() } else { Ok(()) }
    }

    /// Writes a mended block over what everything durable left there. The source holds back all newer content of it until
    /// this is acknowledged, so nothing newer can be on the disk.
    fn repair(&mut self, pass: Pass, repair: RepairBlock) -> Result<(), ApplyError> {
        if !pass.is_valid() {
            return Ok(());
        }
        if self.journal.bulk_open() {
            pass.about().link.wire.close(CloseCode::Protocol, "a block is to be repaired in a catching-up");
            return Ok(());
        }
        self.apply_all()?;
        match self.applier.repair(repair.disk, repair.sector, repair.data.into(), repair.crc) {
            Ok(()) => self.bulk.repaired.push((pass, repair.request)),
            Err(ApplyError::Journal(JournalError::Protocol { what })) => {
                tracing::error!(group = pass.about().group, what, "the source broke the protocol");
                pass.about().link.wire.close(CloseCode::Protocol, &what);
            }
            Err(error) => return Err(error),
        }
        if self.bulk.repaired.len() >= COMPARED_MAX { self.settle_bulk() } else { Ok(()) }
    }

    /// Writes, syncs and acknowledges all bulk content there is, and answers comparisons.
    fn settle_bulk(&mut self) -> Result<(), ApplyError> {
        self.write_bulk()?;
        let Bulk { ended, compared, repaired, .. } = &self.bulk;
        if ended.is_empty() && compared.is_empty() && repaired.is_empty() {
            return Ok(());
        }
        let synced = if repaired.is_empty() { self.applier.durable_counter() } else { self.applier.sync_bulk() };
        let counter = synced?.into();
        self.bulk.unsynced_bytes = 0;
        for (pass, request, differs) in self.bulk.compared.drain(..) {
            let (group, phase) = (pass.about().group.clone(), pass.about().phase);
            let differs = differs.into_bits();
            pass.answer(Body::BlocksCompared(BlocksCompared { group, phase, request, differs, counter }));
        }
        for (pass, request) in self.bulk.repaired.drain(..) {
            let (group, phase) = (pass.about().group.clone(), pass.about().phase);
            pass.answer(Body::BlockRepaired(BlockRepaired { group, phase, request, counter }));
        }
        for (pass, part) in self.bulk.ended.drain(..) {
            let about = pass.about();
            pass.answer(Body::PartDurable(PartDurable {
                group: about.group.clone(),
                phase: about.phase,
                kind: PartKind::Bulk.into(),
                number: 0,
                part,
                counter,
            }));
        }
        Ok(())
    }

    fn begin_bulk(&mut self, pass: &Pass) -> Result<(), ApplyError> {
        if !pass.is_valid() {
            return Ok(());
        }
        self.settle_bulk()?;
        self.apply_all()?;
        self.journal.begin_bulk(self.clock.wall())?;
        self.board.set_history(self.journal.has_history(), self.journal.bulk_open());
        let about = pass.about();
        pass.answer(Body::BulkBegun(BulkBegun { group: about.group.clone(), phase: about.phase }));
        Ok(())
    }

    fn apply_all(&mut self) -> Result<(), ApplyError> {
        while let Progress::Applied { bytes, .. } = self.applier.apply_next_at_once()? {
            self.board.add_applied(bytes);
        }
        Ok(())
    }

    fn sync_bulk(&mut self, pass: Pass) -> Result<(), ApplyError> {
        if !pass.is_valid() {
            return Ok(());
        }
        self.settle_bulk()?;
        self.applier.sync_bulk()?;
        // Without a journal thread the group is being closed, and its session with it.
        if let Some(to_journal) = self.to_journal.upgrade() {
            let _ = to_journal.blocking_send(ToJournal::Commit { pass });
        }
        Ok(())
    }

    fn maintain(&mut self) -> Result<(), ApplyError> {
        let now = self.clock.wall();
        self.journal.rotate_if_due(now)?;
        // From the begin of a failback on no point may go: it could be the chosen one (rule J10).
        if RecoveryState::of(&self.journal) == RecoveryState::Normal {
            let newest = self.journal.newest_point().map(|point| point.time);
            let age_now = time_for_ages(now, newest, self.board.source_time());
            self.journal.prune(age_now, self.retention)?;
            self.journal.thin(age_now, &self.thin)?;
        }
        Ok(())
    }

    fn fail(&mut self, error: &ApplyError) {
        match error {
            ApplyError::Journal(JournalError::Full { needed, .. }) => self.board.run_short(error.to_string(), *needed),
            error => self.board.fail(format!("apply: {error}")),
        }
        // The source sends again what was not acknowledged.
        self.bulk = Bulk::default();
    }
}
