//! What a group's thread shows of itself.
//!
//! The thread refreshes it when something changes, not with time: durations are kept as the moment
//! they began, and turned into seconds when somebody asks.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use proto::control::{SourceDiskStatus, SourceGroupStatus};
use proto::time::Timestamp;

/// The state of a group, as `status` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupState {
    /// No session with the target.
    Connecting,
    /// Only a bitmap of what changed is kept; rounds send it.
    CatchingUp,
    /// Sets go to the cache volume.
    Spooling,
    /// Sets go from memory to the target.
    Streaming,
    /// Writes are refused: the group fails back or has failed back.
    Fenced,
    /// Stopped by an error; the reason says which.
    Failed,
}

impl GroupState {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Connecting, Self::CatchingUp, Self::Spooling, Self::Streaming, Self::Fenced, Self::Failed];
}

/// How much of something is used, and may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// Used, bytes.
    pub bytes: u64,
    /// The bound, bytes.
    pub limit_bytes: u64,
}

impl fmt::Display for GroupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::CatchingUp => "catching-up",
            Self::Spooling => "spooling",
            Self::Streaming => "streaming",
            Self::Fenced => "fenced",
            Self::Failed => "failed",
        })
    }
}

/// One protected disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSnapshot {
    /// As configured.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes marked as changed and not yet on their way.
    pub dirty_bytes: u64,
    /// Bytes of the running synchronisation that are done; equal to the total when none runs.
    pub sync_done_bytes: u64,
    /// Bytes that the running synchronisation has to look at.
    pub sync_total_bytes: u64,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What it does.
    pub state: GroupState,
    /// Why, as a short code or sentence, where there is something to say.
    pub reason: Option<String>,
    /// When it came into this state.
    pub state_since: Instant,
    /// The newest set that is durable on the target.
    pub acked_set: Option<u64>,
    /// When that set was cut.
    pub acked_time: Option<Timestamp>,
    /// The target holds everything written up to this moment. Not before that of `acked_time`; later on an idle disk.
    pub covered_until: Option<Instant>,
    /// Content that waits for the target, bytes.
    pub backlog_bytes: u64,
    /// Content written by guests since the start, bytes.
    pub captured_bytes: u64,
    /// Bytes sent to the target since the start, after encoding.
    pub sent_bytes: u64,
    /// Synchronisations that were begun since the start.
    pub syncs: u64,
    /// Nothing of the group is on the target yet: a synchronisation is the first one.
    pub is_initial: bool,
    /// Time between application-consistent points as the target has it; zero: on demand only; none: it says nothing.
    pub app_consistent_every: Option<Duration>,
    /// Captured content in memory.
    pub memory: Use,
    /// Captured content on the cache volume.
    pub spool: Use,
    /// Time in each state before `state_since`, as [`GroupState::ALL`] lists them.
    pub totals: [Duration; GroupState::ALL.len()],
    /// In the order of the configuration.
    pub disks: Vec<DiskSnapshot>,
}

impl Snapshot {
    /// A group that has just begun.
    pub fn starting(now: Instant) -> Self {
        Self {
            state: GroupState::Connecting,
            reason: Some("starting".to_owned()),
            state_since: now,
            acked_set: None,
            acked_time: None,
            covered_until: None,
            backlog_bytes: 0,
            captured_bytes: 0,
            sent_bytes: 0,
            syncs: 0,
            is_initial: false,
            app_consistent_every: None,
            memory: Use::default(),
            spool: Use::default(),
            totals: [Duration::ZERO; GroupState::ALL.len()],
            disks: Vec::new(),
        }
    }

