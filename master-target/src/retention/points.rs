//! Recovery points: the sealed sets of the gapless run, and the starts of generations whose predecessors lost their redo.

use std::time::Duration;

use proto::ids::SetNumber;
use proto::replication::PointKind;
use proto::time::Timestamp;

use crate::journal::{CompleteSet, Journal, Shrink, StartPoint, State, Volume};

/// A moment that can be gone back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointInfo {
    /// How a person names it: the number of its set.
    pub id: String,
    /// The set after which it stands.
    pub set: SetNumber,
    /// When the set was cut, by the source's clock.
    pub time: Timestamp,
    /// Crash- or application-consistent.
    pub kind: PointKind,
    /// The operator's name for it.
    pub label: Option<String>,
    /// Bytes that its set changed.
    pub changed_bytes: u64,
    /// Bytes that its set took in the journal.
    pub stored_bytes: u64,
    /// Bytes that could not be read at the source: older content stands for them.
    pub unreadable_bytes: u64,
    /// How compressible the data of its set is.
    pub shrink: Shrink,
    /// Time from the cut of the set before it to its own, in which its set was written; none where that is not known.
    pub span: Option<Duration>,
    /// Known damage may spoil a part of it: what reads that part fails.
    pub is_damaged: bool,
}

/// Why a text names no point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is none at all.
    #[error("the group has no recovery point yet: wait until its state is protected")]
    Empty,
    /// None fits.
    #[error(
        "there is no recovery point {text:?}: use latest, an id or a label of `master-target points`, or an RFC 3339 time"
    )]
    Unknown {
        /// What was asked for.
        text: String,
    },
    /// All are newer than the time.
    #[error("the oldest recovery point is of {oldest}, after {asked}")]
    TooOld {
        /// The time asked for.
        asked: Timestamp,
        /// Time of the oldest point.
        oldest: Timestamp,
    },
}

impl PointInfo {
    /// Bytes changed for each second in which its set was written.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate, for people")]
    pub fn churn(&self) -> Option<f64> {
        let seconds = self.span?.as_secs_f64();
        (seconds > 0.0).then(|| self.changed_bytes as f64 / seconds)
    }

    fn of_set(set: &CompleteSet, span: Option<Duration>) -> Self {
        let seal = &set.seal;
        Self {
            id: seal.number.to_string(),
            set: SetNumber(seal.number),
            time: Timestamp(seal.cut_time_us),
            kind: seal.kind(),
            label: Some(seal.label.clone()).filter(|label| !label.is_empty()),
            changed_bytes: seal.sectors.saturating_mul(512),
            stored_bytes: set.stored_bytes,
            unreadable_bytes: seal.unreadable_bytes,
            shrink: set.shrink,
            span,
            is_damaged: false,
        }
    }

    fn of_start(start: &StartPoint) -> Self {
        Self {
            id: start.number.to_string(),
            set: SetNumber(start.number),
            time: Timestamp(start.time_us),
            kind: PointKind::try_from(start.kind).unwrap_or_default(),
            label: Some(start.label.clone()).filter(|label| !label.is_empty()),
            changed_bytes: start.changed_bytes,
            stored_bytes: start.stored_bytes,
            unreadable_bytes: start.unreadable_bytes,
            shrink: Shrink { raw_bytes: start.raw_bytes, packed_bytes: start.packed_bytes },
            span: start.span_us.map(Duration::from_micros),
            is_damaged: false,
        }
    }

    fn judged(self, state: &State) -> Self {
        Self { is_damaged: state.is_spoiled(self.set.0), ..self }
    }

    /// The point as a manifest keeps it when its set goes.
    pub(crate) fn to_start(&self) -> StartPoint {
        StartPoint {
            number: self.set.0,
            time_us: self.time.0,
            kind: self.kind.into(),
            label: self.label.clone().unwrap_or_default(),
            changed_bytes: self.changed_bytes,
            stored_bytes: self.stored_bytes,
            unreadable_bytes: self.unreadable_bytes,
            raw_bytes: self.shrink.raw_bytes,
            packed_bytes: self.shrink.packed_bytes,
            span_us: self.span.and_then(|span| u64::try_from(span.as_micros()).ok()),
        }
    }
}

impl State {
    /// The point of a set that is still in redo, if it is one.
    pub(crate) fn point_of_set(&self, number: u64) -> Option<PointInfo> {
        let set = self.set(number)?;
        let counts = set.seal.is_point && number <= self.durable && number >= self.manifest.floor;
        counts.then(|| PointInfo::of_set(set, self.span_of(set)).judged(self))
    }

    /// The time in which a set was written. What ends a catching-up holds only the rest of it.
    fn span_of(&self, set: &CompleteSet) -> Option<Duration> {
        let before = set.seal.number.checked_sub(1).filter(|_| !set.seal.closes_bulk)?;
        let time = match self.set(before) {
            Some(before) => before.seal.cut_time_us,
            None => self.start_points().find(|(_, start)| start.number == before)?.1.time_us,
        };
        set.seal.cut_time_us.checked_sub(time).map(Duration::from_micros)
    }

