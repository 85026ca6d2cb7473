//! How a catching-up goes on, in numbers: what each round began with and left, and what a last cut lacked (S18).
//!
//! For status and the log; nothing is decided here but whether a round shrinks.

use std::fmt;
use std::time::Duration;

use super::limits::{ROUND_LEAVES, ROUND_OF};

/// What a round of a catching-up did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundReport {
    /// Its number in this catching-up, from 1.
    pub round: u32,
    /// Dirty bytes when it began.
    pub began_bytes: u64,
    /// Dirty bytes when it ended.
    pub left_bytes: u64,
    /// Bytes that guests wrote meanwhile.
    pub written_bytes: u64,
    /// Bytes that the link took meanwhile, as sent.
    pub sent_bytes: u64,
    /// How long it took.
    pub took: Duration,
}

impl RoundReport {
    /// Whether another round like it brings the end nearer.
    #[must_use]
    pub fn shrinks(&self) -> bool {
        self.left_bytes <= self.began_bytes / ROUND_OF * ROUND_LEAVES
    }

    /// Bytes per second, of bytes in the time of the round.
    #[must_use]
    pub fn rate(&self, bytes: u64) -> u64 {
        (bytes as f64 / self.took.as_secs_f64().max(0.001)) as u64
    }
}

impl fmt::Display for RoundReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { round, began_bytes, left_bytes, written_bytes, sent_bytes, .. } = *self;
        write!(
            f,
            "round {round} began with {began_bytes} dirty bytes and left {left_bytes} in {:.1} s: guests wrote {} bytes/s, \
             the link took {}",
            self.took.as_secs_f64(),
            self.rate(written_bytes),
            self.rate(sent_bytes),
        )
    }
}

/// A last cut that had to be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedCut {
    /// Bytes of memory and cache that would surely have been enough for it and what was written until then.
    pub needed_bytes: u64,
    /// Bytes of memory and cache that the group may use.
    pub limit_bytes: u64,
}

impl fmt::Display for FailedCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed_bytes, limit_bytes } = self;
        write!(
            f,
            "the last cut needed up to {needed_bytes} bytes of memory and cache, the group has {limit_bytes}; give it a \
             larger spool on a cache_dir, or the link more room; it is tried again after the next round"
        )
    }
}

/// A round that runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub(super) began_bytes: u64,
    pub(super) written_before: u64,
    pub(super) sent_before: u64,
    pub(super) at: Duration,
}

/// What status says of a catching-up beyond its reason. Outlives the last cut, until its set is durable.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The newest round, if it did not shrink.
    pub(super) stalled: Option<RoundReport>,
    /// The newest last cut that was given up since the group last streamed.
    pub(super) failed_cut: Option<FailedCut>,
}

impl Progress {
    pub(super) fn cut_failed(&mut self, cut: Option<FailedCut>) {
        self.failed_cut = cut;
    }

    pub(super) fn round_ended(&mut self, report: RoundReport) {
        self.stalled = (!report.shrinks()).then_some(report);
    }

    /// The group streams: what was in the way is history.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The reason of a state, more exact where there is more to say.
    pub(super) fn reason(&self, code: &str) -> String {
        match (&self.failed_cut, &self.stalled) {
            (Some(cut), _) => format!("cut-dropped: {cut}"),
            (None, Some(round)) => format!("rounds-not-shrinking: {round}"),
            (None, None) => code.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(began_bytes: u64, left_bytes: u64) -> RoundReport {
        let took = Duration::from_secs(4);
        RoundReport { round: 3, began_bytes, left_bytes, written_bytes: 4000, sent_bytes: 2000, took }
    }

    #[test]
    fn a_round_shrinks_when_a_quarter_is_gone() {
        assert!(report(4000, 3000).shrinks());
        assert!(!report(4000, 3001).shrinks());
        assert!(report(0, 0).shrinks());
    }

    #[test]
    fn the_reason_says_what_was_in_the_way_until_the_group_streams() {
        let mut progress = Progress::default();
        assert_eq!(progress.reason("memory-budget"), "memory-budget");
        progress.round_ended(report(4000, 3900));
        let text = progress.reason("memory-budget");
        assert!(text.starts_with("rounds-not-shrinking: round 3 began with 4000 dirty bytes and left 3900"), "{text}");
        assert!(text.contains("guests wrote 1000 bytes/s") && text.contains("the link took 500"), "{text}");
        progress.cut_failed(Some(FailedCut { needed_bytes: 77, limit_bytes: 66 }));
        let text = progress.reason("last-set");
        assert!(
            text.starts_with("cut-dropped: ") && text.contains("up to 77 bytes") && text.contains("has 66"),
            "{text}"
        );
        progress.round_ended(report(4000, 10));
        progress.clear();
        assert_eq!(progress.reason("last-set"), "last-set");
    }
}
