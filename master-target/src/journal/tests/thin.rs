//! Older history keeps fewer points, and those that stay are as they were.

use std::time::Duration;

use proto::replication::{PointKind, SealSet};

use super::rig::{Rig, filled, options, sectors_of};
use crate::journal::Options;
use crate::retention::{ThinPolicy, ThinRule};

fn policy(rules: &[(u64, u64)]) -> ThinPolicy {
    let rule =
        |(after, keep): &(u64, u64)| ThinRule { after: Duration::from_secs(*after), keep: Duration::from_secs(*keep) };
    ThinPolicy::new(rules.iter().map(rule).collect()).unwrap()
}

/// Generations of three sets each, two hours apart; set `n` writes `n` to sectors 0 and `8 * n`.
fn history(generations: u64) -> Rig {
    let mut rig = Rig::streaming();
    for number in 1..=generations * 3 {
        let value = number as u8;
        rig.set(1, number, &[filled(0, 0, 1, value), filled(0, 8 * number, 8, value)]);
        rig.apply_all();
        if number % 3 == 0 {
            rig.rotate();
        }
    }
    rig.journal.sync_marks().unwrap();
    rig
}

#[track_caller]
fn assert_right(rig: &Rig) {
    for set in rig.point_sets() {
        assert_eq!(rig.byte(set, 0), set as u8, "sector 0 at point {set}");
        for number in 1..=12 {
            let expected = if number <= set { number as u8 } else { 0 };
            assert_eq!(rig.byte(set, 8 * number), expected, "sector {} at point {set}", 8 * number);
        }
    }
}

#[test]
fn thinned_generations_keep_their_ends_as_points() {
    let mut rig = history(4);
    let thin = policy(&[(7200 * 2 + 60, 3600)]);
    assert_eq!(rig.journal.thin(rig.now, &thin).unwrap(), 4);
    assert_eq!(rig.point_sets(), [3, 6, 7, 8, 9, 10, 11, 12]);
    assert_right(&rig);
    rig.crash(true);
    assert_eq!(rig.point_sets(), [3, 6, 7, 8, 9, 10, 11, 12]);
    assert_right(&rig);
    assert_eq!(rig.journal.thin(rig.now, &thin).unwrap(), 0, "it is done");
    rig.open(2);
    rig.set(2, 13, &[filled(0, 0, 1, 13), filled(0, 104, 8, 13)]);
    rig.apply_all();
    assert_right(&rig);
}

#[test]
fn redo_that_was_thinned_leaves_the_volume() {
    let mut rig = Rig::new(1, &[1 << 20], Options { segment_bytes: 2000, ..options() });
    rig.open(1);
    for number in 1..=6 {
        rig.set(1, number, &[super::rig::noise(0, 8 * number, 8, number)]);
        rig.apply_all();
        if number % 3 == 0 {
            rig.rotate();
        }
    }
    rig.journal.sync_marks().unwrap();
    let before = rig.journal.stored_bytes();
    assert_eq!(rig.journal.thin(rig.now, &policy(&[(60, 30)])).unwrap(), 4);
    assert!(rig.journal.stored_bytes() + 5 * 4096 < before, "{before} -> {}", rig.journal.stored_bytes());
}

#[test]
fn generations_become_one_where_the_point_between_them_goes() {
    let mut rig = history(4);
    let thin = policy(&[(60, 30), (7200 * 2, 7200 * 2)]);
    assert_eq!(rig.journal.thin(rig.now, &thin).unwrap(), 8);
    assert_eq!(rig.point_sets(), [3, 6, 9, 12]);
    let mut merged = 0;
    while rig.journal.merge_thinned(rig.now, &thin, || true).unwrap() {
        merged += 1;
        assert_right(&rig);
    }
    assert!(merged > 0);
    let kept = rig.point_sets();
    assert!(kept.len() < 4 && kept[0] == 3 && kept.contains(&12), "{kept:?}");
    rig.crash(true);
    assert_eq!(rig.point_sets(), kept);
    assert_right(&rig);
}

#[test]
fn a_merge_that_is_told_to_stop_leaves_everything_as_it_was() {
    let mut rig = history(4);
    let thin = policy(&[(60, 30), (7200 * 2, 7200 * 2)]);
    rig.journal.thin(rig.now, &thin).unwrap();
    assert!(!rig.journal.merge_thinned(rig.now, &thin, || false).unwrap());
    assert_eq!(rig.point_sets(), [3, 6, 9, 12]);
    rig.crash(false);
    assert_right(&rig);
}

