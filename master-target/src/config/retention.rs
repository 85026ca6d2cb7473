//! What `retention`, `thin`, `app_consistent_every`, `keep_at_least` and `retention_size` of a group may be.

use std::time::Duration;

use proto::config::{ConfigError, Source};

use super::file::GroupTable;
use crate::retention::{ThinPolicy, ThinRule};

/// How long points are kept where nothing is said.
pub(super) const RETENTION_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Shortest retention: below, every point is gone before it can be chosen.
const RETENTION_MIN: Duration = Duration::from_secs(1);
/// Longest retention, ten years: beyond, somebody meant another unit.
const RETENTION_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);
/// Shortest stretch of which thinning keeps one point: each is a generation, with undo of its own.
const KEEP_MIN: Duration = Duration::from_secs(60);
/// Least that a journal can work with, bytes: below, a generation is smaller than what its records have around them.
const SIZE_MIN: u64 = 64 << 20;

/// Shortest time between application-consistent points: machines that are frozen more often do little else.
const APP_EVERY_MIN: Duration = Duration::from_secs(60);
/// Longest: beyond a week somebody meant another unit.
const APP_EVERY_MAX: Duration = Duration::from_secs(7 * 86_400);

/// Time between application-consistent points, which the source is told; zero: on demand only.
pub(super) fn app_consistent_every(table: &GroupTable, source: &Source) -> Result<Option<Duration>, ConfigError> {
    let Some(every) = &table.app_consistent_every else { return Ok(None) };
    let duration = every.get_ref().0;
    if duration.is_zero() || (APP_EVERY_MIN..=APP_EVERY_MAX).contains(&duration) {
        return Ok(Some(duration));
    }
    let what = format!("app_consistent_every of group \"{}\" is {}", table.name.get_ref(), every.get_ref());
    Err(source.invalid(every, what, "choose one from 1m to 7d, or 0s for points on demand only"))
}

/// How long points are kept.
pub(super) fn age(table: &GroupTable, source: &Source) -> Result<Duration, ConfigError> {
    let Some(retention) = &table.retention else { return Ok(RETENTION_DEFAULT) };
    let duration = retention.get_ref().0;
    if (RETENTION_MIN..=RETENTION_MAX).contains(&duration) {
        return Ok(duration);
    }
    let what = format!("points can't be kept for {}", retention.get_ref());
    Err(source.invalid(retention, what, "choose between \"1s\" and ten years, such as \"24h\""))
}

/// Age below which points are not given up for room; not longer than they are kept.
pub(super) fn floor(table: &GroupTable, source: &Source) -> Result<Duration, ConfigError> {
    let Some(floor) = &table.keep_at_least else { return Ok(Duration::ZERO) };
    let duration = floor.get_ref().0;
    if duration <= age(table, source)? {
        return Ok(duration);
    }
    let what = format!("keep_at_least is {}, longer than the retention", floor.get_ref());
    Err(source.invalid(floor, what, "choose a shorter one, or a longer retention"))
}

/// Bytes that the journal may take.
pub(super) fn size(table: &GroupTable, source: &Source) -> Result<Option<u64>, ConfigError> {
    let Some(size) = &table.retention_size else { return Ok(None) };
    if size.get_ref().0 >= SIZE_MIN {
        return Ok(Some(size.get_ref().0));
    }
    let what = format!("the journal of group \"{}\" can't work in {} bytes", table.name.get_ref(), size.get_ref().0);
    Err(source.invalid(size, what, "give it 64MiB at least"))
}

/// Which points stay as they grow older.
pub(super) fn thin(table: &GroupTable, source: &Source) -> Result<ThinPolicy, ConfigError> {
    let Some(rules) = &table.thin else { return Ok(ThinPolicy::default()) };
    let retention = age(table, source)?;
    let remedy = "write rules such as { after = \"2h\", keep = \"5m\" }, { after = \"24h\", keep = \"1h\" }";
    let refused = |why: String| {
        let what = format!("thin of group \"{}\": {why}", table.name.get_ref());
        Err(source.invalid(rules, what, remedy))
    };
    for rule in rules.get_ref() {
        if rule.keep.0 < KEEP_MIN {
            return refused(format!("keep is {}, 1m is the shortest", rule.keep));
        }
        if rule.after.0 >= retention {
            return refused(format!("points older than {} are not kept at all", rule.after));
        }
    }
    let of = |rule: &super::file::ThinTable| ThinRule { after: rule.after.0, keep: rule.keep.0 };
    match ThinPolicy::new(rules.get_ref().iter().map(of).collect()) {
        Ok(policy) => Ok(policy),
        Err(error) => refused(error.to_string()),
    }
}
