//! What a source says, and what it is told: phases, sets, counters and notes, one rule at a time.

use std::time::Duration;

use proto::ids::{Counter, Phase, SetNumber};
use proto::replication::SealSet;

use super::super::rig::{INSTANCE, Rig, filled};
use crate::apply::Progress;
use crate::journal::{Accepted, JournalError, MarksVoidRecord, PhaseError};

#[test]
fn a_set_is_listed_and_applied_only_once_it_is_durable() {
    let mut rig = Rig::streaming();
    rig.send(1, 1, &[filled(0, 0, 8, 1)]);
    assert_eq!((rig.point_sets(), rig.applier.apply_next().unwrap()), (vec![], Progress::Idle));
    let durable = rig.journal.sync().unwrap();
    assert_eq!((durable.last_set, durable.parts), (1, vec![(1, 0)]));
    assert_eq!(rig.point_sets(), [1]);
    rig.apply_all();
    assert_eq!(rig.disks.content(0)[..4096], [1; 4096]);
    assert_eq!(rig.journal.applied_set(), SetNumber(1));
}

#[test]
fn l3_a_set_after_a_gap_waits_for_the_one_before_it() {
    let mut rig = Rig::streaming();
    assert_eq!(rig.set(1, 2, &[filled(0, 0, 8, 2)]), 0);
    assert_eq!(rig.set(1, 1, &[filled(0, 0, 8, 1)]), 2);
    rig.apply_all();
    assert_eq!(rig.disks.content(0)[0], 2, "by set, not by arrival");
    assert_eq!((rig.byte(1, 0), rig.byte(2, 0)), (1, 2));
}

#[test]
fn l2_what_an_old_phase_left_unfinished_never_counts() {
    let mut rig = Rig::streaming();
    rig.send_part(1, 1, 0, &[filled(0, 0, 8, 9)]);
    rig.journal.sync().unwrap();
    assert!(rig.open(2).durable_parts.is_empty());
    let late = rig.record(1, 0, &[filled(0, 0, 8, 9)]);
    assert_eq!(rig.journal.append_frame(Phase(1), 1, &late).unwrap(), Accepted::OtherPhase);
    assert_eq!(rig.set(2, 1, &[filled(0, 0, 8, 1)]), 1);
    rig.crash(true);
    assert_eq!(rig.byte(1, 0), 1);
}

#[test]
fn l2_a_session_that_comes_back_is_told_which_parts_it_need_not_send() {
    let mut rig = Rig::streaming();
    rig.send_part(1, 1, 1, &[filled(0, 0, 8, 1)]);
    let cut_short = rig.record(1, 0, &[filled(0, 8, 8, 1)]);
    rig.journal.append_frame(Phase(1), 1, &cut_short).unwrap();
    rig.journal.sync().unwrap();
    for power in [false, true] {
        rig.crash(power);
        let opened = rig.open(1);
        assert_eq!((opened.last_set, opened.durable_parts), (SetNumber(0), vec![(1, 1)]));
    }
    assert_eq!(rig.send_part(1, 1, 1, &[filled(0, 0, 8, 7)]), Accepted::Duplicate);
    rig.send_part(1, 1, 0, &[filled(0, 8, 8, 2)]);
    rig.journal.seal(rig.seal_of(1, 1, 2, 16)).unwrap();
    assert_eq!(rig.journal.sync().unwrap().last_set, 1);
    assert_eq!((rig.byte(1, 0), rig.byte(1, 8)), (1, 2));
}

#[test]
fn l6_a_copy_of_the_source_is_refused() {
    let rig = Rig::streaming();
    rig.journal.open_phase(Phase(2), 5, &INSTANCE).unwrap();
    let older = rig.journal.open_phase(Phase(3), 4, &INSTANCE);
    assert_eq!(older, Err(PhaseError::Clone { given: 4, known: 5 }));
    let twin = rig.journal.open_phase(Phase(3), 5, &[9; 16]);
    assert_eq!(twin, Err(PhaseError::Clone { given: 5, known: 5 }));
    assert_eq!(rig.journal.open_phase(Phase(1), 5, &INSTANCE), Err(PhaseError::Over { given: 1, known: 2 }));
    rig.journal.open_phase(Phase(2), 5, &INSTANCE).unwrap();
}

#[test]
fn l1_the_counter_of_an_acknowledgement_never_goes_back() {
    let mut rig = Rig::streaming();
    for number in 1..4 {
        rig.set(1, number, &[filled(0, 0, 8, 1)]);
        let acknowledged = rig.journal.counter();
        rig.crash(true);
        assert!(rig.journal.counter() >= acknowledged && acknowledged > Counter(0));
        rig.open(1);
    }
}

