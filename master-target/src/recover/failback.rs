//! Failback of a group: does what the machine in `steps` says, and shows how far it is.
//!
//! Begun and joined at the `desk`, ordered about by `orders`. Every step can be repeated, so an error stops the job where
//! it durably is.

use std::ops::ControlFlow;
use std::sync::Arc;

use jobs::{Job, Outcome};
use proto::control::FailbackProgress;
use proto::ids::Lineage;
use proto::time::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::desk::Shown;
use super::digest::DigestError;
use super::error::FailbackError;
use super::orders::Orders;
use super::point_disks::check_open;
use super::put_point::{chosen, left_as_is, put_point};
use super::report::{Report, ReportDisk};
use super::steps::{Failback, Next, Stage, Waiting};
use super::taking_back::{CompareError, Compared, compare, keep};
use super::{PointReader, Range, Ranges, ReadError, RecoveryState};
use crate::group::state::Recovery;
use crate::group::{Group, GroupApplier, HandedDisk, LockedDisks, TargetDisks, blocking, by_index};
use crate::journal::{History, Turn};

/// Runs one job.
pub(super) struct Driver {
    group: Arc<Group>,
    machine: Failback,
    show: watch::Sender<Shown>,
    orders: Arc<Orders>,
    job: Job,
    report: Option<Report>,
}

/// How a job ended.
enum End {
    HandedOver(Report),
    Cancelled,
    /// Ended before anything was changed: the disks stay handed over.
    LeftAlone,
}

impl Driver {
    pub(super) fn new(
        group: Arc<Group>,
        machine: Failback,
        show: watch::Sender<Shown>,
        orders: Arc<Orders>,
        job: Job,
        before: Option<Report>,
    ) -> Self {
        Self { group, machine, show, orders, job, report: before }
    }

    pub(super) async fn run(mut self) {
        let name = self.group.name().to_owned();
        let (outcome, failure, report) = match self.steps().await {
            Ok(End::HandedOver(report)) => {
                tracing::info!(group = name, point = report.point, "failed back");
                (Outcome::Done(format!("the disks hold point {}", report.point)), None, Some(report.to_message()))
            }
            Ok(End::Cancelled) => {
                tracing::info!(group = name, "the failback was cancelled: the group replicates again");
                let text = format!("the failback of group \"{name}\" was cancelled: its source may write again");
                (Outcome::Cancelled, Some(text), None)
            }
            Ok(End::LeftAlone) => {
                self.let_alone().await;
                let text = format!("cancelled: the disks of group \"{name}\" stay as they were handed over");
                (Outcome::Cancelled, Some(text), None)
            }
            Err(error) => {
                if self.machine.is_looking() {
                    tracing::info!(group = name, %error, "another choice was refused: the disks stay as they are");
                } else {
                    tracing::error!(group = name, %error, "the failback stopped; repeat the command to go on");
                }
                self.stopped(&error).await;
                let text = format!("the failback of group \"{name}\" stopped: {error}");
                (Outcome::Failed(error.to_string()), Some(text), None)
            }
        };
        self.job.finish(outcome);
        self.show.send_modify(|shown| {
            shown.failure = failure;
            shown.progress.report = report;
        });
    }

    /// What is durable is what is shown: a comparison that failed leaves the group as it was.
    async fn stopped(&mut self, error: &FailbackError) {
        if self.machine.is_looking() {
            self.let_alone().await;
        } else if self.group.journal().is_ok_and(|journal| RecoveryState::of(&journal) == RecoveryState::Normal) {
            // It was not durable yet, or is not any more: the group replicates.
            self.group.board().set_recovery(Recovery::None);
        } else if !self.machine.has_left() {
            self.say(&format!("stopped: {error}; repeat the command to go on"));
        }
    }

    async fn let_alone(&mut self) {
        self.group.let_go_taken().await;
        if let Some(report) = &self.report {
            self.group.board().set_recovery(Recovery::FailedBack(report.state_text()));
        }
    }

    /// Ends all who read points of the group.
    async fn alone(&self) -> tokio::sync::OwnedRwLockWriteGuard<()> {
        self.say("ending the mounts of the group, waiting for its restores to end");
        self.group.end_readers("the group fails back").await
    }

