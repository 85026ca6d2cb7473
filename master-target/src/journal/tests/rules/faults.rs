//! What a kill, a failed sync or damage leaves, and what is believed of it.

use proto::ids::SetNumber;

use super::super::rig::{Rig, data, filled, options, specs};
use crate::journal::{Journal, JournalError, Options, Seeded, Volume};
use crate::recover::ReadError;

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
fn segments_end_at_their_size_and_everything_is_found_again() {
    let small = Options { segment_bytes: 5000, ..options() };
    let mut rig = Rig::new(4, &[1 << 20], small);
    rig.open(1);
    for number in 1..20 {
        let mut random = Seeded::new(number);
        let noise = (0..4096).map(|_| random.below(256) as u8).collect();
        rig.set(1, number, &[data(0, number * 8, noise)]);
        rig.apply_all();
    }
    assert!(rig.volume.list().unwrap().len() > 10);
    rig.crash(true);
    assert_eq!(rig.point_sets().len(), 19);
    assert_eq!(rig.image(19, 0), rig.disks.content(0));
}
