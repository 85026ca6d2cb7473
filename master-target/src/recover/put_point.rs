//! Puts the chosen point on the disks of a group that is failing back (rule L5).
//!
//! Nothing is done where the disks hold it already, as they do for the newest point while streaming. Otherwise it is a
//! rollback: a bulk generation of the journal, begun durably, that a restart goes on with.

use std::sync::Arc;

use proto::ids::Lineage;
use proto::time::Timestamp;

use super::PointReader;
use super::steps::Choice;
use crate::apply::{Applier, ApplyError, GroupDisks};
use crate::journal::{Journal, JournalError, Volume};
use crate::retention::{PointInfo, ResolveError};

/// Why the point is not on the disks.
#[derive(Debug, thiserror::Error)]
pub enum PutPointError {
    /// It is not in the journal.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The journal.
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    /// Reading the point.
    #[error("reading the point: {0}")]
    Read(#[from] super::ReadError),
    /// Writing the disks.
    #[error("apply: {0}")]
    Apply(#[from] ApplyError),
}

/// Puts the point on the disks and returns its id; blocks. `reading` are the disks once more, for looking the point up;
/// `lineage` is a new one, should the disks have to change.
pub fn put_point<V: Volume, D: GroupDisks>(
    journal: &Arc<Journal<V>>,
    applier: &mut Applier<V, D>,
    reading: D,
    choice: Choice,
    (now, lineage): (Timestamp, Lineage),
    meter: impl Fn(u64, u64),
) -> Result<String, PutPointError> {
    let point = chosen(journal, choice)?;
    let begun = journal.rollback().filter(|rollback| rollback.to == point.set);
    if begun.is_some_and(|rollback| rollback.is_done) || (journal.rollback().is_none() && is_held(journal, &point)) {
        return Ok(point.id);
    }
    if begun.is_none() {
        journal.begin_rollback(point.set, lineage, now)?;
    }
    let mut reader = PointReader::over(journal.clone(), reading, &point)?;
    applier.put_point(&mut reader, meter)?;
    Ok(point.id)
}

/// The point that is meant. A rollback under way has chosen: its bulk generation hides what was newest before.
fn chosen(journal: &Journal<impl Volume>, choice: Choice) -> Result<PointInfo, ResolveError> {
    match (choice, journal.rollback()) {
        (Choice::Point(set), _) => journal.resolve(&set.to_string()),
        (Choice::Latest, Some(rollback)) => journal.resolve(&rollback.to.to_string()),
        (Choice::Latest, None) => journal.newest_point().ok_or(ResolveError::Empty),
    }
}

/// True where the disks hold exactly this point.
fn is_held(journal: &Journal<impl Volume>, point: &PointInfo) -> bool {
    !journal.bulk_open() && journal.last_durable_set() == point.set && journal.applied_set() == point.set
}
