//! Cuts and seals: how epochs become change sets with numbers, and how an operator's point finds its set.

use proto::replication::PointKind;
use proto::time::Timestamp;

use super::action::{Action, Now, PointAsked, PointOutcome};
use super::core::{Group, Mode};
use super::limits::{CUT_SHARE, CUT_SHARE_WITH_SPOOL};
use super::queue::QueuedSet;
use crate::changeset::CutMark;
use crate::rules::Rule;

/// A point that an operator asked for.
#[derive(Debug)]
pub(super) struct PendingPoint {
    pub(super) token: u64,
    pub(super) label: Option<String>,
    pub(super) kind: PointKind,
    /// Epoch of the set that carries it, once cut.
    pub(super) epoch: Option<u64>,
}

impl Group {
    /// An operator asks for a point, to be told by `Action::PointDone` when it is durable. True when it is cut already: a
    /// machine that was quiesced for it may go on.
    pub fn request_point(&mut self, token: u64, label: Option<String>, asked: PointAsked, now: Now) -> bool {
        self.now = now;
        if let Err(why) = self.may_take(asked) {
            self.actions.push_back(Action::PointDone { token, outcome: PointOutcome::Lost(why) });
            return false;
        }
        let kind = match asked {
            PointAsked::Crash => PointKind::Crash,
            PointAsked::App { .. } => PointKind::App,
        };
        self.points.push(PendingPoint { token, label, kind, epoch: None });
        self.cut_for_points();
        let is_cut = self.points.iter().any(|point| point.token == token && point.epoch.is_some());
        // A set costs memory also where nothing was written: points without end, on a link that is down, add up.
        self.check_budget();
        is_cut
    }

    /// A point of quiesced machines can't wait: what is written after they went on is not what they had agreed on (S16).
    fn may_take(&self, asked: PointAsked) -> Result<(), String> {
        if self.fence.refuses_writes() {
            return Err("the group is fenced for failback: it takes no new points".to_owned());
        }
        let PointAsked::App { frozen_until } = asked else { return Ok(()) };
        if !matches!(self.mode, Mode::Streaming) {
            return Err("the group catches up, and has no ordered moment now: try again when it streams".to_owned());
        }
        if self.now.mono >= frozen_until {
            return Err("the hook's timeout had passed before the point was cut: give the hook a longer one".to_owned());
        }
        Ok(())
    }

    /// Cuts for every point that waits for one.
    pub(super) fn cut_for_points(&mut self) {
        while matches!(self.mode, Mode::Streaming) && self.points.iter().any(|point| point.epoch.is_none()) {
            self.cut();
        }
    }

    /// Cuts when the interval has passed, or the open set has grown large, and there is something to cut.
    pub(super) fn cut_if_due(&mut self) {
        if !matches!(self.mode, Mode::Streaming) {
            self.last_cut = self.now.mono;
            return;
        }
        let due = self.now.mono >= self.last_cut + self.options.point_interval;
        let Some(open) = self.queue.open_index().map(|index| &self.queue[index].set) else { return };
        let share = if self.spool.exists() { CUT_SHARE_WITH_SPOOL } else { CUT_SHARE };
        let large = open.charged() > self.options.memory_bytes / share;
        if open.is_empty() {
            if due {
                self.last_cut = self.now.mono;
            }
        } else if due || large {
            self.cut();
        }
    }

    /// Ends the epoch: the open set takes no more writes that arrive, and a new one is opened.
    pub(super) fn cut(&mut self) {
        let mark = self.cut_mark();
        let ended = self.epochs.cut();
        let open = self.queue.open_index().expect("writes are captured: there is an open set");
        assert_eq!(self.queue[open].set.epoch(), ended, "the open set is the current epoch's");
        self.queue[open].set.cut(mark);
        self.last_cut = self.now.mono;
        self.new_open_set();
    }

    /// The mark of a cut made now, with label and kind of the first point that waits for one.
    pub(super) fn cut_mark(&mut self) -> CutMark {
        // Points are listed by time: it never goes back, whatever the clock does.
        self.last_cut_time = self.now.wall.0.max(self.last_cut_time + 1);
        let epoch = self.epochs.current().0;
        #[cfg(test)]
        self.cuts.insert(self.last_cut_time, epoch);
        let waiting = self.points.iter_mut().find(|point| point.epoch.is_none());
        let (label, kind) = waiting.map_or((None, PointKind::Crash), |point| {
            point.epoch = Some(epoch);
            (point.label.clone(), point.kind)
        });
        CutMark { time: Timestamp(self.last_cut_time), mono: self.now.mono, label, kind }
    }

    /// Seals, in order, every set that was cut and has no unfinished write of its epoch or an older one (S1).
    pub(super) fn seal(&mut self) {
        let Some(mut next) = self.next_number else { return };
        for index in self.queue.first_unsealed()..self.queue.len() {
            let queued = &mut self.queue[index];
            let is_quiet = self.epochs.is_quiet_up_to(queued.set.epoch()) || !Rule::SealsWait.holds();
            if queued.set.cut_mark().is_none() || !is_quiet {
                break;
            }
            queued.number = Some(next);
            next += 1;
        }
        self.next_number = Some(next);
    }

    /// A set is durable on the target: its point, if an operator waits for it, is too.
    pub(super) fn points_durable(&mut self, queued: &QueuedSet, number: u64) {
        let epoch = queued.set.epoch().0;
        let is_point = queued.is_point;
        let actions = &mut self.actions;
        self.points.retain(|point| {
            if point.epoch != Some(epoch) {
                return true;
            }
            let outcome = if is_point {
                PointOutcome::Durable(number.to_string())
            } else {
                PointOutcome::Lost("a block of the protected disk could not be read: this is not a point".into())
            };
            actions.push_back(Action::PointDone { token: point.token, outcome });
            false
        });
    }

    /// A set is dropped in favour of the bitmap: its label never moves to later content (S16).
    pub(super) fn points_lost(&mut self, epoch: u64, why: &str) {
        let actions = &mut self.actions;
        self.points.retain(|point| {
            let lost = point.epoch == Some(epoch);
            if lost {
                let outcome = PointOutcome::Lost(format!("the point was merged into later content: {why}"));
                actions.push_back(Action::PointDone { token: point.token, outcome });
            }
            !lost
        });
    }
}
