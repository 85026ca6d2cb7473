//! Catching up: when it begins, what ends it, and what is left of one that was broken off.

use proto::replication::SealSet;

use super::super::rig::{Rig, filled};
use crate::apply::ApplyError;
use crate::journal::{Accepted, JournalError};

#[test]
fn j4_and_k5_a_bulk_waits_until_every_set_is_applied() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.open(2);
    let early = rig.journal.begin_bulk(rig.now).unwrap_err();
    assert!(matches!(early, JournalError::State { .. }), "{early}");
    rig.apply_all();
    rig.journal.begin_bulk(rig.now).unwrap();
    rig.bulk(&[filled(0, 0, 8, 9)]);
    rig.applier.sync_bulk().unwrap();
    rig.crash(true);
    rig.apply_all();
    assert_eq!(rig.disks.content(0)[0], 9, "old redo must not be replayed over bulk content");
    assert_eq!(rig.byte(1, 0), 1, "the start of the bulk is a point");
}

#[test]
fn k6_a_bulk_ends_with_its_rest_set_and_only_after_a_sync_of_the_disks() {
    let mut rig = Rig::streaming();
    rig.journal.begin_bulk(rig.now).unwrap();
    rig.bulk(&[filled(0, 0, 8, 5)]);
    rig.send_part(1, 1, 0, &[filled(0, 8, 8, 6)]);
    rig.journal.seal(SealSet { closes_bulk: true, ..rig.seal_of(1, 1, 1, 8) }).unwrap();
    let durable = rig.journal.sync().unwrap();
    assert_eq!((durable.last_set, durable.needs_bulk_sync), (0, true));
    rig.applier.sync_bulk().unwrap();
    assert_eq!(rig.journal.sync().unwrap().last_set, 1);
    assert!(!rig.journal.bulk_open());
    assert_eq!((rig.byte(1, 0), rig.byte(1, 8)), (5, 6));
    let late = rig.record(0, 0, &[filled(0, 0, 8, 7)]);
    let frame = proto::frame::Decoder::new().decode(&late).unwrap();
    assert!(matches!(rig.applier.apply_bulk(&[frame]), Err(ApplyError::Journal(JournalError::State { .. }))));
}

#[test]
fn k6_an_unfinished_bulk_is_continued_and_its_middle_is_no_point() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.apply_all();
    rig.open(2);
    rig.journal.begin_bulk(rig.now).unwrap();
    rig.bulk(&[filled(0, 0, 8, 2)]);
    rig.applier.sync_bulk().unwrap();
    rig.crash(true);
    let opened = rig.open(3);
    assert!(opened.bulk_open);
    rig.journal.begin_bulk(rig.now).unwrap();
    rig.bulk(&[filled(0, 0, 8, 3)]);
    assert_eq!(rig.rest(3, 2, &[filled(0, 8, 8, 4)]), 2);
    assert_eq!(rig.journal.state().manifest.generations.len(), 3);
    rig.apply_all();
    assert_eq!(rig.point_sets(), [1, 2]);
    assert_eq!((rig.byte(1, 0), rig.byte(2, 0)), (1, 3));
}

#[test]
fn k6_an_ordinary_set_can_not_follow_an_open_bulk() {
    let rig = Rig::streaming();
    rig.journal.begin_bulk(rig.now).unwrap();
    let refused = rig.journal.seal(rig.seal_of(1, 1, 0, 0)).unwrap_err();
    assert!(refused.to_string().contains("must end the catching-up"), "{refused}");
}

#[test]
fn k6_a_rest_set_that_was_durable_before_a_crash_ends_the_bulk_after_it() {
    let mut rig = Rig::streaming();
    rig.journal.begin_bulk(rig.now).unwrap();
    rig.bulk(&[filled(0, 0, 8, 5)]);
    rig.send_part(1, 1, 0, &[filled(0, 8, 8, 6)]);
    rig.journal.seal(SealSet { closes_bulk: true, ..rig.seal_of(1, 1, 1, 8) }).unwrap();
    assert!(rig.journal.sync().unwrap().needs_bulk_sync);
    rig.crash(false);
    assert_eq!(rig.open(1).durable_parts, [(1, 0)]);
    let again = SealSet { closes_bulk: true, ..rig.seal_of(1, 1, 1, 8) };
    assert_eq!(rig.journal.seal(again).unwrap(), Accepted::Duplicate);
    rig.applier.sync_bulk().unwrap();
    assert_eq!(rig.journal.sync().unwrap().last_set, 1);
}

#[test]
fn a_first_synchronisation_saves_nothing_and_has_no_point_before_its_end() {
    let mut rig = Rig::streaming();
    rig.journal.begin_bulk(rig.now).unwrap();
    rig.bulk(&[filled(0, 0, 64, 5)]);
    assert_eq!(rig.disks.traffic().0, 0, "nothing is read");
    assert!(rig.journal.state().undo.is_empty());
    assert_eq!(rig.rest(1, 1, &[filled(0, 0, 8, 6)]), 1);
    assert_eq!(rig.point_sets(), [1]);
}
