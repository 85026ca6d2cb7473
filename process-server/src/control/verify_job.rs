//! What a verification answers: progress, then the report of the contract.

use std::time::Instant;

use jobs::{Job, Outcome};
use proto::control::{VerifyDifference, VerifyDisk, VerifyProgress, VerifyReport};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;

use super::mailbox::VerifyNews;
use super::server::now;
use crate::group::VerifiedDisk;

/// The answers, one after the other.
pub(super) type Answers = std::pin::Pin<Box<dyn Stream<Item = Result<VerifyProgress, Status>> + Send>>;

/// Turns the news of a group into answers, and into the progress of a job. The job goes on without a listener; when it
/// is cancelled the news are dropped, which ends the verification.
pub(super) fn answers(
    group: String,
    disks: Vec<String>,
    mut news: mpsc::Receiver<VerifyNews>,
    started: Instant,
    job: Job,
) -> Answers {
    let (answers, stream) = mpsc::channel(2);
    tokio::spawn(async move {
        let mut meter = job.meter().clone();
        let id = job.id();
        loop {
            let next = tokio::select! {
                next = news.recv() => next,
                () = meter.cancelled() => {
                    job.finish(Outcome::Cancelled);
                    let why = format!("the verification of group {group} was cancelled");
                    let _ = answers.send(Err(Status::aborted(why))).await;
                    return;
                }
            };
            let answer = match next {
                Some(VerifyNews::Progress(done_bytes, total_bytes)) => {
                    meter.show("comparing", done_bytes, total_bytes);
                    // A slow terminal misses some; work goes on without one.
                    let _ = answers.try_send(Ok(VerifyProgress { done_bytes, total_bytes, report: None, job: id }));
                    continue;
                }
                Some(VerifyNews::Done(Ok(found))) => {
                    let disks: Vec<VerifyDisk> = found.iter().map(|disk| to_disk(disk, &disks)).collect();
                    job.finish(outcome(&disks));
                    let seconds = (now() - started).as_secs_f64();
                    let report = Some(VerifyReport { group, disks, seconds });
                    Ok(VerifyProgress { report, job: id, ..VerifyProgress::default() })
                }
                Some(VerifyNews::Done(Err(why))) => {
                    job.finish(Outcome::Failed(why.clone()));
                    Err(Status::failed_precondition(format!("group {group}: {why}")))
                }
                None => {
                    job.finish(Outcome::Interrupted);
                    Err(Status::unavailable(format!("group {group} ended before it was verified")))
                }
            };
            let _ = answers.send(answer).await;
            return;
        }
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(stream))
}

/// What is left of a report that nobody may have read.
fn outcome(disks: &[VerifyDisk]) -> Outcome {
    let compared: u64 = disks.iter().map(|disk| disk.compared_bytes).sum();
    let all: Vec<_> =
        disks.iter().flat_map(|disk| disk.differences.iter().map(move |found| (&disk.name, found))).collect();
    let left: Vec<_> = all.iter().filter(|(_, found)| !found.repaired).collect();
    match left.first() {
        None => Outcome::Done(format!("{compared} bytes are the same, {} places were repaired", all.len())),
        Some((disk, found)) => Outcome::Failed(format!(
            "{} places differ; the first: {} bytes at offset {} of disk {disk}",
            left.len(),
            found.length,
            found.offset
        )),
    }
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