    async fn steps(&mut self) -> Result<End, FailbackError> {
        let mut view = self.group.board().view();
        let mut exclusive = None;
        if self.machine.plan().stage == Stage::Draining {
            self.group.let_in().await;
        }
        loop {
            self.take_orders();
            let seen = *view.borrow_and_update();
            let next = self.machine.next(&seen);
            match next {
                Next::Compare => {
                    exclusive = Some(self.alone().await);
                    if !self.compare().await? {
                        return Ok(End::LeftAlone);
                    }
                }
                Next::Record => self.record().await?,
                Next::SendFence { session } => self.group.send_fence(session, self.machine.plan().request).await,
                Next::Wait(waiting) => {
                    self.say(&waiting_text(waiting, self.group.config().process_server.as_str()));
                    let mut asked = self.job.meter().clone();
                    tokio::select! {
                        changed = view.changed() => changed.unwrap_or(()),
                        () = self.orders.news() => {}
                        () = asked.cancelled() => {}
                    }
                    continue;
                }
                Next::LockOut => {
                    self.say("ending the session with the source");
                    self.group.lock_out().await;
                    if exclusive.is_none() {
                        exclusive = Some(self.alone().await);
                    }
                }
                Next::ApplyAll => self.apply_all().await?,
                Next::PutPoint if !self.put_point().await? => continue,
                Next::PutPoint => {}
                Next::Stamp if !self.stamp().await? => continue,
                Next::Stamp => {}
                // What is ordered later is for the next job.
                Next::RecordDone if !self.orders.close() => continue,
                Next::RecordDone => self.record_done().await?,
                Next::Release => {
                    self.show_step("unlocking the disks");
                    self.group.release_disks().await?;
                }
                Next::RecordCancelled => self.record_cancelled().await?,
                Next::LetIn => {
                    drop(exclusive.take());
                    self.group.replicate_again().await?;
                }
                Next::Done => break,
                Next::Cancelled => return Ok(End::Cancelled),
            }
            self.machine.completed(next);
        }
        drop(exclusive);
        self.report.clone().map(End::HandedOver).ok_or_else(|| self.no_report())
    }

    fn take_orders(&mut self) {
        let taken = self.orders.take();
        if taken.gives_up {
            self.machine.give_up_source();
        }
        if let Some(choice) = taken.choice {
            self.machine.choose(choice);
        }
        if taken.cancels || self.job.meter().is_cancelled() {
            self.machine.cancel();
        }
    }

