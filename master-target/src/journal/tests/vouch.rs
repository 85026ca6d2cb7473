//! What was durable is vouched for elsewhere (rule J16): files that end early are noticed, and a target that lost what it had
//! acknowledged shows no wrong points afterwards.

use std::time::Duration;

use proto::digest;
use proto::ids::{Counter, Phase, SetNumber};
use proto::replication::CompareRun;

use super::rig::{INSTANCE, Rig, filled};
use crate::apply::Progress;
use crate::journal::{Accepted, JournalError, Volume};
use crate::rules::Rule;

const REDO: &str = "redo-00000001";
const UNDO: &str = "undo-00000001-00000001";

/// Opens the journal, which must name this file as cut short there.
#[track_caller]
fn assert_cut_is_noticed(rig: &Rig, name: &str, bytes: u64) {
    match rig.reopened() {
        Err(JournalError::Damaged { file, offset, what }) => {
            assert!(file == name && offset <= bytes && what.contains("although"), "{file} {offset} {what}");
        }
        other => panic!("{name} ends after {bytes} bytes: {other:?}"),
    }
}

fn bytes_of(rig: &Rig, name: &str) -> u64 {
    rig.volume.len(name).unwrap()
}

/// Two sets that write the same blocks, so that nothing is saved for the second: it is on the disks, its mark is not durable.
fn with_two_sets() -> (Rig, u64) {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.apply_all();
    rig.journal.sync_marks().unwrap();
    let first = bytes_of(&rig, REDO);
    rig.set(1, 2, &[filled(0, 0, 8, 2)]);
    rig.apply_all();
    assert_eq!(rig.disks.content(0)[0], 2);
    (rig, first)
}

#[test]
fn redo_that_is_cut_below_what_the_disks_hold_is_noticed() {
    let (rig, first) = with_two_sets();
    rig.volume.truncate(REDO, first);
    assert_cut_is_noticed(&rig, REDO, first);
    // Without the rule it passes for a tail that was never synced.
    assert_eq!(Rule::SegmentsVouch.off(|| rig.reopened().unwrap().last_durable_set().0), 1);
}

#[test]
fn undo_that_is_cut_below_what_was_synced_is_noticed_by_the_next_set() {
    let mut rig = Rig::streaming();
    let head = 46;
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.apply_all();
    rig.set(1, 2, &[filled(0, 80, 8, 2)]);
    rig.volume.truncate(UNDO, head);
    assert_cut_is_noticed(&rig, UNDO, head);
    assert!(Rule::SegmentsVouch.off(|| rig.reopened().is_ok()));
}

#[test]
fn a_group_at_rest_is_vouched_for_by_its_manifest() {
    for name in [REDO, UNDO] {
        let mut rig = Rig::streaming();
        rig.set(1, 1, &[filled(0, 0, 8, 1)]);
        rig.apply_all();
        rig.journal.sync_marks().unwrap();
        // Something still happens at the first look.
        rig.journal.vouch_when_idle().unwrap();
        assert!(rig.journal.state().manifest.open_segments.is_empty());
        rig.journal.vouch_when_idle().unwrap();
        let bytes = bytes_of(&rig, name);
        assert!(rig.journal.state().manifest.open_segments.iter().any(|open| open.bytes == bytes));
        let manifest = rig.volume.image()["manifest"].clone();
        rig.journal.vouch_when_idle().unwrap();
        assert_eq!(rig.volume.image()["manifest"], manifest, "it is written once");
        rig.volume.truncate(name, bytes - 1);
        assert_cut_is_noticed(&rig, name, bytes - 1);
        rig.volume.remove(name).unwrap();
        assert!(rig.reopened().unwrap_err().to_string().contains(name));
    }
}

#[test]
fn what_was_never_synced_is_vouched_for_by_nobody() {
    for seed in 0..200 {
        let mut rig = Rig::new(seed, &[1 << 20], super::rig::options());
        rig.open(1);
        for number in 1..8 {
            rig.send(1, number, &[filled(0, number * 8, 8, 1), filled(0, 0, 8, number as u8)]);
            if (seed + number) % 3 > 0 {
                rig.journal.sync().unwrap();
            }
            if (seed + number) % 4 == 0 {
                while rig.applier.apply_next().unwrap() != Progress::Idle {}
            }
            if (seed + number) % 5 == 0 {
                rig.journal.vouch_when_idle().unwrap();
            }
        }
        rig.crash(true);
        assert!(rig.journal.last_durable_set().0 >= 5, "seed {seed}");
    }
}

