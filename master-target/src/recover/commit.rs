//! Commit: the choice of a failback becomes final, and its points go unless they are to be kept (F4).
//!
//! One durable replacement of the manifest: a crash finds it committed or not. It is confirmed with the point that was
//! shown, so that nobody commits to another one than they saw.

use jobs::{Cancel, Kind, Outcome};
use proto::control::CommitReply;

use super::RecoveryState;
use super::desk::Desk;
use super::error::FailbackError;
use super::report::Report;
use crate::group::blocking;
use crate::group::state::Recovery;
use crate::journal::{History, Turn};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// What becomes of the points.
    pub history: History,
    /// The point that was shown and is to stay; none: it is to be shown.
    pub confirmed: Option<String>,
}

impl Desk {
    /// Says what a commit would do, or commits.
    pub async fn commit(&self, commit: Commit) -> Result<CommitReply, FailbackError> {
        let _one = self.counter.lock().await;
        self.check_idle()?;
        let journal = self.group.journal()?;
        let report: Report = match RecoveryState::of(&journal) {
            RecoveryState::FailedBack { report } => self.parse(&report)?,
            RecoveryState::Committed { report } => {
                let report: Report = self.parse(&report)?;
                return Err(FailbackError::Committed { group: report.group, point: report.point });
            }
            RecoveryState::Normal => return Err(FailbackError::NotFailedBack(self.name())),
            RecoveryState::FailingBack { .. } => return Err(FailbackError::UnderWay(self.name())),
        };
        let points = journal.points();
        let mut reply = CommitReply {
            group: self.name(),
            point: report.point.clone(),
            points: points.len() as u64,
            oldest_point_time: points.first().map(|point| point.time.to_string()),
            newest_point_time: points.last().map(|point| point.time.to_string()),
            bytes: journal.stored_bytes(),
            keeps_points: commit.history == History::Kept,
            is_done: false,
            job: 0,
        };
        let Some(confirmed) = commit.confirmed else { return Ok(reply) };
        if confirmed != report.point {
            return Err(FailbackError::OtherPoint { group: self.name(), point: report.point });
        }
        let why = "it is done at once";
        let job = self.jobs.begin(Kind::Commit, Some(self.group.name()), Cancel::Refused(why));
        reply.job = job.id();
        let committed = RecoveryState::Committed { report: self.to_json(&report)? };
        let turn = Turn { record: committed.to_record(), lineage: None, cancelled: None, history: commit.history };
        let now = self.group.site().clock.wall();
        if let Err(error) = blocking(move || journal.turn(turn, now)).await {
            job.finish(Outcome::Failed(error.to_string()));
            return Err(error.into());
        }
        self.group.board().set_recovery(Recovery::FailedBack(report.committed_text()));
        let what = if reply.keeps_points { "kept" } else { "discarded" };
        tracing::info!(
            group = self.name(),
            point = report.point,
            points = reply.points,
            "committed; points are {what}"
        );
        job.finish(Outcome::Done(format!("point {} is final, {} points were {what}", report.point, reply.points)));
        reply.is_done = true;
        Ok(reply)
    }

    fn to_json(&self, report: &Report) -> Result<String, FailbackError> {
        serde_json::to_string(report)
            .map_err(|error| FailbackError::Record { group: self.name(), what: error.to_string() })
    }
}