    /// The answer to `status`, as of `now`. What has lasted how long is not a matter of the wall clock, which may jump.
    pub fn to_status(&self, group: &str, now: Instant) -> SourceGroupStatus {
        SourceGroupStatus {
            name: group.to_owned(),
            state: self.state.to_string(),
            reason: self.reason.clone(),
            state_seconds: now.saturating_duration_since(self.state_since).as_secs_f64(),
            acked_set: self.acked_set,
            acked_time: self.acked_time.map(|time| time.to_string()),
            rpo_seconds: self.covered_until.map(|until| now.saturating_duration_since(until).as_secs_f64()),
            backlog_bytes: self.backlog_bytes,
            captured_bytes: self.captured_bytes,
            sent_bytes: self.sent_bytes,
            disks: self.disks.iter().map(DiskSnapshot::to_status).collect(),
            memory_bytes: self.memory.bytes,
            memory_limit_bytes: self.memory.limit_bytes,
            spool_bytes: self.spool.bytes,
            spool_limit_bytes: self.spool.limit_bytes,
            state_totals: self.state_totals(now),
        }
    }

    /// Seconds in each state since the agent started, the present one up to now.
    fn state_totals(&self, now: Instant) -> BTreeMap<String, f64> {
        let present = now.saturating_duration_since(self.state_since);
        let total = |(state, before): (GroupState, Duration)| {
            let seconds = if state == self.state { before + present } else { before };
            (state.to_string(), seconds.as_secs_f64())
        };
        GroupState::ALL.into_iter().zip(self.totals).map(total).collect()
    }
}

impl DiskSnapshot {
    fn to_status(&self) -> SourceDiskStatus {
        SourceDiskStatus {
            name: self.name.clone(),
            size: self.size,
            dirty_bytes: self.dirty_bytes,
            sync_done_bytes: self.sync_done_bytes,
            sync_total_bytes: self.sync_total_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    fn moment() -> Instant {
        Instant::now()
    }

    #[test]
    fn seconds_are_counted_when_asked_not_when_refreshed() {
        let start = moment();
        let mut snapshot = Snapshot::starting(start);
        snapshot.state = GroupState::Streaming;
        snapshot.acked_time = Some(Timestamp(1_000_000));
        snapshot.covered_until = Some(start + Duration::from_millis(1250));
        let status = snapshot.to_status("web", start + Duration::from_millis(2500));
        assert_eq!(status.state, "streaming");
        assert!((status.state_seconds - 2.5).abs() < 1e-9);
        assert_eq!(status.rpo_seconds, Some(1.25));
        assert_eq!(status.acked_time.as_deref(), Some("1970-01-01T00:00:01.000000Z"));
    }

    #[test]
    fn time_in_each_state_adds_up_to_the_time_since_the_start() {
        let start = moment();
        let mut snapshot = Snapshot::starting(start);
        snapshot.state = GroupState::Spooling;
        snapshot.totals[0] = Duration::from_secs(2);
        snapshot.totals[2] = Duration::from_secs(5);
        snapshot.state_since = start + Duration::from_secs(7);
        let totals = snapshot.to_status("web", start + Duration::from_secs(10)).state_totals;
        let of = |state: &str| totals[state];
        assert_eq!((of("connecting"), of("spooling"), of("streaming")), (2.0, 8.0, 0.0));
        assert_eq!(totals.values().sum::<f64>(), 10.0);
    }

    #[test]
    fn what_is_unknown_is_null_in_json_and_keys_are_those_of_the_contract() {
        let start = moment();
        let mut snapshot = Snapshot::starting(start);
        snapshot.disks.push(DiskSnapshot {
            name: "os".to_owned(),
            size: 4096,
            dirty_bytes: 1,
            sync_done_bytes: 2,
            sync_total_bytes: 3,
        });
        let json = serde_json::to_value(snapshot.to_status("web", start)).unwrap();
        assert_eq!(json["state"], "connecting");
        for key in ["acked_set", "acked_time", "rpo_seconds"] {
            assert!(json.get(key).is_some_and(serde_json::Value::is_null), "{key}");
        }
        assert_eq!(
            json["disks"][0],
            serde_json::json!({
                "name": "os", "size": 4096, "dirty_bytes": 1, "sync_done_bytes": 2, "sync_total_bytes": 3
            })
        );
    }
}
