//! How often a disk's trouble is logged: a bad disk fails thousands of times a second, and one line says it.
//!
//! Pure: the caller brings the time. The first failure of a kind is logged at once, then one a minute while it lasts, with
//! the number of those that were left out.

use std::collections::HashMap;
use std::time::Duration;

/// Time between two lines about the same trouble.
const EVERY: Duration = Duration::from_secs(60);

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Trouble {
    /// Writes of guests.
    Write,
    /// Reads of guests.
    Read,
    /// Reads for replication.
    CoreRead,
    /// Flushes, of guests or not.
    Flush,
}

#[derive(Debug)]
struct Seen {
    again: Duration,
    left_out: u64,
}

/// What was logged when, by disk and kind.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    seen: HashMap<(usize, Trouble), Seen>,
}

impl Complaints {
    /// Something has failed: whether to log it, with the number of failures since the last line.
    pub(super) fn is_due(&mut self, disk: usize, trouble: Trouble, now: Duration) -> Option<u64> {
        let seen = self.seen.entry((disk, trouble)).or_insert(Seen { again: now, left_out: 0 });
        if now < seen.again {
            seen.left_out += 1;
            return None;
        }
        seen.again = now + EVERY;
        Some(std::mem::take(&mut seen.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_failures_is_one_line_a_minute_that_counts_them() {
        let mut complaints = Complaints::default();
        let at = |complaints: &mut Complaints, ms| complaints.is_due(0, Trouble::Write, Duration::from_millis(ms));
        assert_eq!(at(&mut complaints, 5), Some(0));
        let lines = (6..60_005).filter(|ms| at(&mut complaints, *ms).is_some()).count();
        assert_eq!(lines, 0);
        assert_eq!(at(&mut complaints, 60_005), Some(59_999));
        assert_eq!(complaints.is_due(1, Trouble::Write, Duration::from_secs(60)), Some(0), "another disk");
        assert_eq!(complaints.is_due(0, Trouble::Read, Duration::from_secs(60)), Some(0), "another trouble");
    }
}
