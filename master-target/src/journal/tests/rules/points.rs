//! What a point shows, and how long it is kept, one rule at a time.

use std::time::Duration;

use proto::ids::SetNumber;

use super::super::rig::{Rig, filled};
use crate::apply::Progress;
use crate::journal::{JournalError, RecoveryRecord, Volume};
use crate::recover::{PointReader, ReadError};

#[test]
fn j1_a_point_in_a_new_generation_finds_what_an_earlier_one_has_not_applied() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.rotate();
    rig.set(1, 2, &[filled(0, 100, 8, 2)]);
    assert_eq!((rig.byte(2, 0), rig.byte(2, 100)), (1, 2));
    let mut reader = rig.reader(2);
    rig.apply_all();
    rig.set(1, 3, &[filled(0, 0, 8, 3)]);
    rig.apply_all();
    let mut bytes = [0; 512];
    reader.read(0, 0, &mut bytes).unwrap();
    assert_eq!(bytes[0], 1);
}

#[test]
fn j1_what_one_source_covers_in_part_is_sought_further_by_the_sector() {
    let mut rig = Rig::streaming();
    rig.disks.overwrite(0, 0, &[7; 4096]);
    rig.set(1, 1, &[filled(0, 1, 1, 1)]);
    rig.apply_all();
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.apply_all();
    let sectors: Vec<u8> = rig.image(1, 0).chunks(512).take(8).map(|sector| sector[0]).collect();
    assert_eq!(sectors, [7, 1, 7, 7, 7, 7, 7, 7]);
}

#[test]
fn j2_a_reader_that_met_the_disk_sees_undo_that_appeared_since() {
    let mut rig = Rig::streaming();
    rig.disks.overwrite(0, 0, &[7; 4096]);
    rig.set(1, 1, &[filled(0, 64, 8, 1)]);
    rig.apply_all();
    let mut reader = rig.reader(1);
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.apply_all();
    let mut bytes = [0; 4096];
    reader.read(0, 0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);
}

#[test]
fn j3_a_generation_begins_with_what_is_not_durable_yet() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.send_part(1, 3, 0, &[filled(0, 0, 8, 3)]);
    rig.rotate();
    let generations = rig.journal.state().manifest.generations.clone();
    assert_eq!((generations[0].last, generations[1].first), (Some(1), 2));
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.journal.seal(rig.seal_of(1, 3, 1, 8)).unwrap();
    assert_eq!(rig.journal.sync().unwrap().last_set, 3);
    rig.set(1, 4, &[filled(0, 0, 8, 4)]);
    assert_eq!(rig.applier.apply_next().unwrap(), Progress::Applied { set: SetNumber(1), bytes: 4096 });
    let shown = |rig: &Rig| rig.point_sets().into_iter().map(|set| (set, rig.byte(set, 0))).collect::<Vec<_>>();
    assert_eq!(shown(&rig), [(1, 1), (2, 2), (3, 3), (4, 4)]);
    rig.apply_all();
    rig.now = rig.now.plus(Duration::from_secs(100_000));
    assert_eq!(rig.journal.prune(rig.now, Duration::from_secs(1)).unwrap(), 1);
    for power in [false, true] {
        assert_eq!(shown(&rig), [(1, 1), (2, 2), (3, 3), (4, 4)], "the generation begins at point 1");
        rig.crash(power);
    }
}

/// Two points in the first generation, one in the second, all applied and a day old.
fn two_old_generations() -> Rig {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.apply_all();
    rig.rotate();
    rig.set(1, 3, &[filled(0, 0, 8, 3)]);
    rig.apply_all();
    rig.now = rig.now.plus(Duration::from_secs(100_000));
    rig
}

#[test]
fn j5_after_pruning_the_oldest_generation_begins_with_the_point_that_ended_the_one_before() {
    let mut rig = two_old_generations();
    assert_eq!(rig.journal.prune(rig.now, Duration::from_secs(1)).unwrap(), 1);
    assert_eq!(rig.point_sets(), [2, 3]);
    assert_eq!((rig.byte(2, 0), rig.byte(3, 0)), (2, 3));
    rig.crash(true);
    assert_eq!(rig.point_sets(), [2, 3]);
    assert_eq!((rig.byte(2, 0), rig.byte(3, 0)), (2, 3));
    assert!(!rig.volume.list().unwrap().iter().any(|name| name.starts_with("undo-00000001")));
}

