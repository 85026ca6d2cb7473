//! What the apply thread does with the disks, without waiting: a step for each command, and one between commands.
//!
//! Bulk opens when everything durable is applied (rule J4), a set that closes a bulk is sealed after the disks are synced,
//! and a failback works here too. Commands of a session that has ended are dropped.
//!
//! After an error nothing more is written: the group fails until it is opened again. Where only room for undo is missing,
//! the session ends, and what is durable is tried again every second.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use proto::digest::Differs;
use proto::endpoint::CloseCode;
use proto::frame::DecodedFrame;
use proto::replication::target_message::Body;
use proto::replication::{
    BlockRepaired, BlocksCompared, BulkBegun, CompareBlocks, CompareRun, PartDurable, PartKind, RepairBlock,
};
use proto::time::Timestamp;
use tokio::sync::OwnedSemaphorePermit;

use super::apply_thread::ToApply;
use super::board::Board;
use super::effect::Effect;
use super::session::Pass;
use crate::apply::{Applier, ApplyError, GroupDisks, Progress};
use crate::journal::limits::SECTOR_BYTES;
use crate::journal::{Journal, JournalError, Volume};
use crate::recover::RecoveryState;
use crate::retention::{ThinPolicy, time_for_ages};

/// Bulk content gathered for one batch of writes, bytes. Enough to keep a disk busy at depth.
const BULK_BATCH_BYTES: u64 = 8 << 20;
/// Bulk content written before the disks are synced and it is acknowledged, bytes: what a lost connection sends again.
const BULK_UNSYNCED_BYTES_MAX: u64 = 64 << 20;
/// Bytes that questions ask about before they are compared together, so that the disks are read at depth and digested
/// meanwhile. Where fewer wait, these are compared at once.
const ASKED_BYTES_MAX: u64 = 16 << 20;
/// Comparisons that are answered with one sync, where content of a catching-up comes in between.
const COMPARED_MAX: usize = 64;

/// Bulk content between arrival and acknowledgement.
#[derive(Default)]
struct Bulk {
    frames: Vec<DecodedFrame>,
    frames_bytes: u64,
    /// The highest number of commits of the source's marks that one of them came with.
    marks: u64,
    /// What the frames hold: their memory, and the session that must not end while they may still be written.
    held: Vec<(Pass, OwnedSemaphorePermit)>,
    ended: Vec<(Pass, u32)>,
    /// Comparisons that are to be made: before anything that was asked for after them.
    asked: Vec<Asked>,
    asked_bytes: u64,
    /// Answers to comparisons that wait for the next sync, each with the session and the request.
    compared: Vec<(Pass, u32, Differs)>,
    /// Blocks that were mended, to be acknowledged after the next sync.
    repaired: Vec<(Pass, u32)>,
    unsynced_bytes: u64,
}

/// A comparison that was asked for.
struct Asked {
    pass: Pass,
    compare: CompareBlocks,
    _permit: OwnedSemaphorePermit,
}

/// What the thread does when no command waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Looks for sets once more.
    Look,
    /// Waits for a command.
    Sleep,
}

/// The core of the apply thread.
pub struct ApplyCore<V, D> {
    applier: Applier<V, D>,
    journal: Arc<Journal<V>>,
    board: Arc<Board>,
    retention: Duration,
    thin: ThinPolicy,
    bulk: Bulk,
    effects: VecDeque<Effect>,
}

impl<V: Volume, D: GroupDisks> ApplyCore<V, D> {
    /// The writer of these disks. How long points are kept, and which of them stay as they grow older, is `kept`.
    pub fn new(
        applier: Applier<V, D>,
        journal: Arc<Journal<V>>,
        board: Arc<Board>,
        kept: (Duration, ThinPolicy),
    ) -> Self {
        let (retention, thin) = kept;
        Self { applier, journal, board, retention, thin, bulk: Bulk::default(), effects: VecDeque::new() }
    }

