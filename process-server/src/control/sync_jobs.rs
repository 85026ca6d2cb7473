//! Synchronisations as jobs: watches what the groups show of themselves, and tells their table.
//!
//! A synchronisation begins when a group catches up and ends when it streams; a lost link in between is a pause of it. It
//! can't be cancelled: there is no state without it that is worth anything.

use std::sync::Arc;
use std::time::Duration;

use jobs::{Cancel, Job, Kind, Outcome, Table};

use super::mailbox::GroupHandle;
use super::snapshot::{GroupState, Snapshot};

/// How often the groups are looked at: a first synchronisation of a small disk takes a few hundred milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Why it can't be cancelled.
const NO_WAY: &str = "a group without a synchronisation has no points; to stop it, stop the process-server";

/// What becomes of the job of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Begin(Kind),
    Show { step: String, done: u64, total: u64 },
    End(Outcome),
}

/// Watches the groups until it is dropped.
pub async fn watch(groups: Vec<Arc<dyn GroupHandle>>, table: Table) {
    let mut running: Vec<(u64, Option<Job>)> = groups.iter().map(|_| (0, None)).collect();
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        for (group, (seen, job)) in groups.iter().zip(&mut running) {
            let shown = group.snapshot();
            let next = event(&shown, *seen, job.is_some());
            *seen = shown.syncs;
            match next {
                None => {}
                Some(Event::Begin(kind)) => {
                    *job = Some(table.begin(kind, Some(group.name().as_str()), Cancel::Refused(NO_WAY)));
                }
                Some(Event::Show { step, done, total }) => {
                    if let Some(job) = job {
                        job.meter().show(&step, done, total);
                    }
                }
                Some(Event::End(outcome)) => {
                    if let Some(job) = job.take() {
                        job.finish(outcome);
                    }
                }
            }
        }
    }
}

/// One that began and ended between two looks counts as well: it begins now, and ends at the next.
fn event(shown: &Snapshot, seen: u64, is_running: bool) -> Option<Event> {
    let done: u64 = shown.disks.iter().map(|disk| disk.sync_done_bytes).sum();
    let total: u64 = shown.disks.iter().map(|disk| disk.sync_total_bytes).sum();
    match (shown.state, is_running) {
        (GroupState::CatchingUp | GroupState::Streaming, false)
            if shown.syncs > seen || shown.state == GroupState::CatchingUp =>
        {
            Some(Event::Begin(if shown.is_initial { Kind::InitialSync } else { Kind::Resync }))
        }
        (_, false) => None,
        (GroupState::Streaming | GroupState::Spooling, true) => {
            Some(Event::End(Outcome::Done("the target has everything".to_owned())))
        }
        // What is fenced is drained: then the target has everything as well.
        (GroupState::Fenced, true) if done == total => {
            Some(Event::End(Outcome::Done("the target has everything; the group is fenced".to_owned())))
        }
        (GroupState::Failed, true) => {
            let reason = shown.reason.clone().unwrap_or_else(|| "the group has failed".to_owned());
            Some(Event::End(Outcome::Failed(reason)))
        }
        (_, true) => Some(Event::Show { step: shown.reason.clone().unwrap_or_default(), done, total }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::control::DiskSnapshot;

    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    fn shown(state: GroupState, done: u64) -> Snapshot {
        let disk =
            DiskSnapshot { name: "os".into(), size: 100, dirty_bytes: 0, sync_done_bytes: done, sync_total_bytes: 100 };
        Snapshot { state, disks: vec![disk.clone(), disk], ..Snapshot::starting(Instant::now()) }
    }

    #[test]
    fn a_synchronisation_begins_with_catching_up_and_ends_with_streaming() {
        let initial = Snapshot { is_initial: true, ..shown(GroupState::CatchingUp, 0) };
        assert_eq!(event(&shown(GroupState::Connecting, 0), 0, false), None);
        assert_eq!(event(&initial, 0, false), Some(Event::Begin(Kind::InitialSync)));
        assert_eq!(event(&shown(GroupState::CatchingUp, 0), 0, false), Some(Event::Begin(Kind::Resync)));
        let show = |done| Some(Event::Show { step: "starting".into(), done, total: 200 });
        assert_eq!(event(&shown(GroupState::CatchingUp, 30), 0, true), show(60));
        assert_eq!(event(&shown(GroupState::Connecting, 30), 0, true), show(60), "a lost link is a pause");
        assert!(matches!(event(&shown(GroupState::Streaming, 100), 0, true), Some(Event::End(Outcome::Done(_)))));
        assert_eq!(event(&shown(GroupState::Streaming, 100), 0, false), None);
        let quick = Snapshot { syncs: 2, ..shown(GroupState::Streaming, 100) };
        assert_eq!((event(&quick, 2, false), event(&quick, 1, false)), (None, Some(Event::Begin(Kind::Resync))));
    }

    #[test]
    fn a_fence_ends_it_when_it_is_drained_and_a_failure_at_once() {
        assert!(matches!(event(&shown(GroupState::Fenced, 50), 0, true), Some(Event::Show { .. })));
        assert!(matches!(event(&shown(GroupState::Fenced, 100), 0, true), Some(Event::End(Outcome::Done(_)))));
        let failed = Snapshot { reason: Some("disk gone".into()), ..shown(GroupState::Failed, 50) };
        assert_eq!(event(&failed, 0, true), Some(Event::End(Outcome::Failed("disk gone".into()))));
    }
}
