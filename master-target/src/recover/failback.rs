//! Failback of a group: does what the machine in `steps` says, and shows how far it is.
//!
//! One job per group, in the agent: it goes on when the command line that began it is ended, and after a restart of
//! the agent. A command that comes while it runs watches the same job.

use std::sync::{Arc, Mutex, PoisonError};

use proto::control::{FailbackDisk, FailbackProgress, FailbackReport};
use proto::time::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::RecoveryState;
use super::digest::{DigestError, digest};
use super::put_point::{PutPointError, put_point};
use super::steps::{Choice, Failback, Next, Plan, Source, Stage, Waiting};
use crate::group::state::Recovery;
use crate::group::{Group, GroupError, TargetDisks, WorksError, blocking};
use crate::journal::JournalError;

/// Why a failback did not begin, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum FailbackError {
    /// The group or what it works with.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Opening journal or disks.
    #[error(transparent)]
    Works(#[from] WorksError),
    /// The journal.
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    /// The point is not there.
    #[error(transparent)]
    Resolve(#[from] crate::retention::ResolveError),
    /// Writing the disks.
    #[error("apply: {0}")]
    Apply(#[from] crate::apply::ApplyError),
    /// Putting the point.
    #[error(transparent)]
    PutPoint(#[from] PutPointError),
    /// Reading the disks for their checksums.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// No engine to read the disks with.
    #[error("the I/O engine can't be made: {0}; free memory and repeat the command")]
    Engine(std::io::Error),
    /// There is nothing to go back to.
    #[error("group \"{0}\" has no recovery point yet: its first synchronisation is not finished")]
    NoPoint(String),
    /// The source has to be fenced, and is not there.
    #[error(
        "{source_name}, the source of group \"{group}\", is not connected, so it can't be fenced and drained: connect it, or \
         give up what it has not sent with --without-source"
    )]
    NoSource {
        /// The group.
        group: String,
        /// Name of its process-server.
        source_name: String,
    },
    /// Another choice than the one under way.
    #[error("group \"{0}\" is failing back to another point already: repeat the command without --point to watch it")]
    OtherChoice(String),
    /// Done already, with another point.
    #[error("group \"{group}\" was failed back to point {point} already")]
    Already {
        /// The group.
        group: String,
        /// Its point.
        point: String,
    },
    /// The durable record is not what this agent writes.
    #[error("the failback record of group \"{group}\" can't be read ({what}): restore the retention volume")]
    Record {
        /// The group.
        group: String,
        /// What is wrong.
        what: String,
    },
}

/// What a failback did; kept in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    group: String,
    point: String,
    seconds: f64,
    fenced_at_us: Option<u64>,
    disks: Vec<ReportDisk>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReportDisk {
    name: String,
    target: String,
    size: u64,
    checksum: String,
}

impl Report {
    /// The report as the control interface says it.
    pub fn to_message(&self) -> FailbackReport {
        let disk = |disk: &ReportDisk| FailbackDisk {
            name: disk.name.clone(),
            target: disk.target.clone(),
            size: disk.size,
            checksum: disk.checksum.clone(),
        };
        FailbackReport {
            group: self.group.clone(),
            point: self.point.clone(),
            seconds: self.seconds,
            fenced_at: self.fenced_at_us.map(|us| Timestamp(us).to_string()),
            disks: self.disks.iter().map(disk).collect(),
        }
    }
}

/// How far a job is, or how it ended.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// How far.
    pub progress: FailbackProgress,
    /// Why it stopped, if it did.
    pub failure: Option<String>,
}

impl Shown {
    /// True when nothing more is to come.
    pub fn is_last(&self) -> bool {
        self.failure.is_some() || self.progress.report.is_some()
    }
}

/// The failback desk of one group: begins jobs, goes on with them, lets commands watch.
pub struct Desk {
    group: Arc<Group>,
    job: Mutex<Option<Job>>,
}

#[derive(Clone)]
struct Job {
    task: AbortHandle,
    shown: watch::Receiver<Shown>,
    give_up: Arc<watch::Sender<bool>>,
    choice: Choice,
}

impl Desk {
    /// The desk of a group.
    pub fn new(group: Arc<Group>) -> Self {
        Self { group, job: Mutex::new(None) }
    }

