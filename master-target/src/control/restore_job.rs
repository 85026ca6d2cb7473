//! One restore: finds group, disk and point, and writes the file while replication goes on.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use jobs::{Cancel, Job, Kind, Outcome, Table};
use proto::control::{RestoreProgress, RestoreReport, RestoreRequest};
use tokio::sync::{OwnedRwLockReadGuard, mpsc};
use tonic::Status;

use super::server::failed;
use crate::group::{Group, GroupError};
use crate::recover::restore::{Format, RestoreError, restore};
use crate::recover::{ChooseError, PointDisks, PointDisksError, PointReader, RecoveryState, chosen_disks};
use crate::retention::{PointInfo, ResolveError};

/// Why a restore can't begin.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The point.
    #[error(transparent)]
    Point(#[from] ResolveError),
    /// The disk.
    #[error(transparent)]
    Choose(#[from] ChooseError),
    /// The format.
    #[error("there is no format \"{0}\": use raw, vmdk or streamOptimized")]
    Format(String),
    /// A failback has the disks.
    #[error("group \"{0}\" is failing back: its points can't be read until it is protected again")]
    FailingBack(String),
    /// The disks.
    #[error(transparent)]
    Disks(#[from] PointDisksError),
}

/// A restore that can begin.
pub struct RestoreJob {
    group: Arc<Group>,
    disk: usize,
    size: u64,
    point: PointInfo,
    disks: PointDisks,
    to: PathBuf,
    name: String,
    format: Format,
    _shared: OwnedRwLockReadGuard<()>,
}

/// Checks a request.
pub async fn prepare(group: Arc<Group>, request: &RestoreRequest) -> Result<RestoreJob, PrepareError> {
    let name = || group.name().to_owned();
    let format = Format::parse(&request.format).ok_or_else(|| PrepareError::Format(request.format.clone()))?;
    let shared = group.restores().try_read_owned().map_err(|_| PrepareError::FailingBack(name()))?;
    let journal = group.journal()?;
    if let RecoveryState::FailingBack { .. } = RecoveryState::of(&journal) {
        return Err(PrepareError::FailingBack(name()));
    }
    let point = journal.resolve(&request.point)?;
    let disk = chosen_disks(&group, &journal, &point, Some(&request.disk))?.first().map_or(0, |(index, _)| *index);
    let disks = PointDisks::of(&group, &journal).await?;
    let size = disks.sizes()[disk];
    let to = PathBuf::from(&request.to);
    let name = request.disk.clone();
    Ok(RestoreJob { group, disk, size, point, disks, to, name, format, _shared: shared })
}

impl RestoreJob {
    /// Does it, telling how far it is; blocks. Ends early when its job is cancelled, or the group or agent ends.
    pub fn run(self, jobs: &Table, answers: &mpsc::Sender<Result<RestoreProgress, Status>>) {
        let clock = self.group.site().clock;
        let started = clock.elapsed();
        let total_bytes = self.size;
        let job = jobs.begin(Kind::Restore, Some(self.group.name()), Cancel::Taken);
        let id = job.id();
        let (outcome, last) = match self.write(&job, answers) {
            Ok(digest) => {
                let report = RestoreReport {
                    point: self.point.id.clone(),
                    checksum: format!("blake3:{digest}"),
                    seconds: (clock.elapsed() - started).as_secs_f64(),
                };
                let result = format!("{} holds point {} ({})", self.to.display(), report.point, report.checksum);
                let report = Some(report);
                (Outcome::Done(result), Ok(RestoreProgress { done_bytes: total_bytes, total_bytes, report, job: id }))
            }
            Err(error) => {
                tracing::info!(group = self.group.name(), %error, "a restore failed");
                let outcome = match error {
                    RestoreError::Cancelled if job.meter().is_cancelled() => Outcome::Cancelled,
                    _ => Outcome::Failed(error.to_string()),
                };
                (outcome, Err(failed(error)))
            }
        };
        job.finish(outcome);
        // The operator may be gone: then the job speaks for itself.
        let _ = answers.blocking_send(last);
    }

    fn write(
        &self,
        job: &Job,
        answers: &mpsc::Sender<Result<RestoreProgress, Status>>,
    ) -> Result<blake3::Hash, RestoreError> {
        let at_start = RestoreError::NotReadable;
        let journal = self.group.journal().map_err(|error| at_start(error.to_string()))?;
        let disks = self.disks.make().map_err(|error| at_start(error.to_string()))?;
        let reader = PointReader::over(journal, disks, &self.point);
        let mut reader = reader.map_err(|error| at_start(error.to_string()))?;
        self.disks.check(&mut reader, &[self.disk]).map_err(|error| at_start(error.to_string()))?;
        let disk = self.disk as u32;
        let read = |offset: u64, buffer: &mut [u8]| reader.read(disk, offset, buffer);
        let step = format!("restoring {} at point {}", self.name, self.point.id);
        let progress = |done_bytes: u64| {
            job.meter().show(&step, done_bytes, self.size);
            // A group that has failed can't be opened again while somebody reads it.
            if self.group.is_stopping() || self.group.board().has_failed() || job.meter().is_cancelled() {
                return ControlFlow::Break(());
            }
            // A slow terminal misses some; work goes on without one.
            let message = RestoreProgress { done_bytes, total_bytes: self.size, report: None, job: job.id() };
            let _ = answers.try_send(Ok(message));
            ControlFlow::Continue(())
        };
        restore(&self.to, self.format, self.size, read, progress)
    }
}
