//! The table on the control interface: the same three calls for both agents.

use std::pin::Pin;
use std::time::Duration;

use proto::control::{CancelJobReply, Job, JobsReply};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use crate::record::State;
use crate::table::{CancelError, Table};

/// Least time between two messages to a follower.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// The answers to somebody who follows a job.
pub type Followed = Pin<Box<dyn Stream<Item = Result<Job, Status>> + Send>>;

/// All jobs.
pub fn list(table: &Table) -> Response<JobsReply> {
    Response::new(JobsReply { jobs: table.list() })
}

/// Asks a job to end.
pub fn cancel(table: &Table, id: u64) -> Result<Response<CancelJobReply>, Status> {
    match table.cancel(id) {
        Ok(()) => Ok(Response::new(CancelJobReply {})),
        Err(CancelError::Unknown) => Err(unknown(id)),
        Err(CancelError::Ended(state)) => {
            Err(Status::failed_precondition(format!("job {id} has ended already: {}", state.as_str())))
        }
        Err(CancelError::Refused(why)) => {
            Err(Status::failed_precondition(format!("job {id} can't be cancelled: {why}")))
        }
    }
}

/// Shows a job until it has ended, or the follower is gone.
pub fn follow(table: &Table, id: u64) -> Result<Response<Followed>, Status> {
    let mut changes = table.changes();
    let first = table.get(id).ok_or_else(|| unknown(id))?;
    let (answers, stream) = mpsc::channel(1);
    let table = table.clone();
    tokio::spawn(async move {
        let mut shown = Some(first);
        while let Some(job) = shown {
            let is_over = job.state != State::Running.as_str();
            if answers.send(Ok(job)).await.is_err() || is_over {
                return;
            }
            tokio::select! {
                () = answers.closed() => return,
                () = tokio::time::sleep(FOLLOW_EVERY) => {}
            }
            if changes.changed().await.is_err() {
                return;
            }
            shown = table.get(id);
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
}

fn unknown(id: u64) -> Status {
    Status::not_found(format!("there is no job {id}: see `jobs`"))
}
