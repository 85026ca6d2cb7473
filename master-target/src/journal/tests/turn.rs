//! How a failback is left: cancelled, committed, or protected again; and disks that somebody else wrote in between.

use std::ops::ControlFlow;
use std::time::Duration;

use proto::ids::{Lineage, SetNumber};

use super::rig::{Rig, filled};
use crate::journal::{History, JournalError, RecoveryRecord, Turn, Volume};
use crate::recover::Ranges;

#[test]
fn l5_a_rollback_that_is_left_becomes_a_catching_up_and_keeps_its_points() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.set(1, 2, &[filled(0, 0, 8, 2), filled(0, 80, 8, 2)]);
    rig.apply_all();
    rig.journal.begin_rollback(SetNumber(1), Lineage([1; 16]), rig.now).unwrap();
    assert_eq!(rig.journal.rollback_start(), Some(2));
    let mut reader = rig.reader(1);
    rig.put(&mut reader);
    drop(reader);
    let refused = rig.journal.begin_bulk(rig.now).unwrap_err();
    assert!(matches!(refused, JournalError::State { .. }), "{refused}");
    rig.turn(None, Some(Lineage([2; 16])), History::Kept);
    rig.crash(true);
    assert_eq!((rig.journal.rollback(), rig.journal.cancelled_fence()), (None, Some(77)));
    assert_eq!(rig.journal.lineage(), Lineage([2; 16]));
    assert!(rig.open(2).bulk_open);
    rig.journal.begin_bulk(rig.now).unwrap();
    rig.bulk(&[filled(0, 0, 8, 3)]);
    assert_eq!(rig.rest(2, 3, &[filled(0, 8, 8, 3)]), 3);
    rig.apply_all();
    assert_eq!(rig.point_sets(), [1, 2, 3]);
    assert_eq!((rig.byte(1, 0), rig.byte(2, 0), rig.byte(2, 80), rig.byte(3, 0)), (1, 2, 2, 3));
}

#[test]
fn l7_a_commit_removes_all_points_and_their_files_and_replication_can_go_on_from_there() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    let early = rig.journal.turn(committed(History::Discarded), rig.now).unwrap_err();
    assert!(matches!(early, JournalError::State { .. }), "{early}");
    rig.apply_all();
    rig.journal.begin_rollback(SetNumber(1), Lineage([1; 16]), rig.now).unwrap();
    let mut reader = rig.reader(1);
    rig.put(&mut reader);
    drop(reader);
    let counter = rig.journal.counter();
    rig.journal.turn(committed(History::Discarded), rig.now).unwrap();
    assert_eq!(rig.volume.list().unwrap(), ["manifest"]);
    for _ in 0..2 {
        assert!(rig.point_sets().is_empty());
        assert_eq!(rig.journal.recovery_state().map(|record| record.step), Some(3));
        assert_eq!(rig.journal.last_durable_set(), SetNumber(2));
        assert!(rig.journal.counter() >= counter && !rig.journal.bulk_open());
        rig.crash(true);
    }
    rig.turn(None, Some(Lineage([2; 16])), History::Discarded);
    let opened = rig.open(2);
    assert_eq!((opened.last_set, opened.has_history, opened.bulk_open), (SetNumber(2), true, false));
    assert_eq!(rig.set(2, 3, &[filled(0, 0, 2048, 3)]), 3);
    rig.apply_all();
    assert_eq!((rig.point_sets(), rig.byte(3, 0)), (vec![3], 3));
}

#[test]
fn l7_a_commit_that_keeps_points_keeps_them_and_a_later_failback_forgets_the_lifted_fence() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.apply_all();
    rig.turn(None, None, History::Kept);
    assert_eq!(rig.journal.cancelled_fence(), Some(77));
    rig.journal.turn(committed(History::Kept), rig.now).unwrap();
    assert_eq!((rig.journal.cancelled_fence(), rig.point_sets()), (None, vec![1]), "in a failback no fence is lifted");
    assert_eq!(rig.journal.prune(rig.now.plus(Duration::from_secs(1 << 20)), Duration::ZERO).unwrap(), 0);
}

fn committed(history: History) -> Turn {
    let record = RecoveryRecord { step: 3, text: "report".to_owned() };
    Turn { record: Some(record), lineage: None, cancelled: None, history }
}

#[test]
fn what_somebody_else_wrote_is_never_saved_as_the_content_of_a_point() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1), filled(0, 80, 8, 1)]);
    rig.rotate();
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.apply_all();
    // Block 0 is in the journal for both points, block 10 (sector 80) for the first alone.
    rig.disks.overwrite(0, 0, &[9; 4096]);
    rig.disks.overwrite(0, 80 * 512, &[9; 4096]);
    let mut spoilt = Ranges::default();
    spoilt.add(0, 0, 8);
    spoilt.add(0, 80, 8);
    assert!(
        rig.reader(1).holds(0, 0, 8).unwrap()
            && rig.reader(1).holds(0, 80, 8).unwrap()
            && !rig.reader(2).holds(0, 80, 8).unwrap()
    );
    rig.journal.begin_rollback(SetNumber(1), Lineage([1; 16]), rig.now).unwrap();
    let mut reader = rig.reader(1);
    rig.applier.put_point(&mut reader, &spoilt, |_, _| ControlFlow::Continue(())).unwrap();
    drop(reader);
    assert_eq!((rig.disks.content(0)[0], rig.disks.content(0)[80 * 512]), (1, 1));
    rig.crash(true);
    assert!(!rig.reader(2).holds(0, 80, 8).unwrap(), "the point is as damaged as before, and known to be");
    assert_eq!((rig.byte(1, 0), rig.byte(1, 80), rig.byte(2, 0)), (1, 1, 2));
}
