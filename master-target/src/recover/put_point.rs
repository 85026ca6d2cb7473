//! Puts the chosen point on the disks of a group that is failing back (rule L5).
//!
//! Nothing is done where the disks hold it already, as they do for the newest point while streaming. Otherwise it is a
//! rollback: a bulk generation of the journal, begun durably, that a restart goes on with.

use std::ops::ControlFlow;
use std::sync::Arc;

use proto::ids::Lineage;
use proto::time::Timestamp;

use super::steps::Choice;
use super::{PointReader, Ranges};
use crate::apply::{Applier, ApplyError, GroupDisks, Put};
use crate::journal::{Journal, JournalError, Standing, Volume};
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

/// Puts the point on the disks and returns its id, or none where `meter` broke it off; blocks. `reading` are the disks
/// once more, for looking the point up; `lineage` is a new one, should the disks have to change. Nothing of `spoilt` is
/// read from the disks.
pub fn put_point<V: Volume, D: GroupDisks>(
    journal: &Arc<Journal<V>>,
    applier: &mut Applier<V, D>,
    reading: D,
    choice: Choice,
    spoilt: &Ranges,
    (now, lineage): (Timestamp, Lineage),
    meter: impl Fn(u64, u64) -> ControlFlow<()>,
) -> Result<Option<String>, PutPointError> {
    let point = chosen(journal, choice)?;
    let begun = journal.rollback().filter(|rollback| rollback.to == point.set);
    if let Some(range) = journal.open_damage() {
        // The source would have sent it; a machine whose source is gone must come back all the same.
        tracing::error!(
            group = journal.group(),
            disk = journal.disk_name(range.disk),
            offset = range.sector * 512,
            "a target lacks blocks that only the source has, and the group fails back: check the file systems"
        );
    }
    let is_there =
        begun.is_some_and(|rollback| rollback.is_done) || (journal.rollback().is_none() && is_held(journal, &point));
    if is_there && spoilt.is_empty() {
        return Ok(Some(point.id));
    }
    if begun.is_none_or(|rollback| rollback.is_done) {
        journal.begin_rollback(point.set, lineage, now)?;
    }
    let mut reader = PointReader::over(journal.clone(), reading, &point)?;
    match applier.put_point(&mut reader, spoilt, meter)? {
        Put::Done => Ok(Some(point.id)),
        Put::BrokenOff => Ok(None),
    }
}

/// The point that is meant. No set is taken any more, so the newest stays the newest: before a rollback, that is the
/// state that the rollback began from.
pub(super) fn chosen(journal: &Journal<impl Volume>, choice: Choice) -> Result<PointInfo, ResolveError> {
    match choice {
        Choice::Point(set) => journal.resolve(&set.to_string()),
        Choice::Latest => journal.newest_point().ok_or(ResolveError::Empty),
    }
}

/// Names of the disks that the group has and a point does not: a failback leaves them as they are.
pub(super) fn left_as_is(journal: &Journal<impl Volume>, point: &PointInfo) -> Vec<String> {
    let has = journal.disks_of(point.set.0);
    let current = (0..).zip(journal.disks()).filter(|(_, disk)| disk.standing == Standing::Current);
    let lacking = current.filter(|(index, _)| has.iter().all(|(other, _)| other != index));
    lacking.map(|(_, disk)| disk.name).collect()
}

/// True where the disks hold exactly this point.
pub(super) fn is_held(journal: &Journal<impl Volume>, point: &PointInfo) -> bool {
    !journal.bulk_open() && journal.last_durable_set() == point.set && journal.applied_set() == point.set
}
