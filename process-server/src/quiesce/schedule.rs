//! Takes application-consistent points at the interval of the group's policy, the first as soon as the group streams.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::quiescer::{QuiesceError, Quiescer};
use crate::control::GroupHandle;

/// Time between two looks whether the group streams and a point is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Takes a point every so often, for as long as it is polled: as the target has it in the group's retention, else every `own`;
/// `None`: none at all. Before the first, machines that an earlier life of the agent left frozen are thawed.
pub async fn keep_taking(quiescer: Arc<Quiescer>, group: Arc<dyn GroupHandle>, own: Option<Duration>) {
    let thawing = Arc::clone(&quiescer);
    // A panic is in the log already; points are still wanted.
    let _ = spawn_blocking(move || thawing.thaw_leftovers()).await;
    let mut last: Option<Instant> = None;
    loop {
        sleep(LOOK_INTERVAL).await;
        // A group that streams has been told by its target.
        let every = group.snapshot().app_consistent_every.or(own).filter(|every| !every.is_zero());
        let Some(every) = every else { continue };
        if last.is_some_and(|last| last.elapsed() < every) {
            continue;
        }
        let (taking, handle) = (Arc::clone(&quiescer), Arc::clone(&group));
        match spawn_blocking(move || taking.take(&*handle, None)).await {
            Ok(Ok(id)) => info!(group = %group.name(), id, "an application-consistent point was taken"),
            // It is not the hook's fault: it is taken as soon as the group streams.
            Ok(Err(QuiesceError::NotStreaming { .. } | QuiesceError::Busy)) => continue,
            Ok(Err(error)) => {
                warn!(group = %group.name(), %error, "no application-consistent point; it is tried again after the interval");
            }
            Err(panicked) => {
                warn!(group = %group.name(), %panicked, "taking an application-consistent point panicked: report it");
            }
        }
        last = Some(Instant::now());
    }
}
