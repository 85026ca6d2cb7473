//! What status shows of a group: state, reason, time in it, progress and counters. Read only; decides nothing.

use std::time::Duration;

use blockio::SECTOR;
use proto::time::Timestamp;

use super::action::Now;
use super::core::{Group, Mode};
use super::peer::Session;
use crate::control::{DiskSnapshot, GroupState};

/// Sums and times kept for status.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) captured_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) acked_set: Option<u64>,
    acked_time: Option<Timestamp>,
    target_changes: u64,
    state: GroupState,
    state_since: Duration,
}

impl Counters {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            captured_bytes: 0,
            sent_bytes: 0,
            acked_set: None,
            acked_time: None,
            target_changes: 0,
            state: GroupState::Connecting,
            state_since: now,
        }
    }

    pub(super) fn set_acked(&mut self, number: u64, cut: Option<Timestamp>, now: Now) {
        self.acked_set = Some(number);
        self.acked_time = Some(cut.unwrap_or(now.wall));
    }

    /// What the target acknowledged counts no more. Were it kept, a target that starts over would be found changed at
    /// every opening.
    pub(super) fn target_changed(&mut self) {
        (self.acked_set, self.acked_time) = (None, None);
        self.target_changes += 1;
    }
}

/// A group as status shows it; times are on the driver's monotonic clock.
#[derive(Debug, Clone)]
pub struct GroupSnapshot {
    /// Its state.
    pub state: GroupState,
    /// A short code, and a sentence where there is one.
    pub reason: Option<String>,
    /// When it came into the state.
    pub state_since: Duration,
    /// Last durably acknowledged set.
    pub acked_set: Option<u64>,
    /// Time of its cut.
    pub acked_time: Option<Timestamp>,
    /// The target has everything written up to this time.
    pub covered_until: Option<Timestamp>,
    /// Bytes that the target does not have durably.
    pub backlog_bytes: u64,
    /// Bytes of guest writes seen.
    pub captured_bytes: u64,
    /// Bytes on the wire.
    pub sent_bytes: u64,
    /// The disks.
    pub disks: Vec<DiskSnapshot>,
}

impl Group {
    /// The group's state.
    #[must_use]
    pub fn state(&self) -> GroupState {
        if self.is_fenced() {
            return GroupState::Fenced;
        }
        match (&self.peer.session, &self.mode) {
            (session, _) if session.is_refused_for_now() => GroupState::Connecting,
            (Session::Refused { .. }, _) => GroupState::Failed,
            (Session::Opening, _) | (Session::Down, Mode::Streaming) => GroupState::Connecting,
            (Session::Down, Mode::CatchingUp(_)) if self.counters.acked_set.is_none() => GroupState::Connecting,
            (_, Mode::CatchingUp(_)) => GroupState::CatchingUp,
            // The last cut is made, but until its set is durable the target has no point of it.
            (Session::Open, Mode::Streaming) if self.is_settling() => GroupState::CatchingUp,
            (Session::Open, Mode::Streaming) => GroupState::Streaming,
        }
    }

    /// Why the group is in its state: a short code, with a sentence where there is one.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        if self.is_fenced() {
            return Some("failback".into());
        }
        if self.tracked.is_failing() {
            return Some(
                "state-volume: the write-intent marks can't be written, new writes wait; check state_dir".into(),
            );
        }
        match (&self.peer.session, &self.mode) {
            (Session::Refused { reason, message, .. }, _) => Some(format!("{reason}: {message}")),
            (Session::Opening | Session::Down, _) => {
                Some(self.peer.down_reason.as_ref().map_or("link-down".into(), |why| format!("link-down: {why}")))
            }
            (Session::Open, Mode::CatchingUp(catch_up)) => Some(catch_up.reason.code().into()),
            (Session::Open, Mode::Streaming) if self.is_settling() => Some("last-set".into()),
            (Session::Open, Mode::Streaming) => None,
        }
    }

    /// Whether the rest set of a catching-up is still on its way.
    fn is_settling(&self) -> bool {
        self.queue.front().is_some_and(|queued| queued.closes_bulk) || self.counters.acked_set.is_none()
    }

    /// Notes when the state last changed. Part of `advance`.
    pub(super) fn note_state(&mut self) {
        let state = self.state();
        if state != self.counters.state {
            self.counters.state = state;
            self.counters.state_since = self.now.mono;
        }
    }

    /// The link has put bytes on the wire for this group.
    pub fn bytes_sent(&mut self, bytes: u64) {
        self.counters.sent_bytes += bytes;
    }

    /// How often the target was found without what it had acknowledged.
    #[must_use]
    pub fn target_changes(&self) -> u64 {
        self.counters.target_changes
    }

    /// Bytes of memory that change sets pin, as the budget counts them.
    #[must_use]
    pub fn pinned_bytes(&self) -> u64 {
        self.queue.charged()
    }

    /// Everything that status shows.
    #[must_use]
    pub fn snapshot(&self) -> GroupSnapshot {
        let queued = self.queue.sectors() * SECTOR;
        GroupSnapshot {
            state: self.state(),
            reason: self.reason(),
            state_since: self.counters.state_since,
            acked_set: self.counters.acked_set,
            acked_time: self.counters.acked_time,
            covered_until: self.covered_until(queued),
            backlog_bytes: queued + self.dirty_bytes() + self.bulk_bytes(),
            captured_bytes: self.counters.captured_bytes,
            sent_bytes: self.counters.sent_bytes,
            disks: self.disk_snapshots(),
        }
    }

    /// Now, while the target has all there is; else the time of the last acknowledged cut.
    fn covered_until(&self, queued_bytes: u64) -> Option<Timestamp> {
        let acked = self.counters.acked_time?;
        let has_all = matches!(self.mode, Mode::Streaming) && queued_bytes == 0 && self.epochs.unfinished() == 0;
        Some(if has_all { Timestamp(self.now.wall.0.max(acked.0)) } else { acked })
    }

    fn disk_snapshots(&self) -> Vec<DiskSnapshot> {
        let disks = self.disks.iter().enumerate();
        disks
            .map(|(index, disk)| {
                let dirty = (disk.dirty.count_blocks() + disk.suspect.count_blocks()) * blockio::BLOCK;
                let on_the_way = self.bulk_bytes_of(index as u32);
                let held = disk.held.count_blocks() * blockio::BLOCK;
                let left = (dirty + on_the_way + held).min(disk.spec.size);
                DiskSnapshot {
                    name: disk.spec.name.clone(),
                    size: disk.spec.size,
                    dirty_bytes: dirty.min(disk.spec.size),
                    sync_done_bytes: disk.spec.size - left,
                    sync_total_bytes: disk.spec.size,
                }
            })
            .collect()
    }
}
