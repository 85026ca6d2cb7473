//! The fence: writes are refused for good, durably, before the last cut of a failback is made (S20).
//!
//! Order: the fence is made durable; writes admitted before it complete and are in the last cut; all is drained; only
//! then is the target told which set is the last. It survives restarts and is lifted only when the target has durably
//! cancelled the failback.

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
    at_us: u64,
}

impl Fence {
    pub(super) fn new(fenced: bool) -> Self {
        Self { step: if fenced { Step::Fenced } else { Step::Open }, request: None, at_us: 0 }
    }

    pub(super) fn refuses_writes(&self) -> bool {
        matches!(self.step, Step::Fenced | Step::Lifting)
    }
}

impl Group {
    /// A failback asks for the fence.
    pub(super) fn fence_asked(&mut self, request: u64) {
        self.fence.request = Some(request);
        self.fence_without_request();
    }

    /// The target has failed the group back, or is about to: whatever this agent remembers, it must not take writes.
    pub(super) fn fence_without_request(&mut self) {
        if self.fence.step == Step::Open {
            self.fence.step = Step::Persisting;
            self.actions.push_back(Action::PersistFence);
        }
    }

    /// A fence that was asked for and could not be made durable is tried again.
    pub(super) fn retry_fence(&mut self) {
        if self.fence.request.is_some() {
            self.fence_without_request();
        }
    }

    /// The fence is durable, or could not be made so (`ok` false): then it does not hold, and is tried again.
    pub fn fence_persisted(&mut self, ok: bool) {
        if self.fence.step != Step::Persisting {
            return;
        }
        self.fence.step = if ok { Step::Fenced } else { Step::Open };
        self.fence.at_us = self.now.wall.0;
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

    /// The target has durably cancelled the failback.
    pub(super) fn fence_cancelled(&mut self, _request: u64) {
        if self.fence.step == Step::Fenced {
            self.fence.step = Step::Lifting;
            self.fence.request = None;
            self.actions.push_back(Action::LiftFence);
        }
    }

    /// The durable fence is gone, or could not be removed (`ok` false).
    pub fn fence_lifted(&mut self, ok: bool) {
        if self.fence.step == Step::Lifting {
            self.fence.step = if ok { Step::Open } else { Step::Fenced };
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
