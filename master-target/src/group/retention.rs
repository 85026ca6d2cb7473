//! What a group does for its history beside replicating: merging what was thinned, pinning points, foretelling how far it
//! reaches.
//!
//! Merging reads and writes as much as the undo of two generations, so it runs beside everything else, one pair at a time, and
//! ends when a failback or the reopening of a failed group wants the journal for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::runtime::{Group, GroupError, blocking};
use crate::retention::{Forecast, PinError, ResolveError};

/// Why a point was not pinned or let go.
#[derive(Debug, thiserror::Error)]
pub enum PinningError {
    /// The group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// There is no such point.
    #[error(transparent)]
    Point(#[from] ResolveError),
    /// It was not pinned.
    #[error("point {point} of group \"{group}\": {source}")]
    Pin {
        /// The group.
        group: String,
        /// Id of the point.
        point: String,
        /// Why.
        source: PinError,
    },
}

/// Whether neighbours are being made one, and whether that has failed for good.
#[derive(Debug, Default)]
pub(super) struct Merging {
    runs: AtomicBool,
    has_failed: AtomicBool,
}

impl Group {
    /// Begins to make two thinned generations one, where that is due and not under way.
    pub(super) fn merge_thinned(self: &Arc<Self>) {
        if self.config().thin.generation_age().is_none() || self.merging().has_failed.load(Ordering::Relaxed) {
            return;
        }
        let (Ok(journal), Ok(shared)) = (self.journal(), self.restores().try_read_owned()) else { return };
        if self.merging().runs.swap(true, Ordering::Relaxed) {
            return;
        }
        let group = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let restores = group.restores();
            // Whoever waits to have the journal alone makes new shares impossible.
            let may_go_on = || !group.is_stopping() && !group.board().has_failed() && restores.try_read().is_ok();
            let now = group.site().clock.wall();
            if let Err(error) = journal.merge_thinned(now, &group.config().thin, may_go_on) {
                // What is damaged stays so; what stopped the journal is shown by the group's state.
                group.merging().has_failed.store(true, Ordering::Relaxed);
                tracing::warn!(group = group.name(), %error, "thinned history can't be merged; it takes more room until the next start");
            }
            group.merging().runs.store(false, Ordering::Relaxed);
            drop(shared);
        });
    }

    /// Pins a point, or lets it go again; gives its id.
    pub async fn pin(&self, point: &str, unpin: bool) -> Result<String, PinningError> {
        let journal = self.journal()?;
        let found = journal.resolve(point)?;
        let id = found.id.clone();
        let done = blocking(move || match unpin {
            false => journal.pin_point(&found),
            true => journal.unpin_point(&found).map_err(PinError::from),
        });
        let named = |source| PinningError::Pin { group: self.name().to_owned(), point: id.clone(), source };
        done.await.map_err(named)?;
        Ok(id)
    }

    /// How far history reaches and could reach; unknown where the volume does not say.
    pub(super) fn forecast(&self) -> Forecast {
        let now = self.site().clock.wall();
        self.journal().ok().and_then(|journal| journal.forecast(now).ok()).unwrap_or_default()
    }
}
