//! The failback desk of a group: begins a failback, joins the one under way, goes on after a restart, and ends it for good.
//!
//! One job per group, in the agent: it goes on when the command line that began it is ended. A command that comes while
//! it runs watches the same job, and may choose another point for it; one that comes after it is told its report, or
//! chooses again. `commit` and `reprotect` leave a failback; they are here since nothing else may run meanwhile.

use std::sync::{Arc, Mutex, PoisonError};

use jobs::{Cancel, Job, Kind, Table};
use proto::control::FailbackProgress;
use proto::ids::SetNumber;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::RecoveryState;
use super::error::FailbackError;
use super::failback::Driver;
use super::orders::{Orders, Way};
use super::point_disks::check_open;
use super::report::Report;
use super::steps::{Choice, Failback, FenceAnswer, Plan, Source, Stage};
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
    pub(super) group: Arc<Group>,
    pub(super) jobs: Table,
    job: Mutex<Option<Running>>,
    /// Held by what begins or leaves a failback, so that there is one of them at a time.
    pub(super) counter: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
struct Running {
    task: AbortHandle,
    shown: watch::Receiver<Shown>,
    orders: Arc<Orders>,
}

impl Desk {
    /// The desk of a group.
    pub fn new(group: Arc<Group>, jobs: Table) -> Self {
        Self { group, jobs, job: Mutex::new(None), counter: Arc::default() }
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

    fn running(&self) -> Option<Running> {
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
            RecoveryState::Committed { report } => {
                let report: Report = self.parse(report)?;
                self.group.board().set_recovery(Recovery::FailedBack(report.committed_text()));
            }
            RecoveryState::FailingBack { plan } => {
                let plan: Plan = self.parse(plan)?;
                tracing::info!(group = self.group.name(), "a failback that was under way goes on");
                self.group.board().set_recovery(Recovery::FailingBack("going on after a restart".to_owned()));
                self.run(Failback::resume(plan), self.old_job(), None);
            }
        }
        Ok(())
    }

    pub(super) fn parse<'a, T: Deserialize<'a>>(&self, text: &'a str) -> Result<T, FailbackError> {
        serde_json::from_str(text)
            .map_err(|error| FailbackError::Record { group: self.name(), what: error.to_string() })
    }

    pub(super) fn name(&self) -> String {
        self.group.name().to_owned()
    }

    /// Begins a failback, joins the one under way, or chooses another point for it. What it shows ends with a report or
    /// a failure.
    pub async fn begin(&self, point: Option<&str>, source: Source) -> Result<watch::Receiver<Shown>, FailbackError> {
        let _one = self.counter.lock().await;
        loop {
            let journal = self.group.journal()?;
            let choice = chosen(&journal, point)?;
            let Some(mut running) = self.running() else { return self.begin_now(&journal, choice, source).await };
            if let Some(choice) = choice {
                self.check_point(&journal, choice).await?;
                check_room(&journal, choice).await?;
            }
            if choice.is_none_or(|choice| running.orders.choose(choice).is_ok()) {
                if source == Source::Without {
                    running.orders.give_up();
                }
                return Ok(running.shown);
            }
            // It is about to end with the point that was chosen before: then the choice begins anew.
            while !running.shown.borrow_and_update().is_last() && running.shown.changed().await.is_ok() {}
        }
    }

    async fn begin_now(
        &self,
        journal: &Arc<GroupJournal>,
        choice: Option<Choice>,
        source: Source,
    ) -> Result<watch::Receiver<Shown>, FailbackError> {
        match RecoveryState::of(journal) {
            RecoveryState::Normal => {}
            RecoveryState::FailedBack { report } => return self.again(journal, &report, choice).await,
            RecoveryState::Committed { report } => return self.committed(journal, &report, choice),
            RecoveryState::FailingBack { plan } => return self.go_on(&plan, choice, source),
        }
        if journal.points().is_empty() {
            return Err(FailbackError::NoPoint(self.name()));
        }
        if source == Source::Fence && self.group.board().view().borrow().session.is_none() {
            return Err(FailbackError::NoSource {
                group: self.name(),
                source_name: self.group.config().process_server.to_string(),
            });
        }
        let choice = choice.unwrap_or(Choice::Latest);
        // Before the source is fenced: neither want of room nor damage is a reason for an outage.
        self.check_point(journal, choice).await?;
        check_room(journal, choice).await?;
        let started_us = self.group.site().clock.wall().us();
        // The time tells this failback from every earlier one: an answer to one of those must not count.
        let plan = Plan {
            request: started_us,
            choice,
            source,
            stage: Stage::Draining,
            fenced: None,
            started_us,
            is_again: false,
            spoilt: super::Ranges::default(),
        };
        Ok(self.run(Failback::begin(plan), self.new_job(), None))
    }

