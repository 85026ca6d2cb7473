//! The order of a failback, as a machine without I/O (rules L5, L7, S20).
//!
//! ```text
//! record failing-back -> fence the source, wait until its last set is durable -> record locked, lock sessions out
//!   -> apply all and sync -> put the chosen point -> new content ids, digests -> record failed-back -> unlock -> report
//! ```
//!
//! The driver (`failback.rs`) asks `next` with what it sees of the session, does what it is told and says `completed`.
//! Every step may be repeated: after a restart the machine is built again from the durable [`Plan`] and goes on from there.
//!
//! Why this order: a set that arrives after the lock-out would land in a disk that a machine is about to boot from; a
//! crash before *failed-back* is durable must find the disks still locked; after it the agent never writes them again.

use serde::{Deserialize, Serialize};

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
    /// All is done.
    Done,
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

    /// The plan, as it is to be recorded.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The operator gives the source up: what it still holds is lost.
    ///
    /// Has no effect once the source is drained.
    pub fn give_up_source(&mut self) {
        if self.plan.stage == Stage::Draining && self.plan.source == Source::Fence {
            self.plan.source = Source::Without;
            self.step = Step::Record;
        }
    }

    /// What is to be done next.
    pub fn next(&mut self, view: &View) -> Next {
        match self.step {
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
mod tests {
    use super::*;

    fn plan(source: Source) -> Plan {
        Plan { request: 5, choice: Choice::Latest, source, stage: Stage::Draining, fenced: None, started_us: 1 }
    }

    fn answer(request: u64, last_set: u64) -> FenceAnswer {
        FenceAnswer { request, last_set, fenced_at_us: 99 }
    }

    /// Runs the machine while it has work, completing each step.
    fn run(machine: &mut Failback, view: &View) -> (Vec<Next>, Next) {
        let mut done = Vec::new();
        loop {
            match machine.next(view) {
                end @ (Next::Wait(_) | Next::Done) => return (done, end),
                next => {
                    machine.completed(next);
                    done.push(next);
                }
            }
        }
    }

    const AFTER_DRAIN: [Next; 7] =
        [Next::Record, Next::LockOut, Next::ApplyAll, Next::PutPoint, Next::Stamp, Next::RecordDone, Next::Release];

    #[test]
    fn the_source_is_fenced_and_drained_before_sessions_are_locked_out() {
        let mut machine = Failback::begin(plan(Source::Fence));
        let mut view = View { session: Some(1), fenced: None, durable_set: 7 };
        let (done, end) = run(&mut machine, &view);
        assert_eq!(done, [Next::Record, Next::SendFence { session: 1 }]);
        assert_eq!(end, Next::Wait(Waiting::ForFence));
        view.fenced = Some(answer(5, 9));
        assert_eq!(run(&mut machine, &view), (vec![], Next::Wait(Waiting::ForSets { last_set: 9 })));
        view.durable_set = 9;
        assert_eq!(run(&mut machine, &view), (AFTER_DRAIN.to_vec(), Next::Done));
        assert_eq!(machine.plan().fenced, Some(answer(5, 9)));
    }

    #[test]
    fn an_answer_to_an_earlier_failback_does_not_count() {
        let mut machine = Failback::begin(plan(Source::Fence));
        let view = View { session: Some(1), fenced: Some(answer(4, 2)), durable_set: 7 };
        assert_eq!(run(&mut machine, &view).1, Next::Wait(Waiting::ForFence));
    }

    #[test]
    fn a_source_that_reconnects_is_asked_again_once() {
        let mut machine = Failback::begin(plan(Source::Fence));
        let mut view = View { session: Some(1), ..View::default() };
        run(&mut machine, &view);
        view.session = None;
        assert_eq!(run(&mut machine, &view), (vec![], Next::Wait(Waiting::ForSource)));
        view.session = Some(2);
        assert_eq!(run(&mut machine, &view).0, [Next::SendFence { session: 2 }]);
        assert_eq!(run(&mut machine, &view).0, []);
    }

    #[test]
    fn without_the_source_nothing_waits() {
        let mut machine = Failback::begin(plan(Source::Without));
        let (done, end) = run(&mut machine, &View::default());
        assert_eq!(done[0], Next::Record);
        assert_eq!(done[1..], AFTER_DRAIN);
        assert_eq!(end, Next::Done);
    }

    #[test]
    fn giving_the_source_up_is_recorded_before_sessions_are_locked_out() {
        let mut machine = Failback::begin(plan(Source::Fence));
        run(&mut machine, &View::default());
        machine.give_up_source();
        let (done, _) = run(&mut machine, &View::default());
        assert_eq!(done[..3], [Next::Record, Next::Record, Next::LockOut]);
        assert_eq!(machine.plan().source, Source::Without);
    }

    #[test]
    fn giving_the_source_up_after_the_lock_out_changes_nothing() {
        let mut machine = Failback::resume(Plan { stage: Stage::LockedOut, ..plan(Source::Fence) });
        machine.give_up_source();
        assert_eq!(machine.next(&View::default()), Next::LockOut);
        assert_eq!(machine.plan().source, Source::Fence);
    }

    #[test]
    fn a_restart_while_draining_fences_again_and_after_the_lock_out_takes_nothing() {
        let mut draining = Failback::resume(plan(Source::Fence));
        assert_eq!(draining.next(&View { session: Some(3), ..View::default() }), Next::SendFence { session: 3 });
        let mut locked = Failback::resume(Plan { stage: Stage::LockedOut, ..plan(Source::Fence) });
        assert_eq!(run(&mut locked, &View::default()).0, AFTER_DRAIN[1..]);
    }

    #[test]
    #[should_panic(expected = "was completed in")]
    fn steps_out_of_order_are_refused() {
        Failback::begin(plan(Source::Fence)).completed(Next::Release);
    }
}
