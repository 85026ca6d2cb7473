//! One scrub: reads the journals of the groups asked for, one after the other, while replication goes on.

use std::ops::ControlFlow;
use std::sync::Arc;

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
        "the scrub of group \"{0}\" was ended: the group has failed or the agent stops; see `master-target status`"
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

/// Does it, telling how far it is; blocks. Ends when nobody listens any more.
pub fn run(candidates: Vec<Candidate>, answers: &mpsc::Sender<Result<ScrubProgress, Status>>) {
    let clock = candidates.first().map(|candidate| candidate.group.site().clock);
    let started = clock.map(|clock| clock.elapsed()).unwrap_or_default();
    let mut groups = Vec::new();
    for candidate in candidates {
        match scrub(&candidate.group, answers) {
            Ok(group) => groups.push(group),
            Err(error) => {
                let _ = answers.blocking_send(Err(failed(error)));
                return;
            }
        }
    }
    let seconds = clock.map(|clock| (clock.elapsed() - started).as_secs_f64()).unwrap_or_default();
    let report = ScrubReport { groups, seconds };
    // The operator may be gone: the damage is in the log as well.
    let _ = answers.blocking_send(Ok(ScrubProgress { report: Some(report), ..ScrubProgress::default() }));
}

fn scrub(group: &Group, answers: &mpsc::Sender<Result<ScrubProgress, Status>>) -> Result<ScrubGroup, ScrubError> {
    let name = || group.name().to_owned();
    let journal = group.journal()?;
    let progress = |done_bytes, total_bytes| {
        if group.is_stopping() || group.board().has_failed() {
            return ControlFlow::Break(());
        }
        // A slow terminal misses some; a closed one ends the work.
        match answers.try_send(Ok(ScrubProgress { group: name(), done_bytes, total_bytes, report: None })) {
            Err(mpsc::error::TrySendError::Closed(_)) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
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
