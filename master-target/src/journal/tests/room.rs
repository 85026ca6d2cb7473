//! What gives way on a full volume, and what never does.

use proto::ids::Phase;
use proto::replication::SealSet;

use super::rig::{Rig, filled, noise, noise_bytes, options};
use crate::apply::ApplyError;
use crate::journal::{JournalError, Options, Volume, WhenFull};
use crate::recover::ReadError;

/// A journal that keeps 64 KiB for marks and manifests, with a phase that is open.
fn rig(when_full: WhenFull) -> Rig {
    let rig = Rig::new(1, &[1 << 20], Options { when_full, reserve_bytes: 64 << 10, ..options() });
    rig.open(1);
    rig
}

/// Too little for any set, enough for marks and manifests.
const LITTLE: u64 = 40_000;

fn is_full(error: &ApplyError) -> bool {
    matches!(error, ApplyError::Journal(JournalError::Full { .. }))
}

#[test]
fn j10_a_full_volume_gives_up_all_but_the_newest_point_and_then_refuses_without_losing() {
    let mut rig = rig(WhenFull::DropOldest);
    rig.set(1, 1, &[filled(0, 0, 64, 1)]);
    rig.apply_all();
    rig.rotate();
    rig.set(1, 2, &[filled(0, 0, 64, 2)]);
    rig.apply_all();
    rig.fill(LITTLE);
    let frame = rig.record(3, 0, &[noise(0, 0, 512, 3)]);
    let refused = rig.journal.append_frame(Phase(1), 3, &frame).unwrap_err();
    assert!(matches!(refused, JournalError::Full { .. }), "{refused}");
    assert_eq!(rig.point_sets(), [2], "the newest point stays, as the start of what comes");
    assert_eq!(rig.journal.state().manifest.generations.len(), 1, "the others went");
    rig.volume.set_capacity(1 << 30);
    assert_eq!(rig.set(1, 3, &[filled(0, 0, 64, 3)]), 3, "nothing was lost by the refusal");
    rig.apply_all();
    assert_eq!([2, 3].map(|set| rig.byte(set, 0)), [2, 3]);
}

#[test]
fn j10_a_group_that_pauses_gives_up_no_point_and_goes_on_when_there_is_room() {
    let mut rig = rig(WhenFull::Pause);
    rig.set(1, 1, &[filled(0, 0, 64, 1)]);
    rig.apply_all();
    rig.rotate();
    rig.set(1, 2, &[filled(0, 0, 64, 2)]);
    rig.journal.sync_marks().unwrap();
    rig.fill(LITTLE);
    let frame = rig.record(3, 0, &[filled(0, 0, 64, 3)]);
    for _ in 0..2 {
        let refused = rig.journal.append_frame(Phase(1), 3, &frame).unwrap_err();
        assert!(matches!(refused, JournalError::Full { .. }), "{refused}");
    }
    let stalled = rig.applier.apply_next().unwrap_err();
    assert!(is_full(&stalled), "{stalled}");
    assert!(!rig.journal.find_room(1 << 20).unwrap());
    assert_eq!(rig.point_sets(), [1, 2]);
    rig.volume.set_capacity(1 << 30);
    assert!(rig.journal.find_room(1 << 20).unwrap());
    rig.set(1, 3, &[filled(0, 0, 64, 3)]);
    rig.apply_all();
    assert_eq!([1, 2, 3].map(|set| rig.byte(set, 0)), [1, 2, 3]);
}

