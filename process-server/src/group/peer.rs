//! What the target says, and what the group makes of a session that begins or ends.
//!
//! A session is one stretch of an open link. The phase outlives it while nothing was lost: sets that are in memory go
//! on where the target's durable parts end. Where the target loses only this group, parts of it may still be on their
//! way in the connection that goes on: then a new phase begins, in which the same sets are sent anew (L2).
//!
//! What the target says about its past is checked against what it said before (L1): another lineage, a lower counter or
//! a gap in the numbers means that it was restored or replaced.

use std::time::Duration;

use blockio::{BLOCK, SECTOR};
use proto::ids::{Counter, DiskIndex, Lineage};
use proto::replication::target_message::Body;
use proto::replication::{GroupLost, GroupOpened, GroupRefused, MissingRun, PartKind, SourceGroupBeat, TargetMessage};

use super::action::{Action, Now};
use super::catchup::{CatchUpReason, Step};
use super::core::{Group, Mode};
use super::queue::PartState;
use crate::rules::Rule;
use crate::send::{Backoff, ToLink};

/// Time between two beats of a group, each saying up to when nothing newer exists.
pub(super) const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// The code of a target that fails the group back, or has.
const FAILED_BACK: &str = "failed-back";

/// The conversation with the target about this group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Session {
    /// No link.
    Down,
    /// Asked to open the group; no answer yet.
    Opening,
    /// Parts and sets are taken.
    Open,
    /// Refused or lost by the target; asked again at `again`.
    Refused { reason: String, message: String, again: Duration },
}

impl Session {
    /// Whether the target refuses only for now: it says so when a fault of its machine is in the way, which it mends or
    /// waits for by itself.
    pub(super) fn is_refused_for_now(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if ["failed", "busy", "retention-full"].contains(&reason.as_str()))
    }
}

/// The target as this group knows it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) session: Session,
    pub(super) since: Duration,
    pub(super) down_reason: Option<String>,
    /// The target had no set of this group when it was opened last.
    pub(super) is_initial: bool,
    /// Time between application-consistent points as the target last said it; zero: on demand only.
    pub(super) app_consistent_every: Option<Duration>,
    /// In `Session::Opening`: it has been sent.
    is_asked: bool,
    /// Delays before a refused group is offered again.
    backoff: Backoff,
    /// The target has a bulk generation open; the next ordered set must close it.
    bulk_open: bool,
    /// It has confirmed it in this session: the barrier after which bulk parts may go (L2).
    bulk_begun: bool,
}

impl Peer {
    pub(super) fn new(now: Duration) -> Self {
        let (session, backoff) = (Session::Down, Backoff::default());
        Self {
            session,
            since: now,
            down_reason: None,
            is_initial: false,
            app_consistent_every: None,
            is_asked: false,
            backoff,
            bulk_open: false,
            bulk_begun: false,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.session == Session::Open
    }

    pub(super) fn bulk_open(&self) -> bool {
        self.bulk_open
    }

    pub(super) fn bulk_begun(&self) -> bool {
        self.bulk_begun
    }

    pub(super) fn bulk_closed(&mut self) {
        self.bulk_open = false;
        self.bulk_begun = false;
    }

    fn refused(&mut self, reason: String, message: String, now: Duration) {
        if self.is_open() {
            self.backoff.session_ended(now.saturating_sub(self.since));
        }
        // The low digits of the clock are random enough to keep many agents out of step.
        let again = now + self.backoff.next_delay(now.as_nanos() as u64);
        self.become_session(Session::Refused { reason, message, again }, now);
    }

    fn become_session(&mut self, session: Session, now: Duration) {
        if self.session != session {
            self.session = session;
            self.since = now;
        }
        self.bulk_begun = false;
    }
}

impl Group {
    /// The link to the target is up.
    pub fn link_up(&mut self, now: Now) {
        self.now = now;
        self.peer.down_reason = None;
        self.open();
    }

    /// The link is down: what was sent and not acknowledged is as if it had never been sent.
    pub fn link_down(&mut self, reason: String, now: Now) {
        self.now = now;
        self.peer.become_session(Session::Down, now.mono);
        // What the next target takes, it says.
        self.recent.target_takes(false);
        self.recent.clear();
        self.verify_lost(&format!("the link to the target is down: {reason}"));
        self.mends.clear();
        self.peer.down_reason = Some(reason);
        self.queue.link_lost();
        if !self.bulk.is_empty() {
            self.return_bulk();
            self.new_phase();
            self.next_number = None;
        } else if let Mode::CatchingUp(catch_up) = &mut self.mode {
            catch_up.step = Step::Deciding;
        }
    }

