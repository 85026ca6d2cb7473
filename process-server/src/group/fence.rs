//! The fence: writes are refused for good, durably, before the last cut of a failback is made (S20).
//!
//! Order: the fence is made durable; writes admitted before it complete and are in the last cut; all is drained; only
//! then is the target told which set is the last. It survives restarts and is lifted only when the target has durably
//! cancelled the failback, or protects the group again after it.
//!
//! What could not be made durable may be found at the next start all the same, or not: the file was replaced, and its folder
//! not synced. So a fence that could not be lifted holds in this life and may not in the next. That is right while its failback
//! is cancelled: writes may be taken. Before it serves another failback it is made durable again; until then nothing is
//! reported, or a restart would take writes that run beside those of the machine that was brought back.
//!
//! Nothing is read of these disks after a failback. So what could not be flushed or read is tried once more before the last
//! set is named (S17, W10), for a minute at most: a disk that failed for a moment costs nothing, one that is broken does not
//! hold up the failback.

use std::time::Duration;

use proto::ids::DiskIndex;
use proto::replication::Fenced;

use super::action::Action;
use super::core::{Group, Mode};
use crate::rules::Rule;
use crate::send::ToLink;

/// The longest that a failback waits for disks that are tried once more.
const LAST_TRY_MAX: Duration = Duration::from_secs(60);

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

/// How far the last try has come of what could not be flushed or read.
#[derive(Debug, PartialEq, Eq)]
enum LastTry {
    Due,
    /// Disks that could not be flushed, each with the number of its flushes that had ended.
    Flushing(Vec<(DiskIndex, u64)>),
    /// Disks have been flushed; a pass over unreadable blocks from before the fence may be under way.
    Flushed,
    /// Unreadable blocks are tried.
    Reading,
    Over,
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
    /// The next start will find the fence, and what it is for.
    is_kept: bool,
    at_us: u64,
    last_try: LastTry,
    /// When it is given up.
    try_until: Duration,
}

impl Fence {
    pub(super) fn new(fenced: bool, newest: u64) -> Self {
        let step = if fenced { Step::Fenced } else { Step::Open };
        let (last_try, try_until) = (LastTry::Due, Duration::ZERO);
        Self { step, request: None, newest, is_cancelled: false, is_kept: fenced, at_us: 0, last_try, try_until }
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
            self.fence.last_try = LastTry::Due;
            self.fence.is_cancelled = false;
            // One that holds already is to say what it is for.
            self.fence.is_kept = false;
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
        match self.fence.step {
            Step::Open => self.fence.step = Step::Persisting,
            Step::Fenced if !self.fence.is_kept && !self.fence.is_cancelled => {}
            _ => return,
        }
        self.actions.push_back(Action::PersistFence);
    }

    /// A fence that was asked for and could not be made durable is tried again, as is one that could not be lifted.
    pub(super) fn retry_fence(&mut self) {
        if self.fence.request.is_some() || self.fence.step == Step::Fenced {
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

    /// The fence is durable, or could not be made so (`ok` false): then it does not hold, unless it did before, and is tried
    /// again.
    pub fn fence_persisted(&mut self, ok: bool) {
        match self.fence.step {
            Step::Persisting => self.fence.is_kept = ok,
            Step::Fenced => {
                self.fence.is_kept = ok;
                return;
            }
            Step::Open | Step::Lifting => return,
        }
        self.fence.step = if ok { Step::Fenced } else { Step::Open };
        self.fence.at_us = self.now.wall.0;
        self.fence.last_try = LastTry::Due;
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

    /// The durable fence is gone, or could not be removed (`ok` false): then it holds, and is tried again; the next start may
    /// find it or not.
    pub fn fence_lifted(&mut self, ok: bool) {
        if self.fence.step == Step::Lifting {
            self.fence.is_kept = false;
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
        let Some(request) = self.fence.request.filter(|_| self.fence.step == Step::Fenced && self.fence.is_kept) else {
            return;
        };
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
        if Rule::FenceTriesAgain.holds() && !self.has_tried_again() {
            return;
        }
        self.fence.request = None;
        let fenced =
            Fenced { group: self.options.name.clone(), request, last_set: next - 1, fenced_at_us: self.fence.at_us };
        self.actions.push_back(Action::Link(ToLink::Fenced(fenced)));
    }

    /// Goes on with the last try of what could not be flushed or read. True: it is over. What it found is in the open set.
    fn has_tried_again(&mut self) -> bool {
        let now = self.now.mono;
        loop {
            let next = match &self.fence.last_try {
                LastTry::Due => {
                    self.fence.try_until = now + LAST_TRY_MAX;
                    LastTry::Flushing(self.unflushable_disks())
                }
                LastTry::Over => return true,
                _ if now >= self.fence.try_until => LastTry::Over,
                LastTry::Flushing(disks) => {
                    let disks = disks.clone();
                    if disks.into_iter().fold(false, |any, (disk, ended)| self.is_trying_flush(disk, ended) || any) {
                        return false;
                    }
                    LastTry::Flushed
                }
                LastTry::Flushed | LastTry::Reading if self.is_trying_unreadable() => return false,
                LastTry::Flushed => {
                    self.try_unreadable();
                    LastTry::Reading
                }
                LastTry::Reading => LastTry::Over,
            };
            self.fence.last_try = next;
        }
    }
}
