//! What a failback to a point would take, said before anything is done (`--dry-run`).
//!
//! What the journal holds of the point is what may have to be written; only what differs is. How long that takes follows
//! from a sample that is read, where the disks are open. Nothing is changed, and nobody is fenced.

use std::sync::Arc;
use std::time::Duration;

use proto::control::FailbackEstimate;
use proto::ids::SetNumber;

use super::desk::Desk;
use super::error::FailbackError;
use super::put_point::{PutPointError, left_as_is};
use super::report::Report;
use super::steps::Choice;
use super::{PointReader, RecoveryState};
use crate::agent::Clock;
use crate::group::{GroupJournal, TargetDisks, blocking, by_index};
use crate::journal::limits::{BLOCK_BYTES, BLOCK_SECTORS, DISK_IO_BYTES_MAX, SECTOR_BYTES};
use crate::retention::PointInfo;

/// Most bytes of the sample.
const SAMPLE_BYTES_MAX: u64 = 32 << 20;
/// Longest time that it takes.
const SAMPLE_TIME_MAX: Duration = Duration::from_secs(1);

impl Desk {
    /// Estimates a failback to a point, or to the newest.
    pub async fn estimate(&self, point: Option<&str>) -> Result<FailbackEstimate, FailbackError> {
        let journal = self.group.journal()?;
        let state = RecoveryState::of(&journal);
        let point = match (&state, point) {
            (RecoveryState::Committed { report }, _) => {
                let report: Report = self.parse(report)?;
                return Err(FailbackError::Committed { group: report.group, point: report.point });
            }
            (_, point) => journal.resolve(point.unwrap_or("latest"))?,
        };
        self.check_open(&journal, Choice::Point(point.set.0)).await?;
        let disks = self.group.handed_disks().await;
        let group = self.name();
        let left_as_is = left_as_is(&journal, &point);
        let clock = self.group.site().clock;
        let compares = matches!(state, RecoveryState::FailedBack { .. });
        // Held shared: a sample must not read disks that a failback is about to write.
        let shared = self.group.restores().try_read_owned().ok();
        let reading = shared.is_some().then(|| by_index(&disks));
        let reading = reading.filter(|disks| !disks.is_empty()).map(TargetDisks::new).transpose();
        let reading = reading.map_err(FailbackError::Engine)?;
        blocking(move || {
            let _shared = shared;
            let mut estimate = estimate(&journal, &point, reading, clock)?;
            (estimate.group, estimate.compares, estimate.left_as_is) = (group, compares, left_as_is);
            Ok(estimate)
        })
        .await
    }
}

fn estimate(
    journal: &Arc<GroupJournal>,
    point: &PointInfo,
    reading: Option<TargetDisks>,
    clock: Clock,
) -> Result<FailbackEstimate, FailbackError> {
    let apply_bytes = journal.unapplied_bytes();
    let free_bytes = journal.free_for_undo()?;
    let mut estimate = FailbackEstimate {
        point: point.id.clone(),
        apply_bytes,
        free_bytes,
        has_room: true,
        seconds: Some(0.0),
        ..FailbackEstimate::default()
    };
    // Once what is durable is applied, the disks hold the newest point of a group that is streaming.
    let is_newest = !journal.bulk_open() && journal.last_durable_set() == point.set;
    if is_newest && apply_bytes == 0 {
        return Ok(estimate);
    }
    if !is_newest {
        let ranges = journal.ranges_of_rollback(SetNumber(point.set.0))?;
        let blocks = |range: &super::lookup::Range| {
            (range.sector + range.sectors).div_ceil(BLOCK_SECTORS) - range.sector / BLOCK_SECTORS
        };
        estimate.bytes_max = ranges.iter().map(|range| range.sectors * SECTOR_BYTES).sum();
        estimate.blocks_max = ranges.iter().map(blocks).sum();
        estimate.undo_bytes_max = estimate.blocks_max * (BLOCK_BYTES + 8);
        estimate.has_room = estimate.undo_bytes_max <= free_bytes;
    }
    let rate = match reading {
        Some(disks) => sample(journal, point, disks, clock)?,
        None => None,
    };
    // Each byte is read from the journal and from the disk, and at worst saved and written: the sample has read once.
    let work = estimate.bytes_max as f64 * 4.0 + apply_bytes as f64 * 4.0;
    estimate.seconds = rate.map(|rate| work / rate);
    Ok(estimate)
}

/// Bytes per second at which the point is read where the journal holds it; none where too little was read.
fn sample(
    journal: &Arc<GroupJournal>,
    point: &PointInfo,
    disks: TargetDisks,
    clock: Clock,
) -> Result<Option<f64>, FailbackError> {
    let mut reader = PointReader::over(journal.clone(), disks, point).map_err(PutPointError::Read)?;
    let (started, mut done) = (clock.elapsed(), 0);
    let mut buffer = vec![0; DISK_IO_BYTES_MAX as usize];
    for (disk, sector, sectors) in reader.held_ranges().map_err(PutPointError::Read)? {
        let len = (sectors * SECTOR_BYTES).min(DISK_IO_BYTES_MAX);
        reader.read(disk, sector * SECTOR_BYTES, &mut buffer[..len as usize]).map_err(PutPointError::Read)?;
        done += len;
        if done >= SAMPLE_BYTES_MAX || clock.elapsed() - started >= SAMPLE_TIME_MAX {
            break;
        }
    }
    let passed = (clock.elapsed() - started).as_secs_f64();
    Ok(Some(done as f64 / passed).filter(|rate| rate.is_finite() && *rate > 0.0))
}
