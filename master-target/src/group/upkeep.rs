//! Keeps a group up: opens it when the agent starts, has it rotated and pruned, and opens it again after a fault.
//!
//! A fault (a disk or the retention volume fails, is read-only, vanishes) ends the session of this group only. All old
//! work ends first; then journal and disks are opened from the disk and checked (rules J8 and J13), again and again
//! with back-off until that succeeds. Want of room is no fault: the journal stays open, and the group goes on as soon
//! as there is some (rule J10). From the lock-out of a failback on, the failback decides when it tries again.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::apply_thread::ToApply;
use super::runtime::{Group, Slot, blocking};
use super::works::GroupJournal;
use crate::receive::admission::Door;
use crate::recover::RecoveryState;

/// How often due rotation and pruning, and a group in trouble, is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The first delay after a fault.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The largest delay.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A group that was up for this long begins with the first delay again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// How often a trouble that lasts is logged again.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// When a failed group is tried again. Pure: it is told the time (monotonic, since the agent started).
#[derive(Debug, Default)]
pub(super) struct Retry {
    delay: Duration,
    due: Duration,
    up_since: Option<Duration>,
}

impl Retry {
    /// Whether it is time.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.due
    }

    /// A fault was met, or a try has failed: the next one waits twice as long, less up to a quarter of it, so that groups
    /// that share a volume do not come in step. `random` is any uniformly distributed number.
    pub(super) fn failed(&mut self, now: Duration, random: u32) {
        let was_healthy = self.up_since.take().is_some_and(|since| now.saturating_sub(since) >= HEALTHY_AFTER);
        self.delay = if was_healthy { RETRY_MIN } else { (self.delay * 2).clamp(RETRY_MIN, RETRY_MAX) };
        self.due = now + self.delay - self.delay / 1024 * (random % 256);
    }

    /// The group is up.
    fn succeeded(&mut self, now: Duration) {
        self.up_since = Some(now);
    }
}

/// A trouble is said when it begins and once a minute while it lasts, or comes and goes.
#[derive(Debug, Default)]
struct Said {
    since: Option<Duration>,
    last: Option<Duration>,
    /// In this stretch of it.
    is_said: bool,
}

impl Said {
    /// It begins or lasts: whether to say so now.
    fn is_due(&mut self, now: Duration) -> bool {
        self.since.get_or_insert(now);
        let is_due = self.last.is_none_or(|last| now >= last + SAY_EVERY);
        if is_due {
            (self.last, self.is_said) = (Some(now), true);
        }
        is_due
    }

    /// It is over: how long it lasted, if its begin was said.
    fn over(&mut self, now: Duration) -> Option<Duration> {
        let since = self.since.take()?;
        std::mem::take(&mut self.is_said).then(|| now.saturating_sub(since))
    }
}

/// What was said of the troubles of a group.
#[derive(Default)]
struct Troubles {
    failure: Said,
    shortage: Said,
}