    /// A message of the target about this group.
    pub fn message(&mut self, message: TargetMessage, now: Now) {
        self.now = now;
        let is_current = |phase| phase == self.phase.0;
        match message.body {
            Some(Body::GroupOpened(opened)) => self.group_opened(opened),
            Some(Body::GroupRefused(refused)) => self.group_refused(refused),
            Some(Body::BlocksCompared(answer)) if is_current(answer.phase) && self.peer.is_open() => {
                self.learn_counter(answer.counter);
                self.compared(&answer);
            }
            Some(Body::BlockRepaired(repaired)) if is_current(repaired.phase) && self.peer.is_open() => {
                self.learn_counter(repaired.counter);
                self.block_repaired(repaired.request);
            }
            Some(Body::BlocksMissing(missing)) if is_current(missing.phase) && self.peer.is_open() => {
                self.blocks_missing(&missing.runs);
            }
            Some(Body::BulkBegun(begun)) if is_current(begun.phase) && self.peer.is_open() => self.bulk_begun(),
            Some(Body::GroupLost(lost)) => self.group_lost(lost),
            Some(Body::PartDurable(durable)) if is_current(durable.phase) && self.peer.is_open() => {
                self.learn_counter(durable.counter);
                if durable.kind == PartKind::Bulk as i32 {
                    self.bulk_durable(durable.part);
                } else {
                    self.part_durable(durable.number, durable.part);
                }
            }
            Some(Body::SetDurable(durable)) if is_current(durable.phase) && self.peer.is_open() => {
                self.learn_counter(durable.counter);
                self.recent.target_takes(durable.takes_deltas);
                self.sets_durable(durable.number);
            }
            Some(Body::MarksVoided(answer)) if is_current(answer.phase) && self.peer.is_open() => {
                self.learn_counter(answer.counter);
                self.marks_voided(&answer);
            }
            Some(Body::FenceRequest(request)) => self.fence_asked(request.request),
            Some(Body::FailbackCancelled(cancelled)) => self.fence_cancelled(cancelled.request),
            // Acknowledgements of another phase count for nothing (S8); the rest is not a group's business.
            _ => {}
        }
    }

    /// The target has lost what it had acknowledged: the disk is read there again, as after a failed write (S3). More than
    /// fits a set comes in a round.
    fn blocks_missing(&mut self, runs: &[MissingRun]) {
        let bytes: u64 = runs.iter().map(|run| run.sectors.saturating_mul(SECTOR)).sum();
        if bytes > self.options.memory_bytes / 2 && matches!(self.mode, Mode::Streaming) {
            self.drop_everything(CatchUpReason::TargetChanged);
        }
        for run in runs {
            let Some(disk) = self.disks.get(run.disk as usize) else { continue };
            let first = run.sector / (BLOCK / SECTOR);
            let end = (run.sector + run.sectors).div_ceil(BLOCK / SECTOR).min(disk.blocks);
            if first < end {
                self.recent.forget(DiskIndex(run.disk), run.sector, run.sectors);
                self.is_on_disk(DiskIndex(run.disk), first, end - first);
            }
        }
    }

    /// A part's content did not match its checksum when it was encoded: it is read again from the disk.
    pub fn part_damaged(&mut self, now: Now) {
        self.now = now;
        self.drop_everything(CatchUpReason::DamagedCapture);
    }

    /// Opens the group again, in a new phase, where the link is up.
    pub(super) fn reopen(&mut self) {
        if matches!(self.peer.session, Session::Opening | Session::Open) {
            self.open();
        }
    }

    fn open(&mut self) {
        // The target may have a seal of a set whose parts it has not: it would take others for what that seal says.
        if self.is_belied() && Rule::BeliedIsToldAnew.holds() {
            self.forget_told();
            self.new_phase();
        }
        self.peer.become_session(Session::Opening, self.now.mono);
        self.peer.is_asked = false;
        self.pump_open();
    }

    /// Asks to open the group, once a doubt is durable (rule S12).
    pub(super) fn pump_open(&mut self) {
        if self.peer.session == Session::Opening && !self.peer.is_asked && !self.doubt_is_pending() {
            self.peer.is_asked = true;
            self.actions.push_back(Action::Link(ToLink::Open(self.open_message())));
        }
    }

    fn group_refused(&mut self, refused: GroupRefused) {
        if refused.phase != self.phase.0 {
            return;
        }
        if refused.fence {
            self.fence_without_request();
        }
        self.peer.refused(refused.reason, refused.message, self.now.mono);
    }

