//! Comparisons by digest on their way: taken from a group's queue, digested by the workers, sent as `CompareBlocks` over
//! the control stream, in the order in which they become ready.
//!
//! They run beside the bulk parts of their group, not behind them: a part may wait for the target's disks, a comparison
//! only waits for a worker and for the control stream. What the target answers is the group's business.

use std::sync::Arc;

use blockio::crc32;
use proto::digest;
use proto::frame::{RawContent, RawExtent};
use proto::limits::{COMPARE_RUNS_MAX, COMPARE_UNITS_MAX, FRAME_RAW_BYTES_MAX, SECTOR_BYTES};
use proto::replication::{CompareBlocks, CompareRun, SourceMessage};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::encode::Workshop;
use super::error::LinkError;
use super::limits;
use super::port::CompareJob;

/// A comparison that can't be sent: it ends the session.
#[derive(Debug)]
pub(super) struct Failed {
    /// Number of the request.
    pub(super) request: u32,
    /// Why.
    pub(super) error: LinkError,
}

/// The comparisons of one group that are in progress.
pub(super) struct Comparisons {
    workshop: Arc<Workshop>,
    control: mpsc::Sender<SourceMessage>,
    in_progress: JoinSet<Result<(), Failed>>,
}

impl Comparisons {
    /// None yet; they will be digested in `workshop` and sent over `control`.
    pub(super) fn new(workshop: Arc<Workshop>, control: mpsc::Sender<SourceMessage>) -> Self {
        Self { workshop, control, in_progress: JoinSet::new() }
    }

    /// Whether another one may be started.
    pub(super) fn has_room(&self) -> bool {
        self.in_progress.len() < limits::COMPARES_WINDOW
    }

    /// Starts one.
    pub(super) fn start(&mut self, job: CompareJob) {
        assert!(self.has_room(), "the caller asks first");
        let (workshop, control) = (Arc::clone(&self.workshop), self.control.clone());
        self.in_progress.spawn(async move {
            let request = job.request;
            let failed = |error| Failed { request, error };
            let message = digest_job(&workshop, job).await.map_err(failed)?;
            control.send(message.into()).await.map_err(|_| failed(LinkError::Stopping))
        });
    }

    /// Waits for one to be sent. Pends for ever when there is none.
    ///
    /// Cancel safe: one leaves only together with its result.
    pub(super) async fn next(&mut self) -> Result<(), Failed> {
        match self.in_progress.join_next().await {
            Some(Ok(sent)) => sent,
            Some(Err(failed)) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            Some(Err(_)) => unreachable!("none is aborted before all are dropped"),
            None => std::future::pending().await,
        }
    }
}

/// Checks and digests what is to be compared. Memory is let go batch by batch, and a worker is held for one batch at a
/// time: the next batch of an ordered part does not wait for a whole job.
async fn digest_job(workshop: &Workshop, job: CompareJob) -> Result<CompareBlocks, LinkError> {
    let CompareJob { group, phase, request, extents } = job;
    assert!(extents.len() <= COMPARE_RUNS_MAX, "a comparison of {} extents", extents.len());
    let group: Arc<str> = group.into();
    let mut runs = Vec::with_capacity(extents.len());
    for batch in batches(extents) {
        let group = Arc::clone(&group);
        let digest = move || batch.iter().map(|extent| run_of(&group, extent)).collect::<Result<Vec<_>, _>>();
        runs.extend(workshop.run(digest).await?);
    }
    let units = digest::units_of(&runs);
    assert!(units <= COMPARE_UNITS_MAX, "a comparison of {units} units");
    Ok(CompareBlocks { group: group.to_string(), phase, request, runs })
}

/// Neighbouring extents together, up to [`limits::DIGEST_BATCH_BYTES`] of data.
fn batches(extents: Vec<RawExtent>) -> Vec<Vec<RawExtent>> {
    let mut batches: Vec<Vec<RawExtent>> = Vec::new();
    let mut left = 0;
    for extent in extents {
        let bytes = extent.data_bytes();
        match batches.last_mut() {
            Some(batch) if bytes <= left => batch.push(extent),
            _ => {
                batches.push(vec![extent]);
                left = limits::DIGEST_BATCH_BYTES;
            }
        }
        left = left.saturating_sub(bytes);
    }
    batches
}

