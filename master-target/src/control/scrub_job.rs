//! One scrub: reads the journals of the groups asked for, one after the other, while replication goes on.

use std::ops::ControlFlow;
use std::sync::Arc;

use jobs::{Cancel, Job, Kind, Outcome, Table};
use proto::control::{ScrubDamage, ScrubGroup, ScrubProgress, ScrubReport};
use tokio::sync::{OwnedRwLockReadGuard, mpsc};
use tonic::Status;

use super::server::failed;
use crate::group::{Group, GroupError};
use crate::journal::{Damage, Scrubbed};

/// Why a scrub did not begin, or has no result.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// The group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The journal is not open.
    #[error("the journal of group \"{group}\" is not open: {why}")]
    NotOpen {
        /// The group.
        group: String,
        /// Why not.
        why: String,
    },
    /// A failback has the journal.
    #[error("group \"{0}\" is failing back: scrub it when that is done")]
    FailingBack(String),
    /// Reading was not possible at all.
    #[error("journal of group \"{group}\": {source}")]
    Journal {
        /// The group.
        group: String,
        /// What happened.
        source: crate::journal::JournalError,
    },
    /// The group failed or the agent stopped meanwhile.
    #[error(
        "the scrub of group \"{0}\" was ended: it was cancelled, the group has failed, or the agent stops; see `master-target status`"
    )]
    Ended(String),
}

/// A group about to be scrubbed. The lock keeps a failed group from being opened again while its journal is read.
pub struct Candidate {
    group: Arc<Group>,
    _shared: OwnedRwLockReadGuard<()>,
}

/// Checks that the journal of a group can be read; none where nothing was ever replicated and no group was named.
pub fn candidate(group: Arc<Group>, is_named: bool) -> Result<Option<Candidate>, ScrubError> {
    let name = || group.name().to_owned();
    if let Some(why) = group.board().failure() {
        return Err(ScrubError::NotOpen { group: name(), why });
    }
    match group.journal() {
        Err(GroupError::NoJournal(_)) if !is_named => return Ok(None),
        found => drop(found?),
    }
    let shared = group.restores().try_read_owned().map_err(|_| ScrubError::FailingBack(name()))?;
    Ok(Some(Candidate { group, _shared: shared }))
}

/// Does it, telling how far it is; blocks. Ends early when its job is cancelled.
pub fn run(
    candidates: Vec<Candidate>,
    named: Option<&str>,
    jobs: &Table,
    answers: &mpsc::Sender<Result<ScrubProgress, Status>>,
) {
    let job = jobs.begin(Kind::Scrub, named, Cancel::Taken);
    let id = job.id();
    let clock = candidates.first().map(|candidate| candidate.group.site().clock);
    let started = clock.map(|clock| clock.elapsed()).unwrap_or_default();
    let mut groups = Vec::new();
    for candidate in candidates {
        match scrub(&candidate.group, &job, answers) {
            Ok(group) => groups.push(group),
            Err(error) => {
                let is_cancelled = matches!(error, ScrubError::Ended(_)) && job.meter().is_cancelled();
                job.finish(if is_cancelled { Outcome::Cancelled } else { Outcome::Failed(error.to_string()) });
                let _ = answers.blocking_send(Err(failed(error)));
                return;
            }
        }
    }
    let seconds = clock.map(|clock| (clock.elapsed() - started).as_secs_f64()).unwrap_or_default();
    // The operator may be gone: the damage is in the log and in the job as well.
    job.finish(outcome(&groups));
    let report = Some(ScrubReport { groups, seconds });
    let _ = answers.blocking_send(Ok(ScrubProgress { report, job: id, ..ScrubProgress::default() }));
}

fn outcome(groups: &[ScrubGroup]) -> Outcome {
    let bytes: u64 = groups.iter().map(|group| group.bytes).sum();
    let damages: Vec<_> = groups.iter().flat_map(|group| &group.damages).collect();
    match damages.first() {
        None => Outcome::Done(format!("{} were read, none is damaged", crate::amount::amount(bytes))),
        Some(first) => Outcome::Failed(format!(
            "{} damaged places; the first: {} at offset {}: {}",
            damages.len(),
            first.file,
            first.offset,
            first.what
        )),
    }
}

fn scrub(
    group: &Group,
    job: &Job,
    answers: &mpsc::Sender<Result<ScrubProgress, Status>>,
) -> Result<ScrubGroup, ScrubError> {
    let name = || group.name().to_owned();
    let journal = group.journal()?;
    let step = format!("scrubbing {}", group.name());
    let progress = |done_bytes, total_bytes| {
        job.meter().show(&step, done_bytes, total_bytes);
        if group.is_stopping() || group.board().has_failed() || job.meter().is_cancelled() {
            return ControlFlow::Break(());
        }
        // A slow terminal misses some; work goes on without one.
        let message = ScrubProgress { group: name(), done_bytes, total_bytes, report: None, job: job.id() };
        let _ = answers.try_send(Ok(message));
        ControlFlow::Continue(())
    };
    let scrubbed = journal.scrub(progress).map_err(|source| ScrubError::Journal { group: name(), source })?;
    let Scrubbed { files, records, bytes, damages } = scrubbed.ok_or_else(|| ScrubError::Ended(name()))?;
    for Damage { file, offset, what, points } in &damages {
        tracing::error!(group = group.name(), file, offset, points = points.len(), "the journal is damaged: {what}");
    }
    Ok(ScrubGroup { name: name(), files, records, bytes, damages: damages.into_iter().map(message).collect() })
}

fn message(damage: Damage) -> ScrubDamage {
    let id = |point: &u64| point.to_string();
    ScrubDamage {
        points: damage.points.len() as u64,
        oldest_point: damage.points.first().map(id),
        newest_point: damage.points.last().map(id),
        file: damage.file,
        offset: damage.offset,
        what: damage.what,
    }
}
