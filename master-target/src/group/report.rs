//! A group as `status` and `points` show it.

use proto::control::{Point, TargetDiskStatus, TargetGroupStatus};
use proto::replication::PointKind;

use super::runtime::Group;
use crate::retention::{PointInfo, drops};

impl Group {
    /// The group for `status`.
    pub fn status(&self) -> TargetGroupStatus {
        let board = self.board();
        let shown = board.show(self.site().clock.elapsed());
        let sizes = board.sizes();
        let journal = self.journal().ok();
        let forecast = self.forecast();
        let disk = |(index, disk): (usize, &crate::config::DiskConfig)| TargetDiskStatus {
            name: disk.name.to_string(),
            target: disk.target.to_string(),
            size: sizes.get(index).copied(),
        };
        TargetGroupStatus {
            name: self.name().to_owned(),
            state: shown.state.as_str().to_owned(),
            reason: shown.reason,
            state_seconds: shown.elapsed.as_secs_f64(),
            durable_set: journal.as_ref().map(|journal| journal.last_durable_set().0),
            applied_set: journal.as_ref().map(|journal| journal.applied_set().0),
            newest_point_time: journal.as_ref().and_then(|journal| journal.newest_point()).map(|p| p.time.to_string()),
            received_bytes: board.received_bytes(),
            journal_bytes: journal.as_ref().map_or(0, |journal| journal.stored_bytes()),
            applied_bytes: board.applied_bytes(),
            disks: self.config().disks.iter().enumerate().map(disk).collect(),
            history_seconds: forecast.history.map(|history| history.as_secs_f64()),
            forecast_seconds: forecast.fits.map(|fits| fits.as_secs_f64()),
        }
    }

    /// Its recovery points, oldest first; none before anything was replicated. A journal that can't be opened is an
    /// error: its points may still be there.
    pub fn points(&self) -> Result<Vec<Point>, String> {
        match (self.journal(), self.board().failure()) {
            (Ok(journal), _) => {
                let start = journal.rollback_start();
                let points = journal.points();
                let drops = drops(&points.iter().map(|point| point.shrink).collect::<Vec<_>>());
                let shown = points.iter().zip(drops);
                Ok(shown.map(|(info, drops)| point(info, drops, journal.is_pinned_point(info.set.0), start)).collect())
            }
            (Err(_), Some(failure)) => Err(format!("the points of group \"{}\" can't be read: {failure}", self.name())),
            (Err(_), None) => Ok(Vec::new()),
        }
    }
}

fn point(point: &PointInfo, compressibility_drop: bool, pinned: bool, rollback_start: Option<u64>) -> Point {
    Point {
        id: point.id.clone(),
        set: point.set.0,
        time: point.time.to_string(),
        kind: match point.kind {
            PointKind::Crash => "crash",
            PointKind::App => "app",
        }
        .to_owned(),
        label: point.label.clone(),
        damaged: point.is_damaged,
        changed_bytes: point.changed_bytes,
        stored_bytes: point.stored_bytes,
        unreadable_bytes: point.unreadable_bytes,
        compressibility: point.shrink.compressibility(),
        churn_bytes_per_second: point.churn(),
        compressibility_drop,
        pinned,
        before_rollback: rollback_start == Some(point.set.0),
    }
}