    /// Leaves the job where it durably is: the agent stops.
    pub async fn stop(&self) {
        let job = self.job.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut job) = job {
            job.task.abort();
            // The task owns the sender: an error means that it is gone.
            while job.shown.changed().await.is_ok() {}
        }
    }

    fn running(&self) -> Option<Job> {
        let job = self.job.lock().unwrap_or_else(PoisonError::into_inner).clone();
        job.filter(|job| !job.shown.borrow().is_last())
    }

    /// Goes on with what the journal says is under way, or shows what is done.
    pub fn resume(&self, state: &RecoveryState) -> Result<(), FailbackError> {
        match state {
            RecoveryState::Normal => {}
            RecoveryState::FailedBack { report } => {
                let report: Report = self.parse(report)?;
                self.group.board().set_recovery(Recovery::FailedBack(handed_over(&report)));
            }
            RecoveryState::FailingBack { plan } => {
                let plan: Plan = self.parse(plan)?;
                tracing::info!(group = self.group.name(), ?plan, "a failback goes on");
                self.run(Failback::resume(plan));
            }
        }
        Ok(())
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, text: &str) -> Result<T, FailbackError> {
        serde_json::from_str(text)
            .map_err(|error| FailbackError::Record { group: self.group.name().to_owned(), what: error.to_string() })
    }

    /// Begins a failback, or joins the one under way. What it shows ends with a report or a failure.
    pub async fn begin(&self, point: Option<&str>, source: Source) -> Result<watch::Receiver<Shown>, FailbackError> {
        let journal = self.group.journal()?;
        let choice = match point {
            None | Some("latest") => Choice::Latest,
            Some(point) => Choice::Point(journal.resolve(point)?.set.0),
        };
        if let Some(job) = self.running() {
            return self.join(&job, point.map(|_| choice), source);
        }
        match RecoveryState::of(&journal) {
            RecoveryState::Normal => {}
            RecoveryState::FailedBack { report } => return self.again(&report, point.map(|_| choice)),
            RecoveryState::FailingBack { plan } => return self.go_on(&plan, point.map(|_| choice), source),
        }
        if journal.points().is_empty() {
            return Err(FailbackError::NoPoint(self.group.name().to_owned()));
        }
        if source == Source::Fence && self.group.board().view().borrow().session.is_none() {
            return Err(FailbackError::NoSource {
                group: self.group.name().to_owned(),
                source_name: self.group.config().process_server.to_string(),
            });
        }
        let started_us = self.group.site().clock.wall().us();
        // The time tells this failback from every earlier one: an answer to one of those must not count.
        let plan = Plan { request: started_us, choice, source, stage: Stage::Draining, fenced: None, started_us };
        Ok(self.run(Failback::begin(plan)))
    }

    fn join(&self, job: &Job, choice: Option<Choice>, source: Source) -> Result<watch::Receiver<Shown>, FailbackError> {
        if choice.is_some_and(|choice| choice != job.choice) {
            return Err(FailbackError::OtherChoice(self.group.name().to_owned()));
        }
        if source == Source::Without {
            job.give_up.send_replace(true);
        }
        Ok(job.shown.clone())
    }

    /// A command for a group that is failed back: shows its report.
    fn again(&self, report: &str, choice: Option<Choice>) -> Result<watch::Receiver<Shown>, FailbackError> {
        let report: Report = self.parse(report)?;
        if choice.is_some_and(|choice| choice != Choice::Latest && point_text(choice) != report.point) {
            return Err(FailbackError::Already { group: report.group, point: report.point });
        }
        let progress = FailbackProgress { report: Some(report.to_message()), ..FailbackProgress::default() };
        Ok(watch::channel(Shown { progress, failure: None }).1)
    }

    /// A command for a group whose failback stopped with an error: it goes on from its durable state.
    fn go_on(
        &self,
        plan: &str,
        choice: Option<Choice>,
        source: Source,
    ) -> Result<watch::Receiver<Shown>, FailbackError> {
        let plan: Plan = self.parse(plan)?;
        if choice.is_some_and(|choice| choice != plan.choice) {
            return Err(FailbackError::OtherChoice(self.group.name().to_owned()));
        }
        let mut machine = Failback::resume(plan);
        if source == Source::Without {
            machine.give_up_source();
        }
        Ok(self.run(machine))
    }

    fn run(&self, machine: Failback) -> watch::Receiver<Shown> {
        let (show, shown) = watch::channel(Shown::default());
        let (give_up, given_up) = watch::channel(false);
        let choice = machine.plan().choice;
        let driver = Driver { group: self.group.clone(), machine, show, given_up, report: None };
        let task = tokio::spawn(driver.run()).abort_handle();
        let job = Job { task, shown: shown.clone(), give_up: Arc::new(give_up), choice };
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        shown
    }
}