    /// The next thing to carry out. Call until `None` after each step.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Makes the applied mark durable, which saves the next start applying sets again.
    pub fn end(&self) {
        if !self.board.has_failed()
            && let Err(error) = self.journal.sync_marks()
        {
            tracing::warn!(%error, "the applied mark is not saved; sets are applied again at the next start");
        }
    }

    /// Does what a command asks for. `now` is the wall clock.
    pub fn take(&mut self, command: ToApply<Applier<V, D>>, now: Timestamp) -> Result<(), ApplyError> {
        if !matches!(command, ToApply::Compare { .. }) && !self.board.has_failed() {
            // In the order of the commands: what comes now may change the disks.
            self.compare_asked()?;
        }
        match command {
            ToApply::Work(work) => {
                work(&mut self.applier);
                // Whoever had it done hears of a failure, and repeats it; that must find all of it opened anew (rule J13).
                self.applier.check()
            }
            _ if self.board.has_failed() => Ok(()),
            ToApply::Wake => Ok(()),
            ToApply::Maintain => self.maintain(now),
            _ if self.board.is_shut() => Ok(()),
            ToApply::BulkFrame { pass, frame, marks, permit } => self.bulk_frame(pass, frame, marks, permit),
            ToApply::BulkEnd { pass, part } => {
                self.bulk.ended.push((pass, part));
                Ok(())
            }
            ToApply::Compare { pass, compare, permit } => self.ask(Asked { pass, compare, _permit: permit }),
            ToApply::Repair { pass, repair, permit } => {
                let done = self.repair(pass, repair);
                drop(permit);
                done
            }
            ToApply::Previous { pass, set, ranges, reply } => {
                if let Some(content) = self.previous(&pass, set, &ranges)? {
                    // Whoever asked may have given up.
                    let _ = reply.send(content);
                }
                Ok(())
            }
            ToApply::BeginBulk { pass } => self.begin_bulk(&pass, now),
            ToApply::SyncBulk { pass } => self.sync_bulk(pass),
        }
    }