#[test]
fn j6_nothing_is_pruned_that_is_not_applied() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.rotate();
    rig.set(1, 2, &[filled(0, 8, 8, 2)]);
    rig.now = rig.now.plus(Duration::from_secs(100_000));
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 0);
    rig.apply_all();
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 1);
    assert_eq!(rig.byte(2, 0), 1);
}

#[test]
fn j7_the_newest_point_outlives_a_bulk_that_lasts_longer_than_the_retention() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.apply_all();
    rig.open(2);
    rig.journal.begin_bulk(rig.now).unwrap();
    rig.bulk(&[filled(0, 0, 8, 2)]);
    rig.now = rig.now.plus(Duration::from_secs(1_000_000));
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 0);
    rig.fill(4000);
    rig.journal.restart_history(SetNumber(1)).unwrap();
    assert_eq!((rig.point_sets(), rig.byte(1, 0)), (vec![1], 1));
}

#[test]
fn points_are_kept_from_a_failback_until_it_is_over() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.rotate();
    rig.set(1, 2, &[filled(0, 8, 8, 2)]);
    rig.apply_all();
    let record = RecoveryRecord { step: 1, text: "latest".to_owned() };
    rig.journal.set_recovery_state(Some(record.clone()), Some(SetNumber(1))).unwrap();
    rig.now = rig.now.plus(Duration::from_secs(100_000));
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 0);
    rig.crash(true);
    assert_eq!(rig.journal.recovery_state(), Some(record));
    rig.journal.set_recovery_state(None, None).unwrap();
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 1);
}

#[test]
fn a_failback_to_a_point_that_went_after_it_was_chosen_is_not_begun() {
    let rig = two_old_generations();
    rig.journal.prune(rig.now, Duration::ZERO).unwrap();
    let record = RecoveryRecord { step: 1, text: "point 1".to_owned() };
    let late = rig.journal.set_recovery_state(Some(record), Some(SetNumber(1)));
    assert!(matches!(late, Err(JournalError::PointGone { set: 1 })), "{late:?}");
    assert_eq!(rig.journal.recovery_state(), None);
}

/// Pruning and what promises a point begin at the same moment, many times over; a promise that was made is kept.
fn prunes_beside(promises: impl Fn(&Rig) -> bool + Sync) {
    for round in 0..300 {
        let rig = two_old_generations();
        let start = std::sync::Barrier::new(2);
        let is_promised = std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                rig.journal.prune(rig.now, Duration::ZERO).unwrap();
            });
            start.wait();
            (0..round % 20).for_each(|_| std::thread::yield_now());
            promises(&rig)
        });
        assert!(
            !is_promised || rig.point_sets().contains(&1),
            "round {round}: the point went although it was promised"
        );
    }
}

#[test]
fn a_point_that_was_pinned_while_history_is_pruned_stays() {
    prunes_beside(|rig| {
        let Some(point) = rig.journal.points().into_iter().find(|point| point.set == SetNumber(1)) else {
            return false;
        };
        rig.journal.pin_point(&point).is_ok()
    });
}

#[test]
fn a_failback_that_begins_while_history_is_pruned_keeps_its_point() {
    let record = RecoveryRecord { step: 1, text: "point 1".to_owned() };
    prunes_beside(|rig| rig.journal.set_recovery_state(Some(record.clone()), Some(SetNumber(1))).is_ok());
}

#[test]
fn j12_a_reader_keeps_its_point_from_being_pruned_by_age() {
    let rig = two_old_generations();
    let mut reader = rig.reader(1);
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 0);
    let mut bytes = [0; 512];
    reader.read(0, 0, &mut bytes).unwrap();
    assert_eq!(bytes[0], 1);
    drop(reader);
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 1);
}

#[test]
fn a_point_that_is_gone_is_named() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    let mut point = rig.point(1);
    point.set = SetNumber(4);
    let gone = PointReader::over(rig.journal.clone(), rig.disks.clone(), &point).unwrap_err();
    assert!(gone.to_string().contains("recovery point 4"), "{gone}");
}

#[test]
fn reads_beyond_a_disk_or_of_half_sectors_are_refused() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    let mut reader = rig.reader(1);
    for (disk, offset, len) in [(0, 1 << 20, 512), (0, 100, 512), (0, 0, 100), (3, 0, 512), (0, u64::MAX - 511, 512)] {
        let refused = reader.read(disk, offset, &mut vec![0; len]);
        assert!(matches!(refused, Err(ReadError::Range { .. })), "{disk} {offset} {len}");
    }
}
