//! A group as `status` and `points` show it.

use proto::control::{Point, TargetDiskStatus, TargetGroupStatus};
use proto::replication::PointKind;

use super::roster::Member;
use super::runtime::Group;
use crate::journal::Standing;
use crate::retention::{PointInfo, drops};

impl Group {
    /// The group for `status`.
    pub fn status(&self) -> TargetGroupStatus {
        let board = self.board();
        let shown = board.show(self.site().clock.elapsed());
        let roster = board.roster();
        let journal = self.journal().ok();
        let forecast = self.forecast();
        let configured = |disk: &crate::config::DiskConfig| TargetDiskStatus {
            name: disk.name.to_string(),
            target: disk.target.to_string(),
            size: roster.iter().find(|known| is_current(known, disk.name.as_str())).map(|known| known.spec.size),
            removed_after: None,
        };
        let kept = roster.iter().filter(|disk| disk.standing == Standing::Kept).map(|disk| TargetDiskStatus {
            name: disk.spec.name.clone(),
            target: disk.target_text(),
            size: Some(disk.spec.size),
            removed_after: disk.last,
        });
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
            disks: self.config().disks.iter().map(configured).chain(kept).collect(),
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
                let current = journal.disks();
                let current = (0..).zip(&current).filter(|(_, disk)| disk.standing == Standing::Current);
                let current: Vec<u32> = current.map(|(index, _)| index).collect();
                let shown = shown.map(|(info, drops)| {
                    let has = journal.disks_of(info.set.0);
                    let is_same = has.iter().map(|(index, _)| index).eq(&current);
                    let disks = if is_same { Vec::new() } else { has.into_iter().map(|(_, name)| name).collect() };
                    Point { disks, ..point(info, drops, journal.is_pinned_point(info.set.0), start) }
                });
                Ok(shown.collect())
            }
            (Err(_), Some(failure)) => Err(format!("the points of group \"{}\" can't be read: {failure}", self.name())),
            (Err(_), None) => Ok(Vec::new()),
        }
    }
}

fn is_current(disk: &Member, name: &str) -> bool {
    disk.standing == Standing::Current && disk.spec.name == name
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
        disks: Vec::new(),
    }
}