    /// Refuses a point that is known to be damaged, or needs a disk that is not there, while another can still be chosen.
    async fn check_point(&self, journal: &Arc<GroupJournal>, choice: Choice) -> Result<(), FailbackError> {
        let Choice::Point(set) = choice else { return Ok(()) };
        self.check_open(journal, choice).await?;
        let set = SetNumber(set);
        let is_suspect = journal.points().iter().any(|point| point.set == set && point.is_damaged);
        if !is_suspect {
            return Ok(());
        }
        let journal = journal.clone();
        match blocking(move || journal.known_damage_of(set)).await? {
            Some(what) => Err(FailbackError::Damaged { point: set.0, what }),
            None => Ok(()),
        }
    }

    /// Refuses a point that needs a disk that can't be opened.
    pub(super) async fn check_open(&self, journal: &Arc<GroupJournal>, choice: Choice) -> Result<(), FailbackError> {
        let open: Vec<u32> = match RecoveryState::of(journal) {
            RecoveryState::FailedBack { report } => {
                self.parse::<Report>(&report)?.indexed().map(|(at, _)| at).collect()
            }
            _ => self.group.handed_disks().await.iter().map(|disk| disk.index).collect(),
        };
        if open.is_empty() {
            // Nobody knows: whoever puts the point will find out.
            return Ok(());
        }
        let (journal, roster) = (journal.clone(), self.group.board().roster());
        blocking(move || check_open(&journal, choice, &roster, &open)).await
    }

    /// A command for a group that is failed back: shows its report, or puts another point.
    async fn again(
        &self,
        journal: &Arc<GroupJournal>,
        report: &str,
        choice: Option<Choice>,
    ) -> Result<watch::Receiver<Shown>, FailbackError> {
        let report: Report = self.parse(report)?;
        let Some(choice) = choice.filter(|choice| point_of(journal, *choice).as_ref() != Some(&report.point)) else {
            return Ok(shown(&report));
        };
        self.check_point(journal, choice).await?;
        check_room(journal, choice).await?;
        let request = report.request;
        let fenced = report.fenced_at_us.map(|fenced_at_us| FenceAnswer { request, last_set: 0, fenced_at_us });
        let plan = Plan {
            request,
            choice,
            source: report.source,
            stage: Stage::LockedOut,
            fenced,
            started_us: self.group.site().clock.wall().us(),
            is_again: true,
            spoilt: report.spoilt.clone(),
        };
        Ok(self.run(Failback::again(plan), self.new_job(), Some(report)))
    }

    fn committed(
        &self,
        journal: &GroupJournal,
        report: &str,
        choice: Option<Choice>,
    ) -> Result<watch::Receiver<Shown>, FailbackError> {
        let report: Report = self.parse(report)?;
        match choice.filter(|choice| point_of(journal, *choice).as_ref() != Some(&report.point)) {
            None => Ok(shown(&report)),
            Some(_) => Err(FailbackError::Committed { group: report.group, point: report.point }),
        }
    }

    /// A command for a group whose failback stopped with an error: it goes on from its durable state.
    fn go_on(
        &self,
        plan: &str,
        choice: Option<Choice>,
        source: Source,
    ) -> Result<watch::Receiver<Shown>, FailbackError> {
        let plan: Plan = self.parse(plan)?;
        let old = plan.choice;
        let mut machine = Failback::resume(plan);
        if let Some(choice) = choice.filter(|choice| *choice != old) {
            machine.choose(choice);
        }
        if source == Source::Without {
            machine.give_up_source();
        }
        Ok(self.run(machine, self.old_job(), None))
    }

