//! The rules of the journal, one by one.

use std::time::Duration;

use proto::ids::{Counter, Lineage, Phase, SetNumber};
use proto::replication::SealSet;

use super::rig::{INSTANCE, Rig, filled, options, specs, zeroes};
use crate::apply::{Applier, ApplyError, GroupDisks, Progress};
use crate::journal::{
    Accepted, Journal, JournalError, MarksVoidRecord, Options, PhaseError, RecoveryRecord, Seeded, Volume,
};
use crate::recover::{PointReader, ReadError};

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

#[test]
fn j5_after_pruning_the_oldest_generation_begins_with_the_point_that_ended_the_one_before() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.apply_all();
    rig.rotate();
    rig.set(1, 3, &[filled(0, 0, 8, 3)]);
    rig.apply_all();
    rig.now = rig.now.plus(Duration::from_secs(100_000));
    assert_eq!(rig.journal.prune(rig.now, Duration::from_secs(1)).unwrap(), 1);
    assert_eq!(rig.point_sets(), [2, 3]);
    assert_eq!((rig.byte(2, 0), rig.byte(3, 0)), (2, 3));
    rig.crash(true);
    assert_eq!(rig.point_sets(), [2, 3]);
    assert_eq!((rig.byte(2, 0), rig.byte(3, 0)), (2, 3));
    assert!(!rig.volume.list().unwrap().iter().any(|name| name.starts_with("undo-00000001")));
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
    rig.journal.set_recovery_state(Some(record.clone())).unwrap();
    rig.now = rig.now.plus(Duration::from_secs(100_000));
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 0);
    rig.crash(true);
    assert_eq!(rig.journal.recovery_state(), Some(record));
    rig.journal.set_recovery_state(None).unwrap();
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 1);
}

#[test]
fn j8_what_is_found_after_a_kill_is_synced_before_it_is_relied_upon() {
    let mut rig = Rig::streaming();
    rig.send(1, 1, &[filled(0, 0, 8, 1)]);
    // Flushed, and with a commit record, but the sync never came.
    rig.fuse.burn_after(1);
    assert!(rig.journal.sync().is_err());
    rig.crash(false);
    assert_eq!(rig.journal.last_durable_set(), SetNumber(1));
    rig.volume.lose_power();
    rig.crash(true);
    assert_eq!(rig.journal.last_durable_set(), SetNumber(1));
}

#[test]
fn j9_the_first_record_of_a_block_wins_when_apply_is_repeated_after_a_crash() {
    let mut rig = Rig::streaming();
    rig.disks.overwrite(0, 0, &[7; 4096]);
    rig.set(1, 1, &[filled(0, 64, 8, 1)]);
    rig.apply_all();
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    for operations in 0..12 {
        rig.fuse.burn_after(operations);
        let _ = rig.applier.apply_next();
        rig.crash(operations % 2 == 0);
        assert_eq!(rig.byte(1, 0), 7, "crash after {operations} operations");
    }
    rig.apply_all();
    assert_eq!((rig.byte(1, 0), rig.byte(2, 0)), (7, 2));
}

#[test]
fn a_block_is_saved_once_in_a_generation_and_unchanged_ones_not_at_all() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1), filled(0, 8, 8, 0x55)]);
    rig.apply_all();
    let saved = |rig: &Rig| rig.journal.state().undo.values().map(Vec::len).sum::<usize>();
    let before = saved(&rig);
    let (reads, _) = rig.disks.traffic();
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.apply_all();
    assert_eq!(saved(&rig), before);
    assert_eq!(rig.disks.traffic().0, reads, "a hot block is not read");
    rig.rotate();
    let (_, writes) = rig.disks.traffic();
    rig.set(1, 3, &[filled(0, 8, 8, 0x55)]);
    rig.apply_all();
    assert_eq!((saved(&rig), rig.disks.traffic().1), (before, writes), "equal content is neither saved nor written");
}

#[test]
fn s15_zeroes_over_a_hole_cost_nothing() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[zeroes(0, 0, 2048)]);
    rig.apply_all();
    assert_eq!(rig.disks.traffic(), (0, 0));
    rig.set(1, 2, &[filled(0, 3, 2, 1)]);
    rig.apply_all();
    rig.set(1, 3, &[zeroes(0, 0, 2048)]);
    rig.apply_all();
    assert_eq!(rig.disks.content(0), vec![0; 1 << 20]);
    assert_eq!((rig.byte(2, 3), rig.byte(3, 3)), (1, 0));
}

#[test]
fn a_disk_whose_last_block_is_short_is_handled_to_its_end() {
    let size = 4096 * 3 + 512 * 3;
    let mut rig = Rig::new(3, &[size], options());
    rig.open(1);
    let last = size / 512 - 1;
    rig.set(1, 1, &[filled(0, last - 1, 2, 1)]);
    rig.apply_all();
    rig.rotate();
    rig.set(1, 2, &[zeroes(0, last - 2, 3)]);
    rig.apply_all();
    assert_eq!((rig.byte(1, last), rig.byte(2, last)), (1, 0));
    assert_eq!(rig.image(1, 0).len() as u64, size);
}