    fn no_report(&self) -> FailbackError {
        FailbackError::Record { group: self.group.name().to_owned(), what: "there is no report".to_owned() }
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
            self.job.meter().show(step, 0, 0);
            let job = self.job.id();
            self.show.send_modify(|shown| {
                shown.progress = FailbackProgress { step: step.to_owned(), job, ..FailbackProgress::default() };
            });
        }
    }

    /// Shows a step with one, from any thread, and breaks it off for an order.
    fn meter(&self, step: &str) -> impl Fn(u64, u64) -> ControlFlow<()> + Send + 'static {
        self.say(step);
        let (show, meter, orders, step) =
            (self.show.clone(), self.job.meter().clone(), self.orders.clone(), step.to_owned());
        let may_cancel = !self.machine.plan().is_again;
        move |done, total| {
            meter.show(&step, done, total);
            show.send_modify(|shown| {
                shown.progress.done_bytes = done;
                shown.progress.total_bytes = total;
            });
            let is_over = orders.break_off() || may_cancel && meter.is_cancelled();
            if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }

    async fn write_record(&self, state: RecoveryState) -> Result<(), FailbackError> {
        let journal = self.group.journal()?;
        let needs = self.machine.plan().choice.needs();
        Ok(blocking(move || state.record(&journal, needs)).await?)
    }

    async fn record(&mut self) -> Result<(), FailbackError> {
        let plan = self.to_json(self.machine.plan())?;
        self.write_record(RecoveryState::FailingBack { plan }).await
    }

    async fn record_cancelled(&mut self) -> Result<(), FailbackError> {
        self.say("cancelling");
        let journal = self.group.journal()?;
        let cancelled = Some(self.machine.plan().request);
        let now = self.group.site().clock.wall();
        let turn = Turn { record: None, lineage: None, cancelled, history: History::Kept };
        Ok(blocking(move || journal.turn(turn, now)).await?)
    }

    fn to_json(&self, value: &impl Serialize) -> Result<String, FailbackError> {
        serde_json::to_string(value)
            .map_err(|error| FailbackError::Record { group: self.group.name().to_owned(), what: error.to_string() })
    }

    /// Locks the disks that were handed over, and finds what was written to them. Durably nothing changes, and nothing
    /// is written, unless the point can be had. False where it was broken off.
    async fn compare(&mut self) -> Result<bool, FailbackError> {
        let Some(report) = self.report.clone() else { return Err(self.no_report()) };
        let handed: Vec<u32> = report.indexed().map(|(index, _)| index).collect();
        let disks = self.group.lock_handed(&handed).await?;
        let folder = self.group.site().folder(self.group.config());
        let (meter, asked) = (self.meter("comparing the disks with what was handed over"), self.job.meter().clone());
        // One comparison serves every choice, so only its own end breaks it off.
        let progress = move |done, total| {
            let _ = meter(done, total);
            if asked.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let comparing = move || {
            let compared = compare(&folder, &report, &disks.rows, progress);
            (disks, compared)
        };
        let (disks, Compared { spoilt, words }) = match blocking(comparing).await {
            (_, Err(CompareError::Digest(DigestError::BrokenOff(_)))) => return Ok(false),
            (disks, compared) => (disks, compared?),
        };
        self.take_orders();
        self.check_whole(&disks, &spoilt, &words).await?;
        self.group.take_back(disks).await?;
        self.machine.found_spoilt(spoilt);
        Ok(true)
    }

    async fn check_whole(&self, disks: &LockedDisks, spoilt: &Ranges, words: &[String]) -> Result<(), FailbackError> {
        if spoilt.is_empty() {
            return Ok(());
        }
        let journal = self.group.journal()?;
        let point = chosen(&journal, self.machine.plan().choice)?;
        let reading = TargetDisks::new(by_index(&disks.rows)).map_err(FailbackError::Engine)?;
        let (of, ranges) = (point.clone(), spoilt.clone());
        let is_whole = blocking(move || {
            let mut reader = PointReader::over(journal, reading, &of)?;
            for Range(disk, sector, sectors) in ranges.iter() {
                if !reader.holds(disk, sector, sectors)? {
                    return Ok(false);
                }
            }
            Ok::<_, ReadError>(true)
        })
        .await?;
        if is_whole {
            return Ok(());
        }
        let what = if words.is_empty() {
            "parts of the disks were written by a machine when they were handed over before".to_owned()
        } else {
            words.join("; ")
        };
        Err(FailbackError::Spoilt { group: self.group.name().to_owned(), what, point: point.id })
    }

    async fn apply_all(&self) -> Result<(), FailbackError> {
        self.say("writing the last change sets to the disks");
        {
            let mut slot = self.group.slot().await;
            self.group.ready(&mut slot).await?;
        }
        Ok(self.group.with_applier(|applier| applier.apply_all_and_sync()).await??)
    }

    /// False where it was broken off for an order.
    async fn put_point(&mut self) -> Result<bool, FailbackError> {
        let journal = self.group.journal()?;
        let plan = self.machine.plan().clone();
        let meter = self.meter("putting the point on the disks");
        let now = self.group.site().clock.wall();
        let disks = self.group.handed_disks().await;
        let reading = TargetDisks::new(by_index(&disks)).map_err(FailbackError::Engine)?;
        let mut lineage = [0; Lineage::BYTES];
        getrandom::fill(&mut lineage).map_err(FailbackError::Random)?;
        let new = (now, Lineage(lineage));
        let (choice, spoilt) = (plan.choice, plan.spoilt.clone());
        let (roster, open) = (self.group.board().roster(), disks.iter().map(|disk| disk.index).collect::<Vec<_>>());
        let putting = move |applier: &mut GroupApplier| {
            check_open(&journal, choice, &roster, &open)?;
            Ok::<_, FailbackError>(put_point(&journal, applier, reading, choice, &spoilt, new, meter)?)
        };
        let Some(point) = self.group.with_applier(putting).await?? else { return Ok(false) };
        let journal = self.group.journal()?;
        let left_as_is = journal.resolve(&point).map(|point| left_as_is(&journal, &point)).unwrap_or_default();
        if !left_as_is.is_empty() {
            let disks = left_as_is.join(", ");
            tracing::warn!(
                group = self.group.name(),
                point,
                disks,
                "the point is from before these disks were added: they were left as they are, and may hold a mixture"
            );
        }
        self.report = Some(Report {
            group: self.group.name().to_owned(),
            point,
            seconds: 0.0,
            fenced_at_us: plan.fenced.map(|answer| answer.fenced_at_us),
            disks: Vec::new(),
            request: plan.request,
            source: plan.source,
            spoilt: plan.spoilt,
            left_as_is,
        });
        Ok(true)
    }

    /// False where it was broken off for an order.
    async fn stamp(&mut self) -> Result<bool, FailbackError> {
        self.say("stamping the disks");
        self.group.stamp_disks().await?;
        let disks = self.group.handed_disks().await;
        let meter = self.meter("checksums of the disks");
        let folder = self.group.site().folder(self.group.config());
        let key = self.machine.plan().request;
        let rows = |disks: Vec<HandedDisk>, hashes: Vec<blake3::Hash>| {
            let row = |(disk, hash): (HandedDisk, blake3::Hash)| ReportDisk {
                index: Some(disk.index),
                name: disk.name,
                target: disk.target,
                size: disk.size,
                checksum: format!("blake3:{hash}"),
            };
            disks.into_iter().zip(hashes).map(row).collect::<Vec<_>>()
        };
        let rows = match blocking(move || keep(&folder, key, &disks, meter).map(|hashes| rows(disks, hashes))).await {
            Err(CompareError::Digest(DigestError::BrokenOff(_))) => return Ok(false),
            rows => rows?,
        };
        let elapsed = self.group.site().clock.wall().since(Timestamp(self.machine.plan().started_us));
        if let Some(report) = &mut self.report {
            report.disks = rows;
            report.seconds = elapsed.as_secs_f64();
        }
        Ok(true)
    }

    async fn record_done(&mut self) -> Result<(), FailbackError> {
        let Some(report) = self.report.clone() else { return Ok(()) };
        let text = self.to_json(&report)?;
        // Before anybody may take the disks for handed over.
        self.group.with_applier(|applier| applier.forget_sums()).await??;
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
