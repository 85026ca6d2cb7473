//! What status shows of a group: state, reason, time in it, progress and counters. Read only; decides nothing.

use std::time::Duration;

use blockio::SECTOR;
use proto::time::Timestamp;

use super::action::Now;
use super::catchup::CatchUpReason;
use super::core::{Group, Mode};
use super::peer::Session;
use crate::changeset::CutMark;
use crate::control::{DiskSnapshot, GroupState, Use};

/// Sums and times kept for status.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) captured_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) acked_set: Option<u64>,
    acked_time: Option<Timestamp>,
    /// When its cut was made.
    acked_at: Option<Duration>,
    target_changes: u64,
    state: GroupState,
    state_since: Duration,
    /// Time in each state before the present one began.
    totals: [Duration; GroupState::ALL.len()],
}

impl Counters {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            captured_bytes: 0,
            sent_bytes: 0,
            acked_set: None,
            acked_time: None,
            acked_at: None,
            target_changes: 0,
            state: GroupState::Connecting,
            state_since: now,
            totals: [Duration::ZERO; GroupState::ALL.len()],
        }
    }

    pub(super) fn set_acked(&mut self, number: u64, cut: Option<&CutMark>, now: Now) {
        self.acked_set = Some(number);
        self.acked_time = Some(cut.map_or(now.wall, |cut| cut.time));
        self.acked_at = Some(cut.map_or(now.mono, |cut| cut.mono));
    }

    /// What the target acknowledged counts no more. Were it kept, a target that starts over would be found changed at
    /// every opening.
    pub(super) fn target_changed(&mut self) {
        (self.acked_set, self.acked_time, self.acked_at) = (None, None, None);
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
    /// The target has everything written up to this moment.
    pub covered_until: Option<Duration>,
    /// Bytes that the target does not have durably.
    pub backlog_bytes: u64,
    /// Bytes of guest writes seen.
    pub captured_bytes: u64,
    /// Bytes on the wire.
    pub sent_bytes: u64,
    /// Nothing of the group is on the target yet: a synchronisation is the first one.
    pub is_initial: bool,
    /// Time between application-consistent points as the target has it; zero: on demand only; none: it says nothing.
    pub app_consistent_every: Option<Duration>,
    /// What sets use of memory, and may use.
    pub memory: Use,
    /// What they use of the spool, and may use; nothing where there is none.
    pub spool: Use,
    /// Time in each state before the present one began, as `GroupState::ALL` lists them.
    pub totals: [Duration; GroupState::ALL.len()],
    /// The disks.
    pub disks: Vec<DiskSnapshot>,
}

/// What status says where the cache volume fails.
fn cache_volume(why: &str) -> String {
    format!("cache-volume: {why}; check cache_dir; it is tried again by itself, and there is no spool until then")
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
            (Session::Open, Mode::Streaming) if self.spool.is_active() => GroupState::Spooling,
            (Session::Open, Mode::Streaming) => GroupState::Streaming,
        }
    }

    /// Why the group is in its state: a short code, with a sentence where there is one.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        if self.is_fenced() {
            return Some("failback".into());
        }
        if let Some(why) = self.marks_trouble() {
            return Some(why.into());
        }
        if let Some(disk) = self.unflushable() {
            return Some(format!(
                "source-disk: disk {disk} can't be flushed; it is tried again, and what was written since it could is read \
                 again and sent: check the disk"
            ));
        }
        match (&self.peer.session, &self.mode) {
            (Session::Refused { reason, message, .. }, _) => Some(format!("{reason}: {message}")),
            (Session::Opening | Session::Down, _) => {
                Some(self.peer.down_reason.as_ref().map_or("link-down".into(), |why| format!("link-down: {why}")))
            }
            (Session::Open, Mode::CatchingUp(catch_up)) => {
                let code = catch_up.reason.code();
                match self.spool.trouble() {
                    Some(why) if catch_up.reason == CatchUpReason::CacheVolume => Some(cache_volume(why)),
                    _ => Some(self.progress.reason(code)),
                }
            }
            (Session::Open, Mode::Streaming) if self.is_settling() => Some(self.progress.reason("last-set")),
            (Session::Open, Mode::Streaming) => match self.spool.trouble() {
                Some(why) => Some(cache_volume(why)),
                None if self.spool.is_active() => Some(CatchUpReason::MemoryBudget.code().into()),
                None => None,
            },
        }
    }

    /// What is wrong with the write-intent marks, what follows, and what to do.
    fn marks_trouble(&self) -> Option<&'static str> {
        if self.tracked.validity.is_void() {
            return Some(
                "state-volume: the write-intent marks can't be written; guest writes go on, and until they can be \
                 written a restart of the agent compares everything: check that state_dir is writable and has room",
            );
        }
        self.tracked.is_failing().then_some(
            "state-volume: the write-intent marks can't be written; guest writes to regions without a mark wait until \
             they can, or until the target is reached: check that state_dir is writable and has room",
        )
    }

    /// Whether the rest set of a catching-up is still on its way.
    fn is_settling(&self) -> bool {
        self.queue.front().is_some_and(|queued| queued.closes_bulk) || self.counters.acked_set.is_none()
    }

    /// Notes when the state last changed. Part of `advance`.
    pub(super) fn note_state(&mut self) {
        let state = self.state();
        if state == GroupState::Streaming {
            self.progress.clear();
        }
        if state != self.counters.state {
            let place = GroupState::ALL.iter().position(|one| *one == self.counters.state);
            let place = place.expect("all states are listed");
            self.counters.totals[place] += self.now.mono.saturating_sub(self.counters.state_since);
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

    /// Whether everything is in doubt while marks can't be written: unless the target has a note, a crash forgets it.
    #[must_use]
    pub fn is_doubt_unkept(&self) -> bool {
        self.tracked.intent.is_in_doubt() && self.tracked.is_failing()
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
            is_initial: self.peer.is_initial,
            app_consistent_every: self.peer.app_consistent_every,
            memory: Use { bytes: self.queue.charged(), limit_bytes: self.options.memory_bytes },
            spool: Use { bytes: self.spool.stored(), limit_bytes: self.spool.limit() },
            totals: self.counters.totals,
            disks: self.disk_snapshots(),
        }
    }

    /// Now, while the target has all there is; else the time of the last acknowledged cut.
    fn covered_until(&self, queued_bytes: u64) -> Option<Duration> {
        let acked = self.counters.acked_at?;
        let has_all = matches!(self.mode, Mode::Streaming) && queued_bytes == 0 && self.epochs.unfinished() == 0;
        Some(if has_all { self.now.mono } else { acked })
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