impl Group {
    /// Opens the group, then keeps it up until this is dropped. `resume` is told which failback an earlier life of the
    /// agent left, once the group could be opened.
    pub async fn keep_up(self: Arc<Self>, resume: impl Fn(&RecoveryState) -> Result<(), String>) {
        let mut troubles = Troubles::default();
        {
            let mut slot = self.slot().await;
            self.open_again(&mut slot, &resume, &mut troubles).await;
        }
        let mut indexing = None;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => {}
                () = self.board().trouble() => {}
            }
            self.board().show(self.site().clock.elapsed());
            if self.board().has_failed() {
                self.mend(&resume, &mut troubles).await;
                continue;
            }
            if self.board().shortage().is_some() {
                self.seek_room(&mut troubles).await;
            }
            self.have_maintained();
            self.let_unneeded_go().await;
            self.merge_thinned();
            self.have_indexed(&mut indexing);
        }
    }

    /// Has the indexes made that the journal lacks, beside everything else.
    fn have_indexed(self: &Arc<Self>, indexing: &mut Option<JoinHandle<()>>) {
        if indexing.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let Ok(shared) = self.restores().try_read_owned() else { return };
        let Ok(journal) = self.journal() else { return };
        let group = self.clone();
        *indexing = Some(tokio::task::spawn_blocking(move || {
            group.index(&journal);
            drop((journal, shared));
        }));
    }

    fn index(&self, journal: &GroupJournal) {
        let restores = self.restores();
        // Whoever waits to have the journal alone makes new shares impossible.
        let must_end = || self.is_stopping() || self.board().has_failed() || restores.try_read().is_err();
        loop {
            match journal.build_index(must_end) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(group = self.name(), %error, "an index of the journal was not made: points are read without it");
                    return;
                }
            }
        }
    }

    /// Asks the thread that writes the disks to rotate, prune and thin.
    fn have_maintained(&self) {
        // A group that is opening, or whose thread has a full queue, is looked at a second later.
        let Some(slot) = self.try_slot() else { return };
        if let Some(works) = slot.works.as_ref().filter(|_| slot.door == Door::Open) {
            let _ = works.to_apply.try_send(ToApply::Maintain);
        }
    }

    /// Ends all work of a group that has failed, and opens it again when it is time.
    async fn mend(&self, resume: &impl Fn(&RecoveryState) -> Result<(), String>, troubles: &mut Troubles) {
        let mut slot = self.slot().await;
        if !self.board().has_failed() || slot.door == Door::Fenced {
            return;
        }
        let is_fresh = slot.works.is_some() || slot.session.is_some() || self.journal().is_ok();
        if is_fresh {
            self.leave_session(&mut slot).await;
            // Mounts and restores hold the journal and the disks; these see that the group has failed, and end.
            let Some(_none) = self.end_readers_soon("the group has failed").await else { return };
            self.let_go(&mut slot).await;
            slot.retry.failed(self.site().clock.elapsed(), random());
            // Its begin is in the log already.
            let _ = troubles.failure.is_due(self.site().clock.elapsed());
        }
        // What no source has opened yet has nothing to be opened again: its next source tries.
        let is_known = !slot.is_started || slot.specs.is_some();
        if is_known && slot.retry.is_due(self.site().clock.elapsed()) {
            self.open_again(&mut slot, resume, troubles).await;
        }
    }

    /// Opens what an earlier life of the agent, or of the group, left.
    async fn open_again(
        &self,
        slot: &mut Slot,
        resume: &impl Fn(&RecoveryState) -> Result<(), String>,
        troubles: &mut Troubles,
    ) {
        let opened = match slot.is_started {
            true => self.ready(slot).await.map(|_| None),
            false => self.start_in(slot).await.map(Some),
        };
        let now = self.site().clock.elapsed();
        match opened {
            Ok(started) => {
                slot.retry.succeeded(now);
                self.board().clear_failure();
                if let Some(lasted) = troubles.failure.over(now) {
                    let seconds = lasted.as_secs();
                    tracing::info!(group = self.name(), seconds, "the group is back: journal and disks were checked");
                }
                if let Some(Err(reason)) = started.as_ref().map(resume) {
                    self.board().fail(reason);
                }
            }
            Err(error) => {
                self.let_go(slot).await;
                slot.retry.failed(now, random());
                let reason = error.to_string();
                if self.board().has_failed() {
                    self.board().still_failed(reason.clone());
                    if troubles.failure.is_due(now) {
                        tracing::error!(group = self.name(), reason, "the group still can't be opened");
                    }
                } else {
                    self.board().fail(reason);
                    let _ = troubles.failure.is_due(now);
                }
            }
        }
    }

    /// Ends the session of a group that has run short of room, and lets sources in again when there is some.
    async fn seek_room(&self, troubles: &mut Troubles) {
        let mut slot = self.slot().await;
        self.leave_session(&mut slot).await;
        let Some((reason, needed_bytes)) = self.board().shortage() else { return };
        let now = self.site().clock.elapsed();
        if troubles.shortage.is_due(now) {
            tracing::warn!(group = self.name(), reason, "the group takes no more until there is room");
        }
        let Ok(journal) = self.journal() else { return };
        match blocking(move || journal.find_room(needed_bytes)).await {
            Ok(false) => {}
            Ok(true) => {
                self.board().clear_shortage();
                if let Some(lasted) = troubles.shortage.over(now) {
                    tracing::info!(
                        group = self.name(),
                        seconds = lasted.as_secs(),
                        "there is room again: the group goes on"
                    );
                }
            }
            Err(error) => self.board().fail(format!("journal: {error}")),
        }
    }

    /// Ends the session, which its source was told; its connection goes on.
    async fn leave_session(&self, slot: &mut Slot) {
        let kept = slot.session.as_ref().map(|session| session.about().link.wire.key());
        self.end_session(slot, kept).await;
    }
}

/// Randomness for delays: the system seeds each of these anew.
pub(super) fn random() -> u32 {
    RandomState::new().hash_one(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn delays_double_from_a_second_to_a_minute_and_begin_anew_only_after_a_healthy_time() {
        let mut retry = Retry::default();
        let mut delays = Vec::new();
        for _ in 0..8 {
            retry.failed(at(100), 0);
            delays.push(retry.due.as_secs() - 100);
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        retry.succeeded(at(200));
        retry.failed(at(210), 0);
        assert!(!retry.is_due(at(269)) && retry.is_due(at(270)), "it was up for a moment only");
        retry.succeeded(at(300));
        retry.failed(at(400), 0);
        assert!(retry.is_due(at(401)));
    }

    #[test]
    fn jitter_takes_at_most_a_quarter() {
        for random in [0, 100, 255, u32::MAX] {
            let mut retry = Retry::default();
            retry.failed(at(0), random);
            assert!(retry.due <= RETRY_MIN && retry.due >= RETRY_MIN * 3 / 4, "{random}: {:?}", retry.due);
        }
    }

    #[test]
    fn a_trouble_is_said_once_a_minute_also_when_it_comes_and_goes() {
        let mut said = Said::default();
        assert!(said.is_due(at(10)));
        assert!(!said.is_due(at(69)));
        assert!(said.is_due(at(70)));
        assert_eq!(said.over(at(75)), Some(at(65)));
        assert!(!said.is_due(at(80)));
        assert_eq!(said.over(at(81)), None, "nobody was told that it began");
        assert!(said.is_due(at(130)));
    }
}