fn point_text(choice: Choice) -> String {
    match choice {
        Choice::Latest => "latest".to_owned(),
        Choice::Point(set) => set.to_string(),
    }
}

fn handed_over(report: &Report) -> String {
    format!("the disks were handed over at point {}", report.point)
}

/// Runs one job.
struct Driver {
    group: Arc<Group>,
    machine: Failback,
    show: watch::Sender<Shown>,
    given_up: watch::Receiver<bool>,
    report: Option<Report>,
}

impl Driver {
    async fn run(mut self) {
        match self.steps().await {
            Ok(()) => {
                tracing::info!(group = self.group.name(), "failed back");
            }
            Err(error) => {
                let failure = format!("the failback of group \"{}\" stopped: {error}", self.group.name());
                tracing::error!(group = self.group.name(), %error, "the failback stopped; repeat the command to go on");
                self.say(&format!("stopped: {error}; repeat the command to go on"));
                self.show.send_modify(|shown| shown.failure = Some(failure));
            }
        }
    }

    async fn steps(&mut self) -> Result<(), FailbackError> {
        let mut view = self.group.board().view();
        let restores = self.group.restores();
        let mut exclusive = None;
        if self.machine.plan().stage == Stage::Draining {
            self.group.let_in().await;
        }
        loop {
            if *self.given_up.borrow_and_update() {
                self.machine.give_up_source();
            }
            let seen = *view.borrow_and_update();
            let next = self.machine.next(&seen);
            match next {
                Next::Record => self.record().await?,
                Next::SendFence { session } => self.group.send_fence(session, self.machine.plan().request).await,
                Next::Wait(waiting) => {
                    self.say(&waiting_text(waiting, self.group.config().process_server.as_str()));
                    tokio::select! {
                        changed = view.changed() => changed.unwrap_or(()),
                        // The desk keeps the sender; without it nobody can give up.
                        changed = self.given_up.changed() => changed.unwrap_or(()),
                    }
                    continue;
                }
                Next::LockOut => {
                    self.say("ending the session with the source");
                    self.group.lock_out().await;
                    self.say("waiting for restores of the group to end");
                    exclusive = Some(restores.clone().write_owned().await);
                }
                Next::ApplyAll => self.apply_all().await?,
                Next::PutPoint => self.put_point().await?,
                Next::Stamp => self.stamp().await?,
                Next::RecordDone => self.record_done().await?,
                Next::Release => {
                    self.show_step("unlocking the disks");
                    self.group.release_disks().await?;
                }
                Next::Done => break,
            }
            self.machine.completed(next);
        }
        drop(exclusive);
        let report = self.report.as_ref().map(Report::to_message);
        self.show.send_modify(|shown| shown.progress.report = report);
        Ok(())
    }

    /// Shows a step without a measure, as the state of the group too.
    fn say(&self, step: &str) {
        self.group.board().set_recovery(Recovery::FailingBack(step.to_owned()));
        self.show_step(step);
    }

    /// Shows a step to those who watch the job.
    fn show_step(&self, step: &str) {
        let changed = self.show.borrow().progress.step != step;
        if changed {
            tracing::info!(group = self.group.name(), step, "failback");
            self.show.send_modify(|shown| {
                shown.progress = FailbackProgress { step: step.to_owned(), ..FailbackProgress::default() };
            });
        }
    }