/// Digests one extent of a comparison.
///
/// # Errors
/// [`LinkError::Damaged`] where its content no longer matches its checksum.
pub fn run_of(group: &str, extent: &RawExtent) -> Result<CompareRun, LinkError> {
    let (disk, sector) = (extent.disk.0, extent.sector);
    let (sectors, digests) = match &extent.content {
        RawContent::Data { bytes, crc } => {
            assert!(bytes.len() <= FRAME_RAW_BYTES_MAX, "an extent of {} bytes", bytes.len());
            if crc32(bytes) != *crc {
                return Err(LinkError::Damaged { group: group.to_owned(), disk, sector, bytes: bytes.len() });
            }
            // At most 1 MiB: the length fits.
            ((bytes.len() as u64 / SECTOR_BYTES) as u32, digest::of_run(bytes))
        }
        RawContent::Zero { sectors } => (*sectors, Vec::new()),
        RawContent::Unreadable { .. } => unreachable!("what can't be read is not compared"),
    };
    Ok(CompareRun { disk, sector, sectors, digests })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proto::ids::DiskIndex;

    use super::*;

    fn data(sector: u64, bytes: Vec<u8>) -> RawExtent {
        let bytes = Bytes::from(bytes);
        let crc = crc32(&bytes);
        RawExtent { disk: DiskIndex(3), sector, content: RawContent::Data { bytes, crc } }
    }

    fn job(extents: Vec<RawExtent>) -> CompareJob {
        CompareJob { group: "web".to_owned(), phase: 5, request: 9, extents }
    }

    async fn digested(extents: Vec<RawExtent>) -> Result<CompareBlocks, LinkError> {
        digest_job(&Workshop::new(1), job(extents)).await
    }

    #[tokio::test]
    async fn each_extent_becomes_one_run_in_order() {
        let mut mixed = vec![1; 3 * digest::UNIT_BYTES];
        mixed[digest::UNIT_BYTES..2 * digest::UNIT_BYTES].fill(0);
        let zero = RawExtent { disk: DiskIndex(0), sector: 1, content: RawContent::Zero { sectors: 1 << 20 } };
        let large = data(4096, vec![3; 1 << 20]);
        let extents = vec![data(7, vec![2; 512]), zero, data(0, vec![0; 4096]), large, data(64, mixed)];
        let message = digested(extents).await.unwrap();
        assert_eq!((message.group.as_str(), message.phase, message.request), ("web", 5, 9));
        let [one, three] = [1, 3].map(|byte| digest::of_unit(&[byte; digest::UNIT_BYTES]));
        let expected = [
            (3, 7, 1, digest::of_unit(&[2; 512]).to_vec()),
            (0, 1, 1 << 20, vec![]),
            (3, 0, 8, vec![]),
            (3, 4096, 2048, [three; 16].concat()),
            (3, 64, 384, [one, digest::ZERO, one].concat()),
        ];
        let runs: Vec<_> = message.runs.into_iter().map(|r| (r.disk, r.sector, r.sectors, r.digests)).collect();
        assert_eq!(runs, expected);
    }

    #[tokio::test]
    async fn content_that_no_longer_matches_its_checksum_is_refused_with_its_place() {
        let mut damaged = data(64, vec![1; 4096]);
        if let RawContent::Data { crc, .. } = &mut damaged.content {
            *crc ^= 1;
        }
        let error = digested(vec![data(0, vec![1; 512]), damaged]).await.unwrap_err();
        assert!(matches!(error, LinkError::Damaged { disk: 3, sector: 64, bytes: 4096, .. }), "{error}");
    }

    #[test]
    fn a_worker_is_never_held_for_more_than_one_batch() {
        let sizes = [1 << 20, 512, 4096, 1 << 20, 512 << 10, 512 << 10, 512];
        let batches = batches(sizes.iter().map(|size| data(0, vec![0; *size])).collect());
        let bytes = |batch: &Vec<RawExtent>| batch.iter().map(RawExtent::data_bytes).sum::<usize>();
        assert!(batches.iter().all(|batch| bytes(batch) <= limits::DIGEST_BATCH_BYTES));
        let order: Vec<usize> = batches.iter().flatten().map(RawExtent::data_bytes).collect();
        assert_eq!((order, batches.len()), (sizes.to_vec(), 5));
    }
}
