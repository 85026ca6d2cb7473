//! Reprotect: a group that was failed back replicates again, with a new lineage, from a comparison by digest (rule L7).
//!
//! Points stay if nobody wrote the disks since they were handed over: else what ends at the disks in a look-up would be
//! somebody else's. Order: disks locked -> compared -> remembered -> the turn durable, with which the source's fence may
//! be lifted -> disks opened, sessions let in -> the source told. A crash before the turn leaves the group failed back,
//! one after it finds a group that replicates; nothing was written to the disks until then.

use std::ops::ControlFlow;
use std::sync::Arc;

use jobs::{Cancel, Job, Kind, Outcome};
use proto::control::{ReprotectProgress, ReprotectReport};
use proto::ids::Lineage;
use tokio::sync::{OwnedRwLockWriteGuard, mpsc};

use super::RecoveryState;
use super::desk::Desk;
use super::digest::DigestError;
use super::error::FailbackError;
use super::report::Report;
use super::steps::Plan;
use super::taking_back::{CompareError, Compared, compare};
use crate::group::state::Recovery;
use crate::group::{Group, GroupJournal, LockedDisks, blocking};
use crate::journal::{History, Turn};

/// How long work beside replication may take to end. What somebody reads takes longer, and is not ended for this.
const READERS_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// How far it is, and the end: what went wrong in words.
pub type ReprotectNews = Result<ReprotectProgress, String>;

/// What the group was.
enum Was {
    FailedBack(Report),
    Committed(Report),
    /// A later choice was under way and has stopped.
    Stopped(Plan),
}

/// One that can begin.
struct Work {
    group: Arc<Group>,
    journal: Arc<GroupJournal>,
    was: Was,
    history: History,
    job: Job,
    news: mpsc::Sender<ReprotectNews>,
    _exclusive: OwnedRwLockWriteGuard<()>,
}

impl Desk {
    /// Begins it. It goes on without its watcher.
    pub async fn reprotect(self: &Arc<Self>, history: History) -> Result<mpsc::Receiver<ReprotectNews>, FailbackError> {
        let one = self.counter.clone().lock_owned().await;
        self.check_idle()?;
        let journal = self.group.journal()?;
        let was = match RecoveryState::of(&journal) {
            RecoveryState::Normal => return Err(FailbackError::NotFailedBack(self.name())),
            RecoveryState::FailedBack { report } => Was::FailedBack(self.parse(&report)?),
            RecoveryState::Committed { report } => Was::Committed(self.parse(&report)?),
            RecoveryState::FailingBack { plan } => {
                let plan: Plan = self.parse(&plan)?;
                // The disks are a mixture: only the source has all of a state.
                if !plan.is_again || history == History::Kept {
                    return Err(FailbackError::UnderWay(self.name()));
                }
                Was::Stopped(plan)
            }
        };
        // The making of indexes and the merging of history end as soon as somebody waits.
        let alone = tokio::time::timeout(READERS_TIME_MAX, self.group.restores().write_owned());
        let _exclusive = alone.await.map_err(|_| FailbackError::Busy(self.name()))?;
        let job = self.jobs.begin(Kind::Reprotect, Some(self.group.name()), Cancel::Taken);
        let (news, watched) = mpsc::channel(16);
        let history = if journal.points().is_empty() { History::Discarded } else { history };
        let work = Work { group: self.group.clone(), journal, was, history, job, news, _exclusive };
        tokio::spawn(async move {
            work.run().await;
            drop(one);
        });
        Ok(watched)
    }
}

impl Work {
    async fn run(self) {
        let clock = self.group.site().clock;
        let started = clock.elapsed();
        let before = self.journal.points().len() as u64;
        let done = self.steps().await;
        let kept = self.journal.points().len() as u64;
        let Self { group, was, job, news, .. } = self;
        let name = group.name().to_owned();
        let id = job.id();
        let (outcome, last) = match done {
            Ok(true) => {
                tracing::info!(group = name, points_kept = kept, "the group is protected again");
                let report = ReprotectReport {
                    group: name,
                    points_kept: kept,
                    points_discarded: before - kept,
                    seconds: (clock.elapsed() - started).as_secs_f64(),
                };
                let progress = ReprotectProgress { report: Some(report), job: id, ..ReprotectProgress::default() };
                (Outcome::Done(format!("{kept} points were kept, {} discarded", before - kept)), Ok(progress))
            }
            Ok(false) => {
                was.show(&group);
                (Outcome::Cancelled, Err(format!("cancelled: group \"{name}\" stays failed back")))
            }
            Err(error) => {
                tracing::info!(group = name, %error, "the group is not protected again");
                if RecoveryState::of(&self.journal) != RecoveryState::Normal {
                    was.show(&group);
                }
                (Outcome::Failed(error.to_string()), Err(error.to_string()))
            }
        };
        job.finish(outcome);
        // Whoever asked may be gone.
        let _ = news.send(last).await;
    }

