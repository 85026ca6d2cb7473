//! The order of a failback, as a machine without I/O (rules L5, L7, S20).
//!
//! ```text
//! record failing-back -> fence the source, wait until its last set is durable -> record locked, lock sessions out
//!   -> apply all and sync -> put the chosen point -> new content ids, digests -> record failed-back -> unlock -> report
//! ```
//!
//! Until *failed-back* is recorded the choice may change, which records the new one and puts it, and the failback may be
//! cancelled: durably first, then sessions are let in, and their source is told. Afterwards another choice begins with a
//! comparison of the disks with what they were when they were handed over; what differs is in the plan (REVIEW J6).
//!
//! The driver (`failback.rs`) asks `next` with what it sees of the session, does what it is told and says `completed`.
//! Every step may be repeated: after a restart the machine is built again from the durable [`Plan`] and goes on from there.
//!
//! Why this order: a set that arrives after the lock-out would land in a disk that a machine is about to boot from; a
//! crash before *failed-back* is durable must find the disks still locked; after it the agent never writes them again.

use proto::ids::SetNumber;
use serde::{Deserialize, Serialize};

use super::Ranges;

/// What a failback is to do, kept durably while it is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Key of the conversation with the source: an answer with another one belongs to an earlier failback.
    pub request: u64,
    /// The point to put on the disks.
    pub choice: Choice,
    /// Whether the source is fenced and drained first.
    pub source: Source,
    /// How far it durably is.
    pub stage: Stage,
    /// The source's answer to the fence.
    pub fenced: Option<FenceAnswer>,
    /// When it began, microseconds since the Unix epoch.
    pub started_us: u64,
    /// The disks were handed over before, at another point: a machine may have run on them.
    #[serde(default)]
    pub is_again: bool,
    /// What it wrote: nothing there is read for a point, or saved for one.
    #[serde(default)]
    pub spoilt: Ranges,
}

/// The point to put on the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The newest point there is once the source is drained.
    Latest,
    /// The point with this set number.
    Point(u64),
}

impl Choice {
    /// The point that has to be there still once the choice is durable. The newest always is (rule J7).
    #[must_use]
    pub fn needs(self) -> Option<SetNumber> {
        match self {
            Self::Latest => None,
            Self::Point(set) => Some(SetNumber(set)),
        }
    }
}

/// Whether the source takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// It is fenced, and everything it holds is drained.
    Fence,
    /// It is gone; it is fenced when it comes back.
    Without,
}

/// How far a failback durably is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Sessions are open so that the source can drain.
    Draining,
    /// No set is taken any more.
    LockedOut,
}

/// What the source answered to the fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FenceAnswer {
    /// The request it answers.
    pub request: u64,
    /// Everything ever written is in sets up to this one.
    pub last_set: u64,
    /// When the fence was durable, microseconds since the Unix epoch.
    pub fenced_at_us: u64,
}

/// What the driver sees of the source now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct View {
    /// Key of the session that is open.
    pub session: Option<u64>,
    /// The newest answer to a fence.
    pub fenced: Option<FenceAnswer>,
    /// The last durable set.
    pub durable_set: u64,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Lock the disks and compare them with what they were when they were handed over. Nothing is written.
    Compare,
    /// Make the plan durable.
    Record,
    /// Ask the source of this session to fence itself.
    SendFence {
        /// The session.
        session: u64,
    },
    /// Nothing until the view changes.
    Wait(Waiting),
    /// End the session and let none in.
    LockOut,
    /// Apply every durable set and sync the disks.
    ApplyAll,
    /// Put the chosen point on the disks, if they don't hold it.
    PutPoint,
    /// Stamp new content ids, sync, digest the disks.
    Stamp,
    /// Make *failed-back* durable with its report.
    RecordDone,
    /// Unlock the disks.
    Release,
    /// Make durable that the group replicates again, and that its source may lift its fence.
    RecordCancelled,
    /// Let sessions in, and tell the source.
    LetIn,
    /// All is done.
    Done,
    /// It was cancelled.
    Cancelled,
}

/// What a failback waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The source to connect.
    ForSource,
    /// The source to answer the fence.
    ForFence,
    /// The source's last sets to arrive.
    ForSets {
        /// Everything is there once this set is durable.
        last_set: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Compare,
    Record,
    Drain,
    RecordLocked,
    LockOut,
    Apply,
    PutPoint,
    Stamp,
    RecordDone,
    Release,
    Done,
    RecordCancelled,
    LetIn,
    Cancelled,
}

/// The machine.
#[derive(Debug)]
pub struct Failback {
    plan: Plan,
    step: Step,
    fence_sent_to: Option<u64>,
}

impl Failback {
    /// A failback that begins.
    pub fn begin(plan: Plan) -> Self {
        Self { plan, step: Step::Record, fence_sent_to: None }
    }

    /// A failback found under way after a restart. What may have been half done is done again.
    pub fn resume(plan: Plan) -> Self {
        let step = match plan.stage {
            Stage::Draining => Step::Drain,
            Stage::LockedOut => Step::LockOut,
        };
        Self { plan, step, fence_sent_to: None }
    }