    /// Ends a failback before its disks are handed over; returns when its source may write again.
    pub async fn cancel(&self) -> Result<(), FailbackError> {
        let _one = self.counter.lock().await;
        let mut shown = match self.running() {
            Some(running) if running.orders.cancel().is_ok() => running.shown,
            Some(_) => return Err(FailbackError::NotCancelled(self.name())),
            None => {
                let RecoveryState::FailingBack { plan } = RecoveryState::of(&*self.group.journal()?) else {
                    return Err(FailbackError::NoneToCancel(self.name()));
                };
                let mut machine = Failback::resume(self.parse(&plan)?);
                if !machine.cancel() {
                    return Err(FailbackError::NotCancelled(self.name()));
                }
                self.run(machine, self.old_job(), None)
            }
        };
        while !shown.borrow_and_update().is_last() && shown.changed().await.is_ok() {}
        match RecoveryState::of(&*self.group.journal()?) {
            RecoveryState::Normal => Ok(()),
            _ => Err(FailbackError::NotCancelled(self.name())),
        }
    }

    /// Refuses while a failback runs.
    pub(super) fn check_idle(&self) -> Result<(), FailbackError> {
        if self.running().is_some() { Err(FailbackError::UnderWay(self.name())) } else { Ok(()) }
    }

    fn new_job(&self) -> Job {
        self.jobs.begin(Kind::Failback, Some(self.group.name()), Cancel::Taken)
    }

    /// The job that an earlier life of the agent, or an error, has left.
    fn old_job(&self) -> Job {
        self.jobs.resume(Kind::Failback, Some(self.group.name()), Cancel::Taken)
    }

    fn run(&self, machine: Failback, job: Job, before: Option<Report>) -> watch::Receiver<Shown> {
        let progress = FailbackProgress { job: job.id(), ..FailbackProgress::default() };
        let (show, shown) = watch::channel(Shown { progress, failure: None });
        let plan = machine.plan();
        let way = if plan.is_again { Way::Forward } else { Way::Back };
        let orders = Arc::new(Orders::new(plan.choice, way));
        let driver = Driver::new(self.group.clone(), machine, show, orders.clone(), job, before);
        let task = tokio::spawn(driver.run()).abort_handle();
        let job = Running { task, shown: shown.clone(), orders };
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        shown
    }
}

fn chosen(journal: &GroupJournal, point: Option<&str>) -> Result<Option<Choice>, FailbackError> {
    Ok(match point {
        None => None,
        Some("latest") => Some(Choice::Latest),
        Some(point) => Some(Choice::Point(journal.resolve(point)?.set.0)),
    })
}

/// Refuses a point whose rollback finds no room for its undo.
async fn check_room(journal: &Arc<GroupJournal>, choice: Choice) -> Result<(), FailbackError> {
    let Choice::Point(set) = choice else { return Ok(()) };
    let journal = journal.clone();
    let needed = move || {
        let bytes = journal.undo_bytes_of_rollback(SetNumber(set))?;
        journal.check_room(bytes)
    };
    Ok(blocking(needed).await?)
}

fn point_of(journal: &GroupJournal, choice: Choice) -> Option<String> {
    match choice {
        Choice::Latest => journal.newest_point().map(|point| point.id),
        Choice::Point(set) => Some(set.to_string()),
    }
}

fn shown(report: &Report) -> watch::Receiver<Shown> {
    let progress = FailbackProgress { report: Some(report.to_message()), ..FailbackProgress::default() };
    watch::channel(Shown { progress, failure: None }).1
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
            is_again: false,
            spoilt: super::super::Ranges::default(),
        };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        let old = r#"{"request":3,"choice":{"point":9},"source":"without","stage":"locked-out","fenced":null,"started_us":4}"#;
        assert_eq!(serde_json::from_str::<Plan>(old).unwrap(), plan, "as an earlier release wrote it");
        assert!(serde_json::from_str::<Plan>("{}").is_err());
        assert!(serde_json::from_str::<Plan>(&text.replace("locked-out", "elsewhere")).is_err());
    }
}