    /// What is to be done when no command waits: bulk content is settled, then sets are applied.
    pub fn between_commands(&mut self) -> Result<Idle, ApplyError> {
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

    /// Takes a question. It is answered when enough are there to keep the disks busy, or when no command waits.
    fn ask(&mut self, asked: Asked) -> Result<(), ApplyError> {
        let sectors: u64 = asked.compare.runs.iter().map(|run| u64::from(run.sectors)).sum();
        self.bulk.asked_bytes += sectors * SECTOR_BYTES;
        self.bulk.asked.push(asked);
        if self.bulk.asked_bytes >= ASKED_BYTES_MAX {
            self.compare_asked()?;
        }
        if self.bulk.compared.len() >= COMPARED_MAX { self.settle_bulk() } else { Ok(()) }
    }

    /// Compares with the disks as they are with all that came before. "Same" says that the content is there durably, so
    /// the answer waits for a sync (rule L4).
    fn compare_asked(&mut self) -> Result<(), ApplyError> {
        self.bulk.asked_bytes = 0;
        let mut asked = std::mem::take(&mut self.bulk.asked);
        asked.retain(|asked| asked.pass.is_valid());
        if asked.is_empty() {
            return Ok(());
        }
        self.write_bulk()?;
        self.apply_all()?;
        // A question that can't be asked says nothing of the others.
        asked.retain(|Asked { pass, compare, .. }| match self.applier.check_runs(&compare.runs) {
            Ok(()) => true,
            Err(error) => {
                let what = error.to_string();
                tracing::error!(group = pass.about().group, what, "the source broke the protocol");
                pass.about().link.wire.close(CloseCode::Protocol, &what);
                false
            }
        });
        let runs: Vec<&[CompareRun]> = asked.iter().map(|asked| &asked.compare.runs[..]).collect();
        let answers = self.applier.compare_all(&runs)?;
        let answers = asked.into_iter().zip(answers);
        self.bulk.compared.extend(answers.map(|(asked, differs)| (asked.pass, asked.compare.request, differs)));
        Ok(())
    }

    /// What a set and those before it left on the disks. Sets after it may be there too: the source asks for blocks that
    /// none of them has.
    fn previous(&mut self, pass: &Pass, set: u64, ranges: &[(u32, u64, u32)]) -> Result<Option<Vec<u8>>, ApplyError> {
        if !pass.is_valid() {
            return Ok(None);
        }
        while self.journal.applied_set().0 < set {
            let Progress::Applied { bytes, .. } = self.applier.apply_next_at_once()? else {
                let what =
                    format!("deltas over set {set} came, which was not acknowledged: the process-server is damaged");
                pass.about().link.wire.close(CloseCode::Protocol, &what);
                return Ok(None);
            };
            self.board.add_applied(bytes);
        }
        match self.applier.read_disks(ranges) {
            Ok(content) => Ok(Some(content)),
            Err(ApplyError::Journal(JournalError::Protocol { what })) => {
                pass.about().link.wire.close(CloseCode::Protocol, &what);
                Ok(None)
            }
            Err(error) => Err(error),
        }
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
        self.compare_asked()?;
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
            let body = Body::BlocksCompared(BlocksCompared { group, phase, request, differs, counter });
            self.effects.push_back(Effect::Answer(pass, body));
        }
        for (pass, request) in self.bulk.repaired.drain(..) {
            let (group, phase) = (pass.about().group.clone(), pass.about().phase);
            let body = Body::BlockRepaired(BlockRepaired { group, phase, request, counter });
            self.effects.push_back(Effect::Answer(pass, body));
        }
        for (pass, part) in self.bulk.ended.drain(..) {
            let about = pass.about();
            let body = Body::PartDurable(PartDurable {
                group: about.group.clone(),
                phase: about.phase,
                kind: PartKind::Bulk.into(),
                number: 0,
                part,
                counter,
            });
            self.effects.push_back(Effect::Answer(pass, body));
        }
        Ok(())
    }

    fn begin_bulk(&mut self, pass: &Pass, now: Timestamp) -> Result<(), ApplyError> {
        if !pass.is_valid() {
            return Ok(());
        }
        self.settle_bulk()?;
        self.apply_all()?;
        self.journal.begin_bulk(now)?;
        self.board.set_history(self.journal.has_history(), self.journal.bulk_open());
        let about = pass.about();
        let body = Body::BulkBegun(BulkBegun { group: about.group.clone(), phase: about.phase });
        self.effects.push_back(Effect::Answer(pass.clone(), body));
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
        self.effects.push_back(Effect::Commit(pass));
        Ok(())
    }

    fn maintain(&mut self, now: Timestamp) -> Result<(), ApplyError> {
        self.applier.check()?;
        self.journal.rotate_if_due(now)?;
        self.journal.vouch_when_idle()?;
        // From the begin of a failback on no point may go: it could be the chosen one (rule J10).
        if RecoveryState::of(&self.journal) == RecoveryState::Normal {
            let newest = self.journal.newest_point().map(|point| point.time);
            let age_now = time_for_ages(now, newest, self.board.source_time());
            self.journal.prune(age_now, self.retention)?;
            self.journal.thin(age_now, &self.thin)?;
        }
        Ok(())
    }

    /// A step has failed: nothing more is written. The group fails until it is opened again; where only room for undo is
    /// missing, the session ends, and what is durable is tried again every second.
    pub fn fail(&mut self, error: &ApplyError) {
        match error {
            ApplyError::Journal(JournalError::Full { needed, .. }) => self.board.run_short(error.to_string(), *needed),
            error => self.board.fail(format!("apply: {error}")),
        }
        // The source sends again what was not acknowledged.
        self.bulk = Bulk::default();
    }
}

#[cfg(test)]
mod tests;