/// Only the retention volume comes back from an image: the disks are ahead of it.
fn came_back_without_its_disks() -> (Rig, Counter) {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 16, 1)]);
    rig.set(1, 2, &[filled(0, 8, 8, 2)]);
    rig.apply_all();
    rig.journal.sync_marks().unwrap();
    let image = rig.volume.image();
    rig.set(1, 3, &[filled(0, 0, 8, 3)]);
    let known = rig.journal.counter();
    rig.apply_all();
    rig.volume.restore(&image);
    rig.crash(false);
    (rig, known)
}

/// The source finds the first block to be the same, and sends sector 80 as set 3.
fn goes_on_with_its_source(rig: &mut Rig, known: Counter) {
    rig.journal.open_phase(Phase(1), 1, &INSTANCE).unwrap();
    assert!(rig.journal.greet(known).unwrap() < known);
    rig.open(2);
    let run = CompareRun { disk: 0, sector: 0, sectors: 8, digests: digest::of_run(&[3; 4096]) };
    assert!(!rig.applier.compare(&[run]).unwrap().contains(0));
    rig.applier.durable_counter().unwrap();
    rig.set(2, 3, &[filled(0, 80, 8, 4)]);
}

#[test]
fn a_point_after_a_loss_holds_what_the_disks_did_and_not_what_redo_said_before_it() {
    for is_crashed in [false, true] {
        let (mut rig, known) = came_back_without_its_disks();
        goes_on_with_its_source(&mut rig, known);
        rig.apply_all();
        if is_crashed {
            rig.crash(true);
        }
        assert_eq!((rig.byte(3, 0), rig.byte(3, 8), rig.byte(3, 80)), (3, 2, 4));
    }
    let (mut rig, known) = came_back_without_its_disks();
    Rule::LossEndsGeneration.off(|| goes_on_with_its_source(&mut rig, known));
    assert_eq!(rig.byte(3, 0), 1, "without the rule the point is wrong");
}

/// What the image does not know of is no content of its points.
#[test]
fn a_point_of_before_that_needs_a_disk_that_is_ahead_is_refused() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 16, 1)]);
    rig.rotate();
    rig.set(1, 2, &[filled(0, 80, 8, 2)]);
    rig.apply_all();
    rig.journal.sync_marks().unwrap();
    let image = rig.volume.image();
    rig.set(1, 3, &[filled(0, 0, 8, 3)]);
    rig.apply_all();
    rig.volume.restore(&image);
    rig.crash(false);
    assert!(rig.reader(2).read(0, 0, &mut [0; 512]).is_err());
    assert_eq!((rig.byte(2, 80), rig.byte(2, 8)), (2, 1));
}

#[test]
fn nothing_of_the_old_phase_is_taken_after_a_loss() {
    let (mut rig, known) = came_back_without_its_disks();
    rig.journal.open_phase(Phase(1), 1, &INSTANCE).unwrap();
    rig.send_part(1, 3, 0, &[filled(0, 0, 8, 9)]);
    rig.journal.greet(known).unwrap();
    let late = rig.record(3, 1, &[filled(0, 0, 8, 9)]);
    assert_eq!(rig.journal.append_frame(Phase(1), 3, &late).unwrap(), Accepted::OtherPhase);
    assert!(!rig.journal.state().sets.is_building());
}

#[test]
fn a_loss_ends_a_generation_once_and_only_one_with_sets() {
    let (mut rig, known) = came_back_without_its_disks();
    for _ in 0..3 {
        rig.journal.open_phase(Phase(1), 1, &INSTANCE).unwrap();
        assert!(rig.journal.greet(known).unwrap() < known);
        assert_eq!(rig.journal.state().manifest.generations.len(), 2);
        rig.crash(true);
    }
    assert!(!rig.journal.rotate_if_due(rig.now.plus(Duration::from_secs(1 << 20))).unwrap());
}

#[test]
fn the_counter_of_a_mark_does_not_hide_that_commits_are_gone() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    let first = bytes_of(&rig, REDO);
    rig.set(1, 2, &[filled(0, 8, 8, 2)]);
    let known = rig.journal.counter();
    rig.volume.truncate(REDO, first);
    rig.journal.mark_applied(1, SetNumber(1)).unwrap();
    rig.journal.sync_marks().unwrap();
    Rule::SegmentsVouch.off(|| rig.crash(false));
    rig.journal.open_phase(Phase(1), 1, &INSTANCE).unwrap();
    assert!(rig.journal.greet(known).unwrap() < known);
}
