//! Failback of a group: does what the machine in `steps` says, and shows how far it is.
//!
//! Begun and joined at the `desk`. Every step can be repeated, so an error stops the job where it durably is.

use std::sync::Arc;

use proto::control::FailbackProgress;
use proto::ids::Lineage;
use proto::time::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::RecoveryState;
use super::desk::Shown;
use super::digest::{DigestError, digest};
use super::put_point::{PutPointError, put_point};
use super::report::{Report, ReportDisk};
use super::steps::{Failback, Next, Stage, Waiting};
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
    /// No random numbers for a new lineage.
    #[error("the system gave no random numbers: {0}")]
    Random(getrandom::Error),
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

/// Runs one job.
pub(super) struct Driver {
    group: Arc<Group>,
    machine: Failback,
    show: watch::Sender<Shown>,
    given_up: watch::Receiver<bool>,
    report: Option<Report>,
}

impl Driver {
    pub(super) fn new(
        group: Arc<Group>,
        machine: Failback,
        show: watch::Sender<Shown>,
        given_up: watch::Receiver<bool>,
    ) -> Self {
        Self { group, machine, show, given_up, report: None }
    }

    pub(super) async fn run(mut self) {
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
        let mut lineage = [0; Lineage::BYTES];
        getrandom::fill(&mut lineage).map_err(FailbackError::Random)?;
        let new = (now, Lineage(lineage));
        let putting = self.group.with_applier(move |applier| put_point(&journal, applier, reading, choice, new, meter));
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
        self.group.board().set_recovery(Recovery::FailedBack(report.state_text()));
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
