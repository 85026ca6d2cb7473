//! Points that an operator pinned: neither age, nor thinning, nor want of room removes them.

use super::points::PointInfo;
use crate::journal::{Journal, JournalError, JournalResult, Volume, lock};

/// Points that may be pinned in a group: each holds on to all history after it.
const PINNED_MAX: usize = 64;

/// Why a point is not pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Too many.
    #[error("{PINNED_MAX} points are pinned already, and each keeps all history after it: unpin one first")]
    TooMany,
    /// It went while it was being pinned.
    #[error("the point is not in the journal any more: choose one of `master-target points`")]
    Gone,
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl<V: Volume> Journal<V> {
    /// Pins a point, durably.
    ///
    /// # Errors
    /// `PinError` when it is not pinned.
    pub fn pin_point(&self, point: &PointInfo) -> Result<(), PinError> {
        let set = point.set.0;
        // Whoever removes points holds it from the decision on.
        let _undo = lock(&self.undo);
        if !self.lists(point.set) {
            return Err(PinError::Gone);
        }
        if self.state().manifest.pinned.len() >= PINNED_MAX && !self.is_pinned_point(set) {
            return Err(PinError::TooMany);
        }
        self.update_manifest(|manifest| {
            if let Err(place) = manifest.pinned.binary_search(&set) {
                manifest.pinned.insert(place, set);
            }
        })?;
        Ok(())
    }

    /// Lets a point go the way of all others.
    pub fn unpin_point(&self, point: &PointInfo) -> JournalResult<()> {
        self.update_manifest(|manifest| manifest.pinned.retain(|set| *set != point.set.0))
    }

    /// Whether the point after this set is pinned.
    #[must_use]
    pub fn is_pinned_point(&self, set: u64) -> bool {
        self.state().manifest.pinned.binary_search(&set).is_ok()
    }
}