#[test]
fn j13_after_a_failed_sync_nothing_is_written_until_the_journal_is_opened_again() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.send(1, 2, &[filled(0, 0, 8, 2)]);
    rig.volume.fail_syncs(1);
    assert!(rig.journal.sync().is_err());
    for _ in 0..2 {
        assert!(matches!(rig.journal.sync(), Err(JournalError::Stopped { .. })), "a later sync must not hide it");
    }
    assert!(matches!(rig.journal.rotate_if_due(rig.now), Ok(false) | Err(_)));
    assert_eq!(rig.journal.last_durable_set(), SetNumber(1));
    rig.crash(true);
    assert!(rig.journal.last_durable_set() >= SetNumber(1));
    assert_eq!(rig.byte(1, 0), 1);
}

#[test]
fn s14_a_process_never_appends_to_a_segment_of_an_earlier_one() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    let before = rig.volume.len("redo-00000001").unwrap();
    rig.crash(false);
    rig.open(1);
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    assert_eq!(rig.volume.len("redo-00000001").unwrap(), before);
    assert!(rig.volume.list().unwrap().contains(&"redo-00000002".to_owned()));
}

#[test]
fn damage_before_the_tail_is_reported_with_file_and_offset() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.volume.flip("redo-00000001", 72);
    match rig.reopened() {
        Err(JournalError::Damaged { file, offset, .. }) => assert!(file == "redo-00000001" && offset <= 100),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_segment_or_manifest_is_damage() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.crash(false);
    let copy = rig.volume.clone();
    copy.remove("redo-00000001").unwrap();
    assert!(rig.reopened().unwrap_err().to_string().contains("redo-00000001"));
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.volume.remove("manifest").unwrap();
    assert!(rig.reopened().unwrap_err().to_string().contains("manifest is missing"));
}

#[test]
fn a_journal_of_other_disks_is_refused_with_what_differs() {
    let rig = Rig::streaming();
    for disks in [specs(&[1 << 20, 4096]), specs(&[2 << 20]), vec![]] {
        let refused = Journal::open(rig.volume.clone(), &disks, rig.now, options()).unwrap_err();
        assert!(matches!(refused, JournalError::WrongDisks { .. }), "{refused}");
    }
    assert_eq!(Journal::stored_disks(&rig.volume).unwrap().unwrap(), specs(&[1 << 20]));
}

#[test]
fn p6_a_flipped_bit_is_neither_applied_nor_shown() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    let mut reader = rig.reader(1);
    let frame_at = rig.journal.state().set(1).unwrap().runs[0];
    rig.volume.flip("redo-00000001", frame_at.offset + frame_at.len - 1);
    rig.apply_all();
    assert_eq!(rig.disks.content(0)[0], 0);
    assert!(matches!(reader.read(0, 0, &mut [0; 512]), Err(ReadError::Journal(JournalError::Damaged { .. }))));
}

#[test]
fn p6_a_saved_block_that_rotted_is_not_shown() {
    let mut rig = Rig::streaming();
    rig.disks.overwrite(0, 0, &[7; 4096]);
    rig.set(1, 1, &[filled(0, 64, 8, 1)]);
    rig.apply_all();
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.apply_all();
    let place = *rig.journal.state().undo[&1].last().unwrap();
    rig.volume.flip("undo-00000001-00000001", place.offset + place.len - 1);
    let mut reader = rig.reader(1);
    assert!(matches!(reader.read(0, 0, &mut [0; 512]), Err(ReadError::Journal(JournalError::Damaged { .. }))));
}

#[test]
fn j12_a_reader_keeps_its_point_from_being_pruned_by_age() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.apply_all();
    rig.rotate();
    rig.set(1, 3, &[filled(0, 0, 8, 3)]);
    rig.apply_all();
    rig.now = rig.now.plus(Duration::from_secs(100_000));
    let mut reader = rig.reader(1);
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 0);
    let mut bytes = [0; 512];
    reader.read(0, 0, &mut bytes).unwrap();
    assert_eq!(bytes[0], 1);
    drop(reader);
    assert_eq!(rig.journal.prune(rig.now, Duration::ZERO).unwrap(), 1);
}

