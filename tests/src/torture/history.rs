//! What a long scenario judges: now and then everything that is, and in the end the points that there were.

use crate::guest::{Bounds, Model};
use crate::site::{GROUP, Site};
use crate::verdict::{self, Taken, judge_point, judge_sources};

/// Points restored and judged at the end, besides those taken by command: each takes half a second.
const POINTS_JUDGED: usize = 8;

/// With the clients at rest: sources, a point, and targets.
///
/// # Panics
/// If one of them is not as it must be.
#[must_use]
pub fn judge(site: &Site, model: &Model) -> Taken {
    site.wait_protected();
    judge_sources(site, model);
    let taken = verdict::take(site, model, None);
    judge_point(site, model, &taken.id, taken.bounds());
    verdict::assert_targets_equal_sources(site);
    taken
}

/// Every point by command is still there, and a sample of all points is in order.
///
/// # Panics
/// If one is missing or wrong.
pub fn judge_history(site: &Site, model: &Model, taken: &[Taken]) {
    let points = site.points();
    for one in taken {
        assert!(points.iter().any(|point| point.id == one.id), "{one:?} is not listed in {points:?}");
    }
    let every = points.len().div_ceil(POINTS_JUDGED).max(1);
    let mut horizon = 0;
    for point in points.iter().step_by(every) {
        let bounds = Bounds { must_hold_before: horizon, ..Bounds::default() };
        horizon = judge_point(site, model, &point.id, bounds).horizon;
    }
}

/// Fails back to latest and compares what the machine would start from.
///
/// # Panics
/// If anything that was acknowledged is missing.
pub fn fail_back(site: &Site, model: &Model) {
    site.target.ask(&["failback", "--group", GROUP]).ok();
    judge_sources(site, model);
    for disk in 0..site.disks.len() {
        site.assert_vmdk_equals_source(disk);
    }
}