    /// Shows a step with one, from any thread.
    fn meter(&self, step: &str) -> impl Fn(u64, u64) + Send + 'static {
        self.say(step);
        let show = self.show.clone();
        move |done, total| {
            show.send_modify(|shown| {
                shown.progress.done_bytes = done;
                shown.progress.total_bytes = total;
            });
        }
    }

    async fn write_record(&self, state: RecoveryState) -> Result<(), FailbackError> {
        let journal = self.group.journal()?;
        Ok(blocking(move || state.record(&journal)).await?)
    }

    async fn record(&mut self) -> Result<(), FailbackError> {
        let plan = self.to_json(self.machine.plan())?;
        self.write_record(RecoveryState::FailingBack { plan }).await
    }

    fn to_json(&self, value: &impl Serialize) -> Result<String, FailbackError> {
        serde_json::to_string(value)
            .map_err(|error| FailbackError::Record { group: self.group.name().to_owned(), what: error.to_string() })
    }

    async fn apply_all(&self) -> Result<(), FailbackError> {
        self.say("writing the last change sets to the disks");
        {
            let mut slot = self.group.slot().await;
            self.group.ready(&mut slot).await?;
        }
        Ok(self.group.with_applier(|applier| applier.apply_all_and_sync()).await??)
    }

    async fn put_point(&mut self) -> Result<(), FailbackError> {
        let journal = self.group.journal()?;
        let choice = self.machine.plan().choice;
        let meter = self.meter("putting the point on the disks");
        let now = self.group.site().clock.wall();
        let disks = self.group.handed_disks().await.into_iter().map(|disk| disk.disk).collect();
        let reading = TargetDisks::new(disks).map_err(FailbackError::Engine)?;
        let putting = self.group.with_applier(move |applier| put_point(&journal, applier, reading, choice, now, meter));
        let point = putting.await??;
        let plan = self.machine.plan();
        self.report = Some(Report {
            group: self.group.name().to_owned(),
            point,
            seconds: 0.0,
            fenced_at_us: plan.fenced.map(|answer| answer.fenced_at_us),
            disks: Vec::new(),
        });
        Ok(())
    }

    async fn stamp(&mut self) -> Result<(), FailbackError> {
        self.say("stamping the disks");
        self.group.stamp_disks().await?;
        let disks = self.group.handed_disks().await;
        let meter = self.meter("checksums of the disks");
        let rows = blocking(move || -> Result<Vec<ReportDisk>, DigestError> {
            let mut before = 0;
            let total = disks.iter().map(|disk| disk.size).sum();
            let mut rows = Vec::with_capacity(disks.len());
            for disk in &disks {
                let hash = digest(disk.disk.as_ref(), disk.size, |done| meter(before + done, total))?;
                before += disk.size;
                rows.push(ReportDisk {
                    name: disk.name.clone(),
                    target: disk.target.clone(),
                    size: disk.size,
                    checksum: format!("blake3:{hash}"),
                });
            }
            Ok(rows)
        })
        .await?;
        let elapsed = self.group.site().clock.wall().since(Timestamp(self.machine.plan().started_us));
        if let Some(report) = &mut self.report {
            report.disks = rows;
            report.seconds = elapsed.as_secs_f64();
        }
        Ok(())
    }

    async fn record_done(&mut self) -> Result<(), FailbackError> {
        let Some(report) = self.report.clone() else { return Ok(()) };
        let text = self.to_json(&report)?;
        self.write_record(RecoveryState::FailedBack { report: text }).await?;
        self.group.board().set_recovery(Recovery::FailedBack(handed_over(&report)));
        Ok(())
    }
}

fn waiting_text(waiting: Waiting, source: &str) -> String {
    match waiting {
        Waiting::ForSource => format!("waiting for {source} to connect"),
        Waiting::ForFence => format!("waiting for {source} to fence the group and cut its last change set"),
        Waiting::ForSets { last_set } => format!("waiting for the last change sets of {source}, up to {last_set}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_kept_and_told_as_the_contract_says() {
        let report = Report {
            group: "web".into(),
            point: "17".into(),
            seconds: 1.5,
            fenced_at_us: Some(1_000_000),
            disks: vec![ReportDisk { name: "os".into(), target: "/x".into(), size: 512, checksum: "blake3:00".into() }],
        };
        let kept: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(kept, report);
        let message = kept.to_message();
        assert_eq!(message.fenced_at.as_deref(), Some("1970-01-01T00:00:01.000000Z"));
        assert_eq!(message.disks[0].checksum, "blake3:00");
    }

    #[test]
    fn a_plan_survives_its_record() {
        let plan = Plan {
            request: 3,
            choice: Choice::Point(9),
            source: Source::Without,
            stage: Stage::LockedOut,
            fenced: None,
            started_us: 4,
        };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        assert!(serde_json::from_str::<Plan>("{}").is_err());
        assert!(serde_json::from_str::<Plan>(&text.replace("locked-out", "elsewhere")).is_err());
    }
}
