//! In which order parts go that wait for one link: in a group the older before the newer, and no group before another.
//!
//! Each part has a turn, and parts of one turn share the link evenly. A group's parts have turns in a row. A group that
//! had nothing to send begins at the oldest turn that others are at, not behind all they have queued: otherwise a group
//! with a backlog, eight parts of 4 MiB at a time, would make each set of every other one wait for 32 MiB.

use std::sync::atomic::{AtomicU32, Ordering};

/// How far the parts of one kind have come, of all groups together.
#[derive(Debug, Default)]
pub(super) struct Turns {
    done: AtomicU32,
}

/// The turns of one group's parts of one kind.
#[derive(Debug, Default)]
pub(super) struct OwnTurns {
    next: u32,
}

impl OwnTurns {
    /// The turn of the group's next part. Ends at the last number: then all parts share it.
    pub(super) fn next(&mut self, all: &Turns) -> u32 {
        let turn = self.next.max(all.done.load(Ordering::Relaxed));
        self.next = turn.saturating_add(1);
        turn
    }
}

impl Turns {
    /// A part of this turn has arrived as a whole.
    pub(super) fn done(&self, turn: u32) {
        self.done.fetch_max(turn, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_goes_in_order_and_another_joins_where_it_is() {
        let (all, mut busy, mut idle) = (Turns::default(), OwnTurns::default(), OwnTurns::default());
        let queued: Vec<u32> = (0..8).map(|_| busy.next(&all)).collect();
        assert_eq!(queued, (0..8).collect::<Vec<_>>());
        all.done(2);
        let joined = idle.next(&all);
        assert!(joined <= 3, "not behind what the other has queued");
        assert!(idle.next(&all) > joined);
        all.done(100);
        assert!(idle.next(&all) >= 100, "what was not used is not saved up");
        assert!(busy.next(&all) >= 100);
    }

    #[test]
    fn after_the_last_number_all_share_it() {
        let (all, mut own) = (Turns::default(), OwnTurns::default());
        all.done(u32::MAX);
        assert_eq!((own.next(&all), own.next(&all)), (u32::MAX, u32::MAX));
    }
}
