//! A scrub finds every byte that is not what was written, says where it is, and passes a journal that is right.

use std::ops::ControlFlow;

use super::rig::{Rig, noise};
use crate::journal::{Scrubbed, SegmentId, Volume};

/// Three generations: sets 1 and 2, 3 and 4, 5; all applied but the last, and half a set in the making.
fn history() -> Rig {
    let mut rig = Rig::streaming();
    rig.disks.overwrite(0, 0, &[7; 64 << 10]);
    for set in 1..=4 {
        rig.set(1, set, &[noise(0, 8 * set, 64, set), noise(0, 1024, 16, set)]);
        rig.apply_all();
        if set % 2 == 0 {
            rig.rotate();
        }
    }
    rig.set(1, 5, &[noise(0, 0, 64, 5)]);
    rig.send_part(1, 6, 0, &[noise(0, 0, 64, 6)]);
    rig
}

fn scrub(rig: &Rig) -> Scrubbed {
    rig.journal.scrub(|_, _| ControlFlow::Continue(())).unwrap().unwrap()
}

fn frame_of(rig: &Rig, set: u64) -> (String, u64, u64) {
    let run = rig.journal.state().set(set).unwrap().runs[0];
    (run.segment.to_string(), run.offset, run.len)
}

/// The one damage that is found.
fn only(rig: &Rig) -> (String, u64, Vec<u64>) {
    let mut damages = scrub(rig).damages;
    assert_eq!(damages.len(), 1, "{damages:?}");
    let damage = damages.remove(0);
    (damage.file, damage.offset, damage.points)
}

#[test]
fn a_clean_journal_passes_while_a_set_is_in_the_making_and_all_of_it_is_read() {
    let rig = history();
    let mut told = Vec::new();
    let scrubbed = rig.journal.scrub(|done, total| {
        told.push((done, total));
        ControlFlow::Continue(())
    });
    let scrubbed = scrubbed.unwrap().unwrap();
    assert_eq!(scrubbed.damages, []);
    let (last, total) = *told.last().unwrap();
    assert_eq!((last, scrubbed.bytes), (total, total));
    assert!(total >= rig.journal.state().set(5).unwrap().stored_bytes * 4 && scrubbed.files >= 4);
    assert!(rig.journal.scrub(|_, _| ControlFlow::Break(())).unwrap().is_none(), "who breaks it off learns nothing");
}

#[test]
fn a_flipped_byte_of_redo_is_found_with_the_points_that_it_spoils() {
    for (set, spoiled) in [(1, vec![1, 2]), (2, vec![2]), (3, vec![3, 4]), (5, vec![5])] {
        let rig = history();
        let (file, offset, len) = frame_of(&rig, set);
        let records = scrub(&rig).records;
        // In the content, in the header, in the magic: the records behind it are found all the same.
        for at in [offset + len - 1, offset + 30, offset] {
            rig.volume.flip(&file, at);
            assert_eq!(only(&rig), (file.clone(), offset, spoiled.clone()), "byte {at} of set {set}");
            assert_eq!(scrub(&rig).records, records - 1);
            rig.volume.flip(&file, at);
        }
    }
}

#[test]
fn a_flipped_byte_of_undo_spoils_its_generation_and_those_before_it() {
    let rig = history();
    for (generation, spoiled) in [(1, vec![1, 2]), (2, vec![1, 2, 3, 4])] {
        let place = *rig.journal.state().undo[&generation].last().unwrap();
        let file = SegmentId { generation, index: place.index }.to_string();
        let at = place.offset + place.len - 1;
        rig.volume.flip(&file, at);
        assert_eq!(only(&rig), (file.clone(), place.offset, spoiled));
        rig.volume.flip(&file, at);
    }
    assert_eq!(scrub(&rig).damages, []);
}

#[test]
fn a_file_that_is_cut_short_or_gone_and_a_rotten_manifest_are_found() {
    let rig = history();
    let (file, offset, len) = frame_of(&rig, 5);
    rig.volume.truncate(&file, offset + len - 10);
    let damages = scrub(&rig).damages;
    assert_eq!((damages[0].file.as_str(), damages[0].offset), (file.as_str(), offset + len - 10));
    assert!(damages[0].what.contains("the file ends here") && damages[0].points == [5], "{damages:?}");
    assert!(damages.iter().all(|damage| damage.points == [5]));

    let rig = history();
    rig.volume.remove("undo-00000001-00000001").unwrap();
    assert_eq!(only(&rig), ("undo-00000001-00000001".to_owned(), 0, vec![1, 2]));

    let rig = history();
    rig.volume.flip("manifest", 40);
    assert_eq!(only(&rig), ("manifest".to_owned(), 0, vec![1, 2, 3, 4, 5]));
}