/// What a start counts by itself must not make up for what the image lacks.
#[test]
fn l1_a_journal_that_came_back_from_an_image_shows_a_source_that_it_is_behind() {
    for starts in 1..4 {
        let mut rig = Rig::streaming();
        rig.journal.begin_bulk(rig.now).unwrap();
        let (files, disks) = (rig.volume.image(), rig.disks.image());
        rig.bulk(&[filled(0, 0, 8, 1)]);
        let known = rig.applier.sync_bulk().unwrap();
        rig.volume.restore(&files);
        rig.disks.restore(&disks);
        for _ in 0..starts {
            rig.crash(false);
            // It syncs, and marks, what an earlier process left of the catching-up.
            rig.apply_all();
            rig.applier.sync_bulk().unwrap();
        }
        rig.journal.open_phase(Phase(1), 1, &INSTANCE).unwrap();
        assert!(rig.journal.greet(known).unwrap() < known, "{starts} starts");
        let told = rig.journal.greet(Counter(0)).unwrap();
        rig.crash(true);
        rig.journal.open_phase(Phase(1), 1, &INSTANCE).unwrap();
        assert!(rig.journal.greet(told).unwrap() > told, "a target that has all of it is believed");
    }
}

#[test]
fn content_that_breaks_the_protocol_is_refused_and_nothing_of_it_counts() {
    let mut rig = Rig::streaming();
    let outside = rig.record(1, 0, &[filled(0, 2047, 2, 1)]);
    let refused = rig.journal.append_frame(Phase(1), 1, &outside).unwrap_err();
    assert!(matches!(refused, JournalError::Protocol { .. }), "{refused}");
    let other_disk = rig.record(1, 0, &[filled(1, 0, 1, 1)]);
    assert!(rig.journal.append_frame(Phase(1), 1, &other_disk).is_err());
    let good = rig.record(1, 0, &[filled(0, 0, 1, 1)]);
    assert!(rig.journal.append_frame(Phase(1), 2, &good).is_err(), "another set than its header says");
    assert!(rig.journal.append_frame(Phase(1), 1 << 40, &good).is_err());
    let seal = rig.seal_of(1, 5, 1, 1);
    assert!(rig.journal.seal(SealSet { parent: 3, ..seal.clone() }).is_err());
    assert!(rig.journal.seal(SealSet { label: "x".repeat(300), ..seal.clone() }).is_err());
    assert!(rig.journal.seal(SealSet { parts: u32::MAX, ..seal.clone() }).is_err());
    assert!(rig.journal.seal(SealSet { closes_bulk: true, ..seal }).is_err());
    assert_eq!(rig.journal.sync().unwrap().last_set, 0);
}

#[test]
fn a_note_about_the_sources_marks_is_durable_and_taken_back_by_its_own_number_or_a_later_one() {
    let mut rig = Rig::streaming();
    let note = |source_start, number| MarksVoidRecord { source_start, number };
    let before = rig.journal.counter();
    let acknowledged = rig.journal.note_marks(note(3, 2), false, 17).unwrap();
    assert!(acknowledged > before, "a target that forgets the note is behind");
    rig.crash(true);
    assert!(rig.journal.counter() >= acknowledged);
    assert_eq!((rig.journal.marks_void(), rig.journal.marks()), (Some(note(3, 2)), 17));
    for (start, number) in [(3, 1), (2, 9)] {
        rig.journal.note_marks(note(start, number), true, 0).unwrap();
        rig.journal.note_marks(note(start, number), false, 0).unwrap();
        assert_eq!(rig.journal.marks_void(), Some(note(3, 2)), "the words of an old session");
    }
    rig.journal.note_marks(note(4, 1), true, 18).unwrap();
    rig.crash(true);
    assert_eq!((rig.journal.marks_void(), rig.journal.marks()), (None, 18));
}

#[test]
fn w6_content_of_a_catching_up_says_how_far_the_sources_marks_had_come() {
    let mut rig = Rig::streaming();
    rig.journal.raise_marks(40).unwrap();
    rig.journal.raise_marks(39).unwrap();
    rig.crash(true);
    assert_eq!(rig.journal.marks(), 40);
}

#[test]
fn the_marks_of_the_newest_set_outlive_its_redo() {
    let mut rig = Rig::streaming();
    assert_eq!(rig.journal.marks(), 0);
    for (number, marks) in [(1, 40), (2, 41)] {
        rig.send_part(1, number, 0, &[filled(0, 0, 8, 1)]);
        rig.journal.seal(SealSet { marks, ..rig.seal_of(1, number, 1, 8) }).unwrap();
        assert_eq!(rig.journal.marks(), if number == 1 { 0 } else { 40 }, "not durable yet");
        rig.journal.sync().unwrap();
        assert_eq!(rig.journal.marks(), marks);
    }
    rig.apply_all();
    rig.applier.apply_all_and_sync().unwrap();
    // The generation of both sets goes, and the new one has none yet.
    rig.rotate();
    rig.now = rig.now.plus(Duration::from_secs(100_000));
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 1);
    assert_eq!(rig.journal.marks(), 41);
    rig.crash(true);
    assert_eq!(rig.journal.marks(), 41);
    rig.open(2);
    rig.journal.begin_bulk(rig.now).unwrap();
    rig.crash(true);
    assert_eq!(rig.journal.marks(), 41);
    rig.open(3);
    rig.rest(3, 3, &[filled(0, 0, 8, 1)]);
    assert_eq!(rig.journal.marks(), 0, "this one said none");
}