#[test]
fn l5_a_rollback_puts_its_point_on_the_disks_and_can_be_taken_back() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.apply_all();
    rig.set(1, 2, &[filled(0, 0, 8, 2), filled(0, 80, 8, 2)]);
    let early = rig.journal.begin_rollback(SetNumber(1), Lineage([9; 16]), rig.now).unwrap_err();
    assert!(matches!(early, JournalError::State { .. }), "{early}");
    rig.apply_all();
    for (round, set) in [(1, 1), (2, 2), (3, 1)] {
        rig.journal.begin_rollback(SetNumber(set), Lineage([round; 16]), rig.now).unwrap();
        assert_eq!(rig.journal.lineage(), Lineage([round; 16]));
        let mut reader = rig.reader(set);
        rig.put(&mut reader);
        assert_eq!(rig.disks.content(0), rig.image(set, 0));
        assert_eq!(rig.disks.content(0)[0], set as u8);
        assert_eq!((rig.byte(1, 0), rig.byte(2, 0)), (1, 2), "points stay what they were");
    }
    rig.crash(true);
    assert_eq!(rig.journal.rollback().map(|rollback| (rollback.to, rollback.is_done)), Some((SetNumber(1), true)));
}

#[test]
fn l5_a_rollback_to_an_unlisted_point_or_without_room_is_refused() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.set(1, 2, &[filled(0, 0, 512, 2)]);
    rig.apply_all();
    assert!(rig.journal.begin_rollback(SetNumber(7), Lineage([9; 16]), rig.now).is_err());
    rig.journal.sync_marks().unwrap();
    let used: u64 = rig.volume.list().unwrap().iter().map(|name| rig.volume.len(name).unwrap()).sum();
    rig.volume.set_capacity(used + 4000);
    let lineage = rig.journal.lineage();
    let refused = rig.journal.begin_rollback(SetNumber(1), Lineage([9; 16]), rig.now).unwrap_err();
    assert!(matches!(refused, JournalError::Full { .. }), "{refused}");
    assert_eq!((rig.journal.rollback(), rig.journal.lineage()), (None, lineage), "nothing was begun");
}

#[test]
fn disks_that_somebody_else_wrote_void_the_points_and_change_the_lineage() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.apply_all();
    rig.journal.begin_lineage(Lineage([8; 16])).unwrap();
    assert!(rig.point_sets().is_empty());
    rig.crash(true);
    assert_eq!((rig.point_sets(), rig.journal.lineage()), (vec![], Lineage([8; 16])));
    rig.open(2);
    assert_eq!(rig.set(2, 2, &[filled(0, 0, 2048, 2)]), 2);
    rig.apply_all();
    assert_eq!(rig.point_sets(), [2]);
}

#[test]
fn after_a_failed_write_of_a_disk_nothing_more_is_written() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.apply_all();
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    let mut failing = Applier::over(rig.journal.clone(), Failing(rig.disks.clone()));
    assert!(matches!(failing.apply_next(), Err(ApplyError::Disk(_))));
    assert!(matches!(failing.apply_next(), Err(ApplyError::Stopped)));
    assert_eq!(rig.journal.applied_set(), SetNumber(1));
    assert_eq!(rig.applier.apply_next().unwrap(), Progress::Applied { set: SetNumber(2), bytes: 4096 });
}

/// Disks that can be read and synced, and not written.
struct Failing(crate::apply::MemDisks);

impl GroupDisks for Failing {
    fn read(&mut self, disk: u32, ranges: &[(u64, usize)]) -> Result<Vec<bytes::Bytes>, blockio::IoError> {
        self.0.read(disk, ranges)
    }
    fn write(&mut self, _disk: u32, _writes: Vec<(u64, bytes::Bytes)>) -> Result<(), blockio::IoError> {
        Err(blockio::IoError::new("write", std::path::Path::new("d0"), std::io::Error::other("injected")))
    }
    fn zero(&mut self, disk: u32, ranges: &[(u64, u64)]) -> Result<(), blockio::IoError> {
        self.0.zero(disk, ranges)
    }
    fn allocated(&mut self, disk: u32, offset: u64, len: u64) -> Result<Vec<blockio::Run>, blockio::IoError> {
        self.0.allocated(disk, offset, len)
    }
    fn sync(&mut self) -> Result<(), blockio::IoError> {
        self.0.sync()
    }
    fn set_depth(&mut self, depth: u32) {
        self.0.set_depth(depth);
    }
    fn buffer(&mut self, len: usize) -> blockio::AlignedBuf {
        self.0.buffer(len)
    }
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

#[test]
fn segments_end_at_their_size_and_everything_is_found_again() {
    let small = Options { segment_bytes: 5000, ..options() };
    let mut rig = Rig::new(4, &[1 << 20], small);
    rig.open(1);
    for number in 1..20 {
        let mut random = Seeded::new(number);
        let noise = (0..4096).map(|_| random.below(256) as u8).collect();
        rig.set(1, number, &[super::rig::data(0, number * 8, noise)]);
        rig.apply_all();
    }
    assert!(rig.volume.list().unwrap().len() > 10);
    rig.crash(true);
    assert_eq!(rig.point_sets().len(), 19);
    assert_eq!(rig.image(19, 0), rig.disks.content(0));
}
