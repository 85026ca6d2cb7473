//! What is written to the disks, and what is saved before, in apply and in rollbacks.

use proto::ids::{Lineage, SetNumber};

use super::super::rig::{Rig, filled, options, zeroes};
use crate::apply::{Applier, ApplyError, GroupDisks, Progress};
use crate::journal::{JournalError, Volume};

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
