//! The target's driver of a failback, step by step: it does what the real machine (`recover::steps`) says.
//!
//! Durable is what the journal's record says: a crash ends the job, and the start after it goes on from the record. The
//! steps on files (content ids, checksums) have nothing to show here and are passed over. Nothing is cancelled.

use std::ops::ControlFlow;

use master_target::receive::admission::{Door, FAILED_BACK};
use master_target::recover::steps::{Choice, Failback, Next, Plan, Source, Stage};
use master_target::recover::{Ranges, RecoveryState, put_point};
use proto::ids::Lineage;
use proto::replication::FenceRequest;
use proto::time::Timestamp;

use super::link::Connection;
use super::target::Target;
use super::trace;

/// A failback of a world.
#[derive(Default)]
pub struct Job {
    machine: Option<Failback>,
    /// Which one it is, for a lineage of its own.
    tries: u8,
    /// The point that is on the disks, once there.
    pub point: Option<String>,
    /// The source was asked to fence.
    pub is_fencing: bool,
    /// It is over.
    pub is_done: bool,
}

impl Job {
    /// Whether it was begun and is not over.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.machine.is_some()
    }

    /// An operator asks for it. Has no effect where it can't begin.
    pub fn begin(&mut self, target: &Target, choice: Choice, source: Source, request: u64) {
        let Some(journal) = target.journal.as_ref().filter(|_| target.works.is_some()) else { return };
        let is_free = self.machine.is_none() && RecoveryState::of(journal) == RecoveryState::Normal;
        let has_source = source == Source::Without || target.board.view().borrow().session.is_some();
        if !is_free || journal.points().is_empty() || !has_source {
            return;
        }
        trace::step("failback begins (without source)", (source == Source::Without).into(), request);
        let plan = Plan {
            request,
            choice,
            source,
            stage: Stage::Draining,
            fenced: None,
            started_us: request,
            is_again: false,
            spoilt: Ranges::default(),
        };
        self.machine = Some(Failback::begin(plan));
    }

    /// The agent has started: what its journal tells of a failback is gone on with.
    pub fn resume(&mut self, target: &mut Target) {
        match std::mem::replace(&mut target.found, RecoveryState::Normal) {
            RecoveryState::Normal => {}
            RecoveryState::FailingBack { plan } => {
                let plan: Plan = serde_json::from_str(&plan).expect("it was written by this agent");
                self.machine = Some(Failback::resume(plan));
            }
            RecoveryState::FailedBack { .. } | RecoveryState::Committed { .. } => self.is_done = true,
        }
    }

    /// The agent is gone.
    pub fn crash(&mut self) {
        self.machine = None;
    }

    /// One step. On an error the operator repeats the command later.
    pub fn step(&mut self, target: &mut Target, connections: &mut [Connection], now: Timestamp) {
        let Some(mut machine) = self.machine.take() else { return };
        if machine.plan().stage == Stage::Draining {
            target.door = Door::Open;
        }
        let view = *target.board.view().borrow();
        let next = machine.next(&view);
        self.is_fencing = machine.plan().source == Source::Fence;
        match self.carry_out(next, &machine, target, connections, now) {
            Ok(true) => {
                machine.completed(next);
                self.machine = Some(machine);
            }
            Ok(false) if next == Next::Done => self.is_done = true,
            Ok(false) => self.machine = Some(machine),
            Err(why) => {
                trace::step("failback stops", 0, 0);
                self.go_on(target, &why);
            }
        }
    }

    /// The command is repeated: it goes on from its durable state.
    fn go_on(&mut self, target: &Target, _why: &str) {
        let Some(journal) = &target.journal else { return };
        if let RecoveryState::FailingBack { plan } = RecoveryState::of(journal) {
            let plan: Plan = serde_json::from_str(&plan).expect("it was written by this agent");
            self.machine = Some(Failback::resume(plan));
        }
    }

    /// Whether it was done: false while it has to be waited for.
    fn carry_out(
        &mut self,
        next: Next,
        machine: &Failback,
        target: &mut Target,
        connections: &mut [Connection],
        now: Timestamp,
    ) -> Result<bool, String> {
        let journal = target.journal.clone().ok_or("the journal is not open");
        match next {
            Next::Record => {
                let plan = serde_json::to_string(machine.plan()).expect("numbers can be written as JSON");
                let recorded = RecoveryState::FailingBack { plan }.record(&*journal?, machine.plan().choice.needs());
                recorded.map_err(|error| error.to_string())?;
            }
            Next::SendFence { session } => {
                let request = FenceRequest { group: "web".to_owned(), request: machine.plan().request };
                if let Some((_, link)) = target.session().filter(|(key, _)| *key == session) {
                    let _ = link.outbox.try_send(request.into());
                }
            }
            Next::Wait(_) | Next::Done => return Ok(false),
            Next::LockOut => {
                if target.door == Door::Open {
                    trace::step("sessions are locked out", 0, 0);
                    target.door = Door::Fenced;
                    let is_told = target.board.session_over(FAILED_BACK, "the group is failed back");
                    target.leave(connections, is_told);
                }
                return Ok(target.has_left());
            }
            Next::ApplyAll => {
                target.ready(now)?;
                let applied = target.with_applier(now, |applier| applier.apply_all_and_sync());
                applied.ok_or("the disks are being closed")?.map_err(|error| error.to_string())?;
            }
            Next::PutPoint => {
                let (journal, reading, choice) = (journal?, target.disks.clone(), machine.plan().choice);
                self.tries = self.tries.wrapping_add(1);
                let new = (now, Lineage([self.tries; 16]));
                let put = target.with_applier(now, move |applier| {
                    let goes_on = |_, _| ControlFlow::Continue(());
                    let put = put_point(&journal, applier, reading, choice, &Ranges::default(), new, goes_on);
                    put.map_err(|error| error.to_string())
                });
                self.point = put.ok_or("the disks are being closed")??;
            }
            Next::Stamp => {}
            Next::Compare | Next::RecordCancelled | Next::LetIn | Next::Cancelled => unreachable!("nobody cancels"),
            Next::RecordDone => {
                let report = self.point.clone().unwrap_or_default();
                let recorded = RecoveryState::FailedBack { report }.record(&*journal?, None);
                recorded.map_err(|error| error.to_string())?;
            }
            Next::Release => {
                trace::step("the disks are handed over", 0, 0);
                target.works = None;
            }
        }
        Ok(true)
    }
}