    fn say(&self, step: &str) {
        self.group.board().set_recovery(Recovery::FailingBack(step.to_owned()));
        self.job.meter().show(step, 0, 0);
        let progress = ReprotectProgress { step: step.to_owned(), job: self.job.id(), ..ReprotectProgress::default() };
        let _ = self.news.try_send(Ok(progress));
    }

    /// False where it was cancelled, before anything was changed.
    async fn steps(&self) -> Result<bool, FailbackError> {
        self.say("locking the disks");
        let kept = match (self.history, &self.was) {
            (History::Kept, Was::FailedBack(report) | Was::Committed(report)) => Some(report),
            _ => None,
        };
        // Without a history no point needs a disk that was removed.
        let handed: Vec<u32> = kept.iter().flat_map(|report| report.indexed()).map(|(index, _)| index).collect();
        let mut disks = self.group.lock_handed(&handed).await?;
        if let Some(report) = kept {
            self.say("comparing the disks with what was handed over");
            let (taken, compared) = self.compare(disks, report.clone()).await;
            let Compared { spoilt, words } = match compared {
                Err(CompareError::Digest(DigestError::BrokenOff(_))) => return Ok(false),
                compared => compared?,
            };
            if !spoilt.is_empty() {
                let what = match words.is_empty() {
                    true => "parts of the disks were written by a machine when they were handed over before".to_owned(),
                    false => words.join("; "),
                };
                return Err(FailbackError::PointsSpoilt { group: self.group.name().to_owned(), what });
            }
            disks = taken;
        }
        self.group.take_back(disks).await?;
        let turned = self.turn().await;
        if let Err(error) = turned {
            self.group.let_go_taken().await;
            return Err(error);
        }
        self.say("letting the source in");
        self.group.replicate_again().await?;
        Ok(true)
    }

    async fn compare(&self, disks: LockedDisks, report: Report) -> (LockedDisks, Result<Compared, CompareError>) {
        let folder = self.group.site().folder(self.group.config());
        let (meter, news, job) = (self.job.meter().clone(), self.news.clone(), self.job.id());
        let progress = move |done_bytes, total_bytes| {
            let step = "comparing the disks with what was handed over";
            meter.show(step, done_bytes, total_bytes);
            // A slow terminal misses some.
            let progress = ReprotectProgress { step: step.to_owned(), done_bytes, total_bytes, report: None, job };
            let _ = news.try_send(Ok(progress));
            if meter.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        blocking(move || {
            let compared = compare(&folder, &report, &disks.rows, progress);
            (disks, compared)
        })
        .await
    }

    async fn turn(&self) -> Result<(), FailbackError> {
        let mut lineage = [0; Lineage::BYTES];
        getrandom::fill(&mut lineage).map_err(FailbackError::Random)?;
        let cancelled = Some(self.was.request());
        let turn = Turn { record: None, lineage: Some(Lineage(lineage)), cancelled, history: self.history };
        let (journal, now) = (self.journal.clone(), self.group.site().clock.wall());
        Ok(blocking(move || journal.turn(turn, now)).await?)
    }
}

impl Was {
    fn request(&self) -> u64 {
        match self {
            Self::FailedBack(report) | Self::Committed(report) => report.request,
            Self::Stopped(plan) => plan.request,
        }
    }

    /// Shows what the group still is.
    fn show(&self, group: &Group) {
        group.board().set_recovery(match self {
            Self::FailedBack(report) => Recovery::FailedBack(report.state_text()),
            Self::Committed(report) => Recovery::FailedBack(report.committed_text()),
            Self::Stopped(_) => Recovery::FailingBack("stopped: choose a point, or reprotect".to_owned()),
        });
    }
}