    /// The points at the starts of generations, each with the generation, oldest first.
    pub(crate) fn start_points(&self) -> impl Iterator<Item = (u64, &StartPoint)> {
        let starts = self.manifest.generations.iter().filter_map(|own| own.start.as_ref().map(|start| (own.id, start)));
        starts.filter(|(_, start)| start.number >= self.manifest.floor)
    }

    /// Set and time of all points, oldest first, at little cost: pruning looks every second.
    pub(crate) fn point_times(&self) -> impl Iterator<Item = (u64, Timestamp)> {
        let starts = self.start_points().map(|(_, start)| (start.number, Timestamp(start.time_us)));
        let sets = self.sets.complete().iter().filter(|(_, set)| set.seal.is_point);
        let all = starts.chain(sets.map(|(number, set)| (*number, Timestamp(set.seal.cut_time_us))));
        all.filter(|(number, _)| *number <= self.durable && *number >= self.manifest.floor)
    }

    /// All points, oldest first.
    pub(crate) fn points(&self) -> Vec<PointInfo> {
        let sets = self.sets.complete().keys().filter_map(|number| self.point_of_set(*number));
        self.start_points().map(|(_, start)| PointInfo::of_start(start).judged(self)).chain(sets).collect()
    }
}

impl<V: Volume> Journal<V> {
    /// All points, oldest first.
    pub fn points(&self) -> Vec<PointInfo> {
        self.state().points()
    }

    /// Whether the state after this set is a point still.
    pub(crate) fn lists(&self, set: SetNumber) -> bool {
        self.points().iter().any(|point| point.set == set)
    }

    /// The newest point.
    pub fn newest_point(&self) -> Option<PointInfo> {
        let state = self.state();
        let newest = state.sets.complete().keys().rev().find_map(|number| state.point_of_set(*number));
        newest.or_else(|| state.start_points().last().map(|(_, start)| PointInfo::of_start(start).judged(&state)))
    }

    /// The point that a person means: `latest`, an id, a label (the newest that bears it), or a time (the newest point
    /// not after it).
    pub fn resolve(&self, text: &str) -> Result<PointInfo, ResolveError> {
        resolve(&self.points(), text)
    }
}

fn resolve(points: &[PointInfo], text: &str) -> Result<PointInfo, ResolveError> {
    let (oldest, newest) = points.first().zip(points.last()).ok_or(ResolveError::Empty)?;
    if text == "latest" {
        return Ok(newest.clone());
    }
    let by_id = || points.iter().find(|point| point.id == text);
    let by_label = || points.iter().rev().find(|point| point.label.as_deref() == Some(text));
    if let Some(point) = by_id().or_else(by_label) {
        return Ok(point.clone());
    }
    let asked: Timestamp = text.parse().map_err(|_| ResolveError::Unknown { text: text.chars().take(64).collect() })?;
    let by_time = points.iter().rev().find(|point| point.time <= asked);
    by_time.cloned().ok_or(ResolveError::TooOld { asked, oldest: oldest.time })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(set: u64, second: u64, label: Option<&str>) -> PointInfo {
        PointInfo {
            id: set.to_string(),
            set: SetNumber(set),
            time: Timestamp(second * 1_000_000),
            kind: PointKind::Crash,
            label: label.map(str::to_owned),
            changed_bytes: 0,
            stored_bytes: 0,
            unreadable_bytes: 0,
            shrink: Shrink::default(),
            span: None,
            is_damaged: false,
        }
    }

    fn some() -> Vec<PointInfo> {
        vec![point(3, 10, Some("a")), point(4, 20, None), point(7, 30, Some("a"))]
    }

    #[test]
    fn points_are_found_by_latest_id_label_and_time() {
        for (text, set) in [
            ("latest", 7),
            ("4", 4),
            ("a", 7),
            ("1970-01-01T00:00:10Z", 3),
            ("1970-01-01T00:00:29.999Z", 4),
            ("2030-01-01T00:00:00Z", 7),
        ] {
            assert_eq!(resolve(&some(), text).unwrap().set.0, set, "{text}");
        }
    }

    #[test]
    fn what_names_no_point_is_refused_with_what_to_use() {
        for text in ["5", "b", "", "Latest"] {
            let message = resolve(&some(), text).unwrap_err().to_string();
            assert!(message.contains("latest, an id or a label"), "{message}");
        }
        assert_eq!(resolve(&[], "latest"), Err(ResolveError::Empty));
        let early = resolve(&some(), "1970-01-01T00:00:09Z").unwrap_err();
        assert!(early.to_string().contains("1970-01-01T00:00:10"), "{early}");
    }
}