#[test]
fn nothing_is_thinned_under_a_reader_and_no_pinned_point_goes() {
    let rig = history(3);
    let thin = policy(&[(60, 30)]);
    let reader = rig.reader(2);
    assert_eq!(rig.journal.thin(rig.now, &thin).unwrap(), 0);
    drop(reader);
    rig.journal.pin_point(&rig.point(5)).unwrap();
    assert_eq!(rig.journal.thin(rig.now, &thin).unwrap(), 2, "those before it");
    assert_eq!(rig.point_sets(), [3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(rig.journal.prune(rig.now, Duration::from_secs(1)).unwrap(), 1);
    assert_eq!(rig.point_sets(), [3, 4, 5, 6, 7, 8, 9], "set 3 is where the pinned one's generation begins");
    rig.journal.unpin_point(&rig.point(5)).unwrap();
    assert_eq!(rig.journal.thin(rig.now, &thin).unwrap(), 4);
    assert_eq!(rig.point_sets(), [3, 6, 9]);
    assert_right(&rig);
}

#[test]
fn points_with_labels_and_of_quiesced_machines_outlive_their_redo() {
    let mut rig = Rig::new(1, &[1 << 20], Options { marked_points_end_generations: true, ..options() });
    rig.open(1);
    for number in 1..=9 {
        let extents = [filled(0, 0, 1, number as u8), filled(0, 8 * number, 8, number as u8)];
        rig.send_part(1, number, 0, &extents);
        let seal = rig.seal_of(1, number, 1, extents.iter().map(sectors_of).sum());
        let label = if number == 2 { "before upgrade" } else { "" }.to_owned();
        let kind = if number == 5 { PointKind::App } else { PointKind::Crash }.into();
        rig.journal.seal(SealSet { label, kind, ..seal }).unwrap();
        // Several sets become durable at once, and none of them is applied before.
        if number % 4 == 0 {
            rig.journal.sync().unwrap();
        }
    }
    rig.journal.sync().unwrap();
    rig.apply_all();
    rig.rotate();
    rig.journal.sync_marks().unwrap();
    rig.now = rig.now.plus(Duration::from_secs(100));
    rig.journal.thin(rig.now, &policy(&[(60, 30)])).unwrap();
    assert_eq!(rig.point_sets(), [2, 5, 9]);
    assert_right(&rig);
    assert_eq!(rig.point(2).label.as_deref(), Some("before upgrade"));
}

#[test]
fn promised_points_are_not_given_up_for_room() {
    let mut rig = Rig::new(1, &[1 << 20], Options { keep_at_least: Duration::from_secs(7200 * 3), ..options() });
    rig.open(1);
    for number in 1..=4 {
        rig.set(1, number, &[filled(0, 8 * number, 8, number as u8)]);
        rig.apply_all();
        rig.rotate();
    }
    rig.journal.sync_marks().unwrap();
    assert!(!rig.journal.find_room(u64::MAX).unwrap());
    assert_eq!(rig.point_sets(), [2, 3, 4], "the first is older than what is promised");
}

#[test]
fn a_group_may_take_only_so_much_of_the_volume() {
    let mut rig = Rig::new(1, &[1 << 20], Options { size_max: Some(40_000), segment_bytes: 3000, ..options() });
    rig.open(1);
    for number in 1..=30 {
        rig.set(1, number, &[super::rig::noise(0, 8 * (number % 20), 8, number)]);
        rig.apply_all();
        rig.rotate();
        rig.journal.sync_marks().unwrap();
        assert!(rig.journal.stored_bytes() < 45_000, "{}", rig.journal.stored_bytes());
    }
    assert!(rig.point_sets().len() < 10);
}

/// Undo of what had rotted has a mark and a wrong CRC. Both stay, from whichever of two generations it comes.
#[test]
fn what_was_saved_damaged_stays_damaged_where_generations_become_one() {
    let mut rig = Rig::streaming();
    for number in 1..=12 {
        let value = number as u8;
        if let 6 | 9 = number {
            // Of set 1 and of set 2; overwritten whole right after.
            let block = number / 3 - 1;
            rig.disks.overwrite(0, block * 4096 + 512, &[0xee; 512]);
            rig.set(1, number, &[filled(0, 0, 1, value), filled(0, 8 * block, 8, value)]);
        } else {
            rig.set(1, number, &[filled(0, 0, 1, value), filled(0, 8 * number, 8, value)]);
        }
        rig.apply_all();
        if number % 3 == 0 {
            rig.rotate();
        }
    }
    rig.journal.sync_marks().unwrap();
    let thin = policy(&[(60, 30), (7200 * 2, 7200 * 2)]);
    assert_eq!(rig.journal.thin(rig.now, &thin).unwrap(), 8);
    let mut merged = 0;
    while rig.journal.merge_thinned(rig.now, &thin, || true).unwrap() {
        merged += 1;
    }
    assert!(merged > 0 && rig.point_sets()[0] == 3, "{merged}: {:?}", rig.point_sets());
    for _ in 0..2 {
        for block in [1, 2] {
            let refused = rig.reader(3).read(0, block * 4096, &mut [0; 512]).unwrap_err().to_string();
            assert!(refused.contains("had rotted"), "block {block}: {refused}");
        }
        assert_eq!((rig.byte(3, 24), rig.byte(3, 32), rig.byte(3, 0)), (3, 0, 3));
        let damaged: Vec<u64> = rig.journal.points().iter().filter(|point| point.is_damaged).map(|p| p.set.0).collect();
        assert!(damaged.contains(&3) && !damaged.contains(&12), "{damaged:?}");
        rig.crash(true);
    }
}
