//! The fence: writes are refused for good, durably, before the last cut of a failback is made (S20).
//!
//! Order: the fence is made durable; writes admitted before it complete and are in the last cut; all is drained; only
//! then is the target told which set is the last. It survives restarts and is lifted only when the target has durably
//! cancelled the failback, or protects the group again after it.

use proto::replication::Fenced;

use super::action::Action;
use super::core::{Group, Mode};
use crate::send::ToLink;

/// How far fencing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    /// Being made durable; writes are still taken.
    Persisting,
    /// Durable; writes are refused.
    Fenced,
    /// Being lifted; writes are still refused.
    Lifting,
}

/// The fence of a group.
#[derive(Debug)]
pub(super) struct Fence {
    step: Step,
    /// The failback that waits for an answer.
    request: Option<u64>,
    /// The newest failback that asked; 0 where none is known. Kept with the fence: a target that was restored from an
    /// image of before may say that an earlier one was cancelled, and that lifts nothing.
    newest: u64,
    /// Its cancellation was heard: the fence is to be lifted as soon as it can be.
    is_cancelled: bool,
    at_us: u64,
}

impl Fence {
    pub(super) fn new(fenced: bool, newest: u64) -> Self {
        let step = if fenced { Step::Fenced } else { Step::Open };
        Self { step, request: None, newest, is_cancelled: false, at_us: 0 }
    }

    pub(super) fn refuses_writes(&self) -> bool {
        matches!(self.step, Step::Fenced | Step::Lifting)
    }
}

impl Group {
    /// A failback asks for the fence.
    pub(super) fn fence_asked(&mut self, request: u64) {
        self.fence.request = Some(request);
        if request > self.fence.newest {
            self.fence.newest = request;
            self.fence.is_cancelled = false;
            if self.fence.step == Step::Fenced {
                // It holds already; what it is for is made durable as well.
                self.actions.push_back(Action::PersistFence);
            }
        }
        self.persist_fence();
    }

    /// The newest failback that asked for a fence, to be kept with it.
    #[must_use]
    pub fn fence_request(&self) -> u64 {
        self.fence.newest
    }

    /// The target has failed the group back, or is about to: whatever this agent remembers, it must not take writes.
    pub(super) fn fence_without_request(&mut self) {
        self.fence.is_cancelled = false;
        self.persist_fence();
    }

    fn persist_fence(&mut self) {
        if self.fence.step == Step::Open {
            self.fence.step = Step::Persisting;
            self.actions.push_back(Action::PersistFence);
        }
    }

    /// A fence that was asked for and could not be made durable is tried again, as is one that could not be lifted.
    pub(super) fn retry_fence(&mut self) {
        if self.fence.request.is_some() {
            self.persist_fence();
        }
        self.lift_cancelled();
    }

    fn lift_cancelled(&mut self) {
        if self.fence.is_cancelled && self.fence.step == Step::Fenced {
            self.fence.step = Step::Lifting;
            self.actions.push_back(Action::LiftFence);
        }
    }

    /// The fence is durable, or could not be made so (`ok` false): then it does not hold, and is tried again.
    pub fn fence_persisted(&mut self, ok: bool) {
        if self.fence.step != Step::Persisting {
            return;
        }
        self.fence.step = if ok { Step::Fenced } else { Step::Open };
        self.fence.at_us = self.now.wall.0;
        if !ok {
            // What was cancelled before it held needs no lifting.
            self.fence.is_cancelled = false;
        }
        self.lift_cancelled();
        if ok {
            let why = "the group is fenced for failback: it takes no new points";
            let waiting: Vec<u64> = self.points.iter().filter(|point| point.epoch.is_none()).map(|p| p.token).collect();
            self.points.retain(|point| point.epoch.is_some());
            for token in waiting {
                let outcome = super::action::PointOutcome::Lost(why.into());
                self.actions.push_back(Action::PointDone { token, outcome });
            }
        }
    }

    /// The target has durably cancelled a failback.
    pub(super) fn fence_cancelled(&mut self, request: u64) {
        if request < self.fence.newest {
            return;
        }
        self.fence.request = None;
        self.fence.is_cancelled = self.fence.step != Step::Open;
        self.lift_cancelled();
    }

    /// The durable fence is gone, or could not be removed (`ok` false): then it holds, and is tried again.
    pub fn fence_lifted(&mut self, ok: bool) {
        if self.fence.step == Step::Lifting {
            self.fence.step = if ok { Step::Open } else { Step::Fenced };
            self.fence.is_cancelled &= !ok;
        }
    }

    /// Whether the group is fenced.
    pub(super) fn is_fenced(&self) -> bool {
        self.fence.refuses_writes()
    }

    /// Once fenced and drained, tells the target which set is the last.
    pub(super) fn report_fence(&mut self) {
        let Some(request) = self.fence.request.filter(|_| self.fence.step == Step::Fenced) else { return };
        if !matches!(self.mode, Mode::Streaming) || self.epochs.unfinished() > 0 {
            return;
        }
        let Some(open) = self.queue.open_index() else { return };
        if !self.queue[open].set.is_empty() {
            self.cut();
            self.seal();
            self.send_sets();
            return;
        }
        let Some(next) = self.next_number.filter(|_| self.queue.len() == 1) else { return };
        self.fence.request = None;
        let fenced =
            Fenced { group: self.options.name.clone(), request, last_set: next - 1, fenced_at_us: self.fence.at_us };
        self.actions.push_back(Action::Link(ToLink::Fenced(fenced)));
    }
}