    /// The target lost the group while the connection goes on: what it did not acknowledge it does not have, and what is
    /// still on its way must not count (L2). Sets in memory are sent anew in the new phase, rounds go back to the bitmap.
    ///
    /// It may overtake the answer to the opening, which then is of a phase that is over.
    fn group_lost(&mut self, lost: GroupLost) {
        if lost.phase != self.phase.0 || !matches!(self.peer.session, Session::Opening | Session::Open) {
            return;
        }
        if lost.reason == FAILED_BACK {
            self.fence_without_request();
        }
        self.leave_phase(&format!("the target lost the group: {}", lost.message));
        self.peer.refused(lost.reason, lost.message, self.now.mono);
    }

    fn group_opened(&mut self, opened: GroupOpened) {
        if opened.phase != self.phase.0 || self.peer.session != Session::Opening {
            return;
        }
        let Ok(lineage) = <[u8; 16]>::try_from(&opened.lineage[..]).map(Lineage) else { return };
        let is_behind = opened.counter < self.counter.0 && Rule::CounterIsChecked.holds();
        let replaced = self.lineage.is_some_and(|known| known != lineage) || is_behind;
        self.last_cut_time = self.last_cut_time.max(opened.newest_cut_us);
        let forgotten = self.is_behind(opened.marks);
        let void = self.note_seen(opened.marks_void.as_ref());
        self.lineage = Some(lineage);
        self.counter = Counter(opened.counter);
        self.learn_key();
        let first = self.queue.front().and_then(|queued| queued.number);
        // Within a phase the target has at least what it acknowledged, and at most what was sealed.
        let acked = first.or(self.next_number).map(|oldest| oldest - 1);
        let lost = acked.is_some_and(|acked| opened.last_set < acked);
        let ahead = self.next_number.is_some_and(|next| opened.last_set >= next);
        let never_had = !opened.has_history && self.counters.acked_set.is_some();
        if replaced || lost || ahead || never_had || forgotten {
            self.doubt_everything();
            self.counters.target_changed();
            self.drop_everything(CatchUpReason::TargetChanged);
            return;
        }
        if void {
            self.doubt_everything();
            self.drop_everything(CatchUpReason::MarksVoid);
            return;
        }
        if !opened.comparable {
            self.suspects_are_dirty();
        }
        self.peer.become_session(Session::Open, self.now.mono);
        self.peer.bulk_open = opened.bulk_open;
        self.peer.is_initial = opened.last_set == 0;
        self.peer.app_consistent_every =
            opened.app_consistent_every_s.map(|seconds| Duration::from_secs(seconds.into()));
        if first.is_some() {
            self.resume(&opened);
        } else {
            self.next_number = Some(opened.last_set + 1);
        }
    }

    /// Goes on with the sets in memory after what the target has durably.
    fn resume(&mut self, opened: &GroupOpened) {
        self.sets_durable(opened.last_set);
        for index in 0..self.queue.len() {
            self.queue[index].seal_sent = false;
            for part in self.queue[index].parts.iter_mut().flatten() {
                if part.state != PartState::Reading {
                    part.state = PartState::Waiting;
                }
            }
        }
        for key in &opened.durable_parts {
            self.part_durable(key.number, key.part);
        }
    }

    fn bulk_begun(&mut self) {
        self.peer.bulk_open = true;
        self.peer.bulk_begun = true;
        if let Mode::CatchingUp(catch_up) = &mut self.mode
            && catch_up.step == Step::BulkAsked
        {
            catch_up.step = Step::Deciding;
        }
    }

    fn learn_counter(&mut self, counter: u64) {
        self.counter = Counter(self.counter.0.max(counter));
        self.learn_key();
    }

    /// Tells the target, once a second, up to when nothing newer exists; asks again where it had refused.
    pub(super) fn beat(&mut self) {
        if self.now.mono < self.last_beat + BEAT_INTERVAL {
            return;
        }
        self.last_beat = self.now.mono;
        self.retry_fence();
        match &self.peer.session {
            Session::Refused { again, .. } if self.now.mono >= *again => self.open(),
            Session::Open => {
                let beat = SourceGroupBeat {
                    group: self.options.name.clone(),
                    phase: self.phase.0,
                    newest_set: self.next_number.map_or(0, |next| next - 1),
                    as_of_us: self.nothing_newer_as_of(),
                    streaming: matches!(self.mode, Mode::Streaming),
                };
                self.actions.push_back(Action::Link(ToLink::Beat(beat)));
            }
            _ => {}
        }
    }

    /// The time up to which everything written is in sealed sets.
    fn nothing_newer_as_of(&self) -> u64 {
        let open_is_empty = self.queue.open_index().is_some_and(|index| self.queue[index].set.is_empty());
        if open_is_empty && self.epochs.unfinished() == 0 { self.now.wall.0 } else { self.last_cut_time }
    }
}
