//! What a verification answers: progress, then the report of the contract.

use std::time::Instant;

use proto::control::{VerifyDifference, VerifyDisk, VerifyProgress, VerifyReport};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;

use super::mailbox::VerifyNews;
use super::server::now;
use crate::group::VerifiedDisk;

/// The answers, one after the other.
pub(super) type Answers = std::pin::Pin<Box<dyn Stream<Item = Result<VerifyProgress, Status>> + Send>>;

/// Turns the news of a group into answers. Dropping them ends the verification.
pub(super) fn answers(
    group: String,
    disks: Vec<String>,
    mut news: mpsc::Receiver<VerifyNews>,
    started: Instant,
) -> Answers {
    let (answers, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = news.recv() => next,
                () = answers.closed() => return,
            };
            let (answer, is_last) = match next {
                Some(VerifyNews::Progress(done_bytes, total_bytes)) => {
                    (Ok(VerifyProgress { done_bytes, total_bytes, report: None }), false)
                }
                Some(VerifyNews::Done(Ok(found))) => {
                    let disks = found.iter().map(|disk| to_disk(disk, &disks)).collect();
                    let seconds = (now() - started).as_secs_f64();
                    let report = Some(VerifyReport { group: group.clone(), disks, seconds });
                    (Ok(VerifyProgress { report, ..VerifyProgress::default() }), true)
                }
                Some(VerifyNews::Done(Err(why))) => {
                    (Err(Status::failed_precondition(format!("group {group}: {why}"))), true)
                }
                None => (Err(Status::unavailable(format!("group {group} ended before it was verified"))), true),
            };
            if answers.send(answer).await.is_err() || is_last {
                return;
            }
        }
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(stream))
}

fn to_disk(found: &VerifiedDisk, names: &[String]) -> VerifyDisk {
    VerifyDisk {
        name: names[found.disk as usize].clone(),
        compared_bytes: found.compared_bytes,
        unverified_bytes: found.unverified_bytes,
        differences: found
            .differences()
            .map(|found| VerifyDifference { offset: found.offset, length: found.length, repaired: found.repaired })
            .collect(),
    }
}