    /// Another choice after the disks were handed over. Nothing is recorded before they are locked and compared.
    pub fn again(plan: Plan) -> Self {
        Self {
            plan: Plan { is_again: true, stage: Stage::LockedOut, ..plan },
            step: Step::Compare,
            fence_sent_to: None,
        }
    }

    /// Another point is to be put. Refused (false) once the disks are about to be released.
    pub fn choose(&mut self, choice: Choice) -> bool {
        match self.step {
            Step::Release | Step::Done | Step::RecordCancelled | Step::LetIn | Step::Cancelled => return false,
            Step::Compare | Step::Record => {}
            Step::Drain => self.step = Step::Record,
            // Durable before the first write: a crash must not go on with the old one.
            Step::RecordLocked | Step::LockOut | Step::Apply | Step::PutPoint | Step::Stamp | Step::RecordDone => {
                self.step = Step::RecordLocked;
            }
        }
        self.plan.choice = choice;
        true
    }

    /// The failback is given up: the group replicates again. Refused (false) once the disks were handed over: a machine
    /// may have run on them since.
    pub fn cancel(&mut self) -> bool {
        if self.plan.is_again || matches!(self.step, Step::Release | Step::Done) {
            return false;
        }
        if !matches!(self.step, Step::RecordCancelled | Step::LetIn | Step::Cancelled) {
            self.step = Step::RecordCancelled;
        }
        true
    }

    /// Whether the disks are only looked at: durably nothing has changed yet.
    pub fn is_looking(&self) -> bool {
        self.step == Step::Compare
    }

    /// Whether it is cancelled durably: from then on the group replicates.
    pub fn has_left(&self) -> bool {
        matches!(self.step, Step::LetIn | Step::Cancelled)
    }

    /// What differs from what was handed over.
    pub fn found_spoilt(&mut self, spoilt: Ranges) {
        self.plan.spoilt = spoilt;
    }

    /// The plan, as it is to be recorded.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The operator gives the source up: what it still holds is lost.
    ///
    /// Has no effect once the source is drained.
    pub fn give_up_source(&mut self) {
        let is_draining = matches!(self.step, Step::Record | Step::Drain);
        if is_draining && self.plan.stage == Stage::Draining && self.plan.source == Source::Fence {
            self.plan.source = Source::Without;
            self.step = Step::Record;
        }
    }

    /// What is to be done next.
    pub fn next(&mut self, view: &View) -> Next {
        match self.step {
            Step::Compare => Next::Compare,
            Step::RecordCancelled => Next::RecordCancelled,
            Step::LetIn => Next::LetIn,
            Step::Cancelled => Next::Cancelled,
            Step::Record | Step::RecordLocked => Next::Record,
            Step::Drain => self.drain(view),
            Step::LockOut => Next::LockOut,
            Step::Apply => Next::ApplyAll,
            Step::PutPoint => Next::PutPoint,
            Step::Stamp => Next::Stamp,
            Step::RecordDone => Next::RecordDone,
            Step::Release => Next::Release,
            Step::Done => Next::Done,
        }
    }

    fn drain(&mut self, view: &View) -> Next {
        if self.plan.source == Source::Without {
            return self.locked();
        }
        if let Some(answer) = view.fenced.filter(|answer| answer.request == self.plan.request) {
            self.plan.fenced = Some(answer);
            if view.durable_set >= answer.last_set {
                return self.locked();
            }
        }
        match view.session {
            None => Next::Wait(Waiting::ForSource),
            Some(session) if self.fence_sent_to != Some(session) => Next::SendFence { session },
            Some(_) => Next::Wait(match self.plan.fenced {
                Some(answer) => Waiting::ForSets { last_set: answer.last_set },
                None => Waiting::ForFence,
            }),
        }
    }

    fn locked(&mut self) -> Next {
        self.plan.stage = Stage::LockedOut;
        self.step = Step::RecordLocked;
        Next::Record
    }

    /// The driver did what `next` said.
    ///
    /// # Panics
    /// When it says so of something that was not asked for: the order would be broken.
    pub fn completed(&mut self, done: Next) {
        self.step = match (self.step, done) {
            (Step::Compare, Next::Compare) => Step::RecordLocked,
            (Step::RecordCancelled, Next::RecordCancelled) => Step::LetIn,
            (Step::LetIn, Next::LetIn) => Step::Cancelled,
            (Step::Record, Next::Record) => Step::Drain,
            (Step::Drain, Next::SendFence { session }) => {
                self.fence_sent_to = Some(session);
                Step::Drain
            }
            (Step::RecordLocked, Next::Record) => Step::LockOut,
            (Step::LockOut, Next::LockOut) => Step::Apply,
            (Step::Apply, Next::ApplyAll) => Step::PutPoint,
            (Step::PutPoint, Next::PutPoint) => Step::Stamp,
            (Step::Stamp, Next::Stamp) => Step::RecordDone,
            (Step::RecordDone, Next::RecordDone) => Step::Release,
            (Step::Release, Next::Release) => Step::Done,
            (step, done) => panic!("failback: {done:?} was completed in {step:?}"),
        };
    }
}

#[cfg(test)]
mod tests;
