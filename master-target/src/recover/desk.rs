//! The failback desk of a group: begins a failback, joins the one under way, goes on after a restart.
//!
//! One job per group, in the agent: it goes on when the command line that began it is ended. A command that comes
//! while it runs watches the same job; one that comes after it is told its report.

use std::sync::{Arc, Mutex, PoisonError};

use proto::control::FailbackProgress;
use proto::ids::SetNumber;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::RecoveryState;
use super::failback::{Driver, FailbackError};
use super::report::Report;
use super::steps::{Choice, Failback, Plan, Source, Stage};
use crate::group::state::Recovery;
use crate::group::{Group, GroupJournal, blocking};

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
                self.group.board().set_recovery(Recovery::FailedBack(report.state_text()));
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
        if let Choice::Point(set) = choice {
            self.check_point(journal.clone(), SetNumber(set)).await?;
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

    /// Refuses a point that is known to be damaged while another can still be chosen.
    async fn check_point(&self, journal: Arc<GroupJournal>, set: SetNumber) -> Result<(), FailbackError> {
        let is_suspect = journal.points().iter().any(|point| point.set == set && point.is_damaged);
        if !is_suspect {
            return Ok(());
        }
        match blocking(move || journal.known_damage_of(set)).await? {
            Some(what) => Err(FailbackError::Damaged { point: set.0, what }),
            None => Ok(()),
        }
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
        let driver = Driver::new(self.group.clone(), machine, show, given_up);
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

#[cfg(test)]
mod tests {
    use super::*;

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