#[test]
fn j10_the_current_generation_goes_last_and_its_redo_with_it() {
    let mut rig = rig(WhenFull::DropOldest);
    for set in 1..=20 {
        rig.set(1, set, &[noise(0, 0, 64, set)]);
        rig.apply_all();
    }
    // Half a set is in the making: it belongs to what comes.
    rig.send_part(1, 21, 0, &[noise(0, 0, 8, 21)]);
    rig.journal.sync().unwrap();
    let stored = rig.journal.stored_bytes();
    rig.fill(LITTLE);
    assert!(rig.journal.find_room(stored / 2).unwrap());
    assert_eq!(rig.point_sets(), [20]);
    rig.volume.set_capacity(1 << 30);
    let seal = rig.seal_of(1, 21, 2, 16);
    rig.send_part(1, 21, 1, &[noise(0, 800, 8, 22)]);
    rig.journal.seal(seal).unwrap();
    assert_eq!(rig.journal.sync().unwrap().last_set, 21);
    rig.apply_all();
    rig.crash(true);
    assert_eq!(rig.point_sets(), [20, 21]);
    assert_eq!(rig.image(20, 0)[..32 << 10], noise_bytes(64, 20));
    assert_eq!(rig.image(21, 0)[..4096], noise_bytes(8, 21));
}

#[test]
fn j7_while_catching_up_a_full_volume_takes_no_more_and_keeps_the_newest_point() {
    let mut rig = rig(WhenFull::DropOldest);
    rig.set(1, 1, &[filled(0, 0, 64, 1)]);
    rig.apply_all();
    rig.open(2);
    rig.journal.begin_bulk(rig.now).unwrap();
    rig.journal.sync_marks().unwrap();
    rig.fill(LITTLE);
    let record = rig.record(0, 0, &[filled(0, 0, 64, 9)]);
    let frame = proto::frame::Decoder::new().decode(&record).unwrap();
    let refused = rig.applier.apply_bulk(std::slice::from_ref(&frame)).unwrap_err();
    assert!(is_full(&refused), "{refused}");
    assert_eq!((rig.point_sets(), rig.byte(1, 0)), (vec![1], 1));
    rig.volume.set_capacity(1 << 30);
    rig.applier.apply_bulk(&[frame]).unwrap();
    rig.rest(2, 2, &[filled(0, 80, 8, 2)]);
    assert_eq!((rig.byte(1, 0), rig.byte(2, 0), rig.byte(2, 80)), (1, 9, 2));
}

#[test]
fn j7_history_does_not_restart_at_a_set_that_is_no_point() {
    let mut rig = rig(WhenFull::DropOldest);
    rig.set(1, 1, &[filled(0, 0, 512, 1)]);
    rig.apply_all();
    rig.rotate();
    rig.send_part(1, 2, 0, &[filled(0, 0, 512, 2)]);
    let seal = rig.seal_of(1, 2, 1, 512);
    rig.journal.seal(SealSet { is_point: false, ..seal }).unwrap();
    rig.journal.sync().unwrap();
    rig.journal.sync_marks().unwrap();
    rig.fill(LITTLE);
    let refused = rig.applier.apply_next().unwrap_err();
    assert!(is_full(&refused), "{refused}");
    assert_eq!(rig.point_sets(), [1]);
    rig.volume.set_capacity(1 << 30);
    rig.apply_all();
    assert_eq!((rig.byte(1, 0), rig.disks.content(0)[0]), (1, 2));
}

#[test]
fn a_volume_without_room_for_the_manifest_is_an_error_that_says_so_and_passes() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 64, 1)]);
    rig.fill(0);
    let refused = rig.reopened().unwrap_err();
    assert!(refused.to_string().contains("make room on the retention volume"), "{refused}");
    rig.volume.set_capacity(1 << 30);
    rig.crash(true);
    assert_eq!(rig.point_sets(), [1]);
}

#[test]
fn j10_history_restarts_when_undo_can_not_be_kept_and_the_sets_are_applied() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 512, 1)]);
    rig.apply_all();
    rig.rotate();
    rig.set(1, 2, &[filled(0, 0, 512, 2)]);
    let mut reader = rig.reader(1);
    rig.journal.sync_marks().unwrap();
    let used: u64 = rig.volume.list().unwrap().iter().map(|name| rig.volume.len(name).unwrap()).sum();
    rig.volume.set_capacity(used + 4000);
    rig.apply_all();
    assert_eq!(rig.point_sets(), [2]);
    assert_eq!((rig.byte(2, 0), rig.disks.content(0)[0]), (2, 2));
    assert!(matches!(reader.read(0, 0, &mut [0; 512]), Err(ReadError::GivenUp(_))));
}
