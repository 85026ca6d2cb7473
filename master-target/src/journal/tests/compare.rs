//! Comparison by digest: what is called the same is on the disks, durably, and all else differs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use blockio::{AlignedBuf, IoError, Run};
use bytes::Bytes;
use proto::digest::{self, Differs, UNIT_BYTES};
use proto::replication::CompareRun;

use super::rig::{Rig, data, filled, options, zeroes};
use crate::apply::{Applier, ApplyError, GroupDisks, MemDisks};
use crate::journal::{JournalError, MemVolume};

const UNIT_SECTORS: u64 = UNIT_BYTES as u64 / 512;

const NONE: [usize; 0] = [];

/// Disks that count their syncs, may have no holes, and may have a place that can't be read.
struct Odd {
    disks: MemDisks,
    is_thick: bool,
    bad_offset: Option<u64>,
    syncs: Arc<AtomicU32>,
}

impl GroupDisks for Odd {
    fn read(&mut self, disk: u32, ranges: &[(u64, usize)]) -> Result<Vec<Bytes>, IoError> {
        let holds = |bad: u64| ranges.iter().any(|&(at, len)| at <= bad && bad < at + len as u64);
        if self.bad_offset.is_some_and(holds) {
            return Err(IoError::new("read", std::path::Path::new("d0"), std::io::Error::other("injected")));
        }
        self.disks.read(disk, ranges)
    }
    fn write(&mut self, disk: u32, writes: Vec<(u64, Bytes)>) -> Result<(), IoError> {
        self.disks.write(disk, writes)
    }
    fn zero(&mut self, disk: u32, ranges: &[(u64, u64)]) -> Result<(), IoError> {
        self.disks.zero(disk, ranges)
    }
    fn allocated(&mut self, disk: u32, offset: u64, len: u64) -> Result<Vec<Run>, IoError> {
        if self.is_thick {
            Ok(vec![Run { offset, len, is_data: true }])
        } else {
            self.disks.allocated(disk, offset, len)
        }
    }
    fn sync(&mut self) -> Result<(), IoError> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.disks.sync()
    }
    fn set_depth(&mut self, depth: u32) {
        self.disks.set_depth(depth);
    }
    fn buffer(&mut self, len: usize) -> AlignedBuf {
        self.disks.buffer(len)
    }
}

fn odd(rig: &Rig) -> Odd {
    Odd { disks: rig.disks.clone(), is_thick: false, bad_offset: None, syncs: Arc::default() }
}

fn run(disk: u32, sector: u64, bytes: &[u8]) -> CompareRun {
    CompareRun { disk, sector, sectors: (bytes.len() / 512) as u32, digests: digest::of_run(bytes) }
}

fn differing<D: GroupDisks>(applier: &mut Applier<MemVolume, D>, runs: &[CompareRun]) -> Vec<usize> {
    let differs: Differs = applier.compare(runs).unwrap();
    (0..digest::units_of(runs)).filter(|unit| differs.contains(*unit)).collect()
}

/// Every unit holds another value.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| 1 + (at / UNIT_BYTES % 251) as u8).collect()
}

#[test]
fn equal_content_is_the_same_and_one_flipped_byte_differs_in_its_unit_alone() {
    // More than is read at a time, and a last unit that is short.
    let size = (20 << 20) + 512;
    let mut rig = Rig::new(1, &[1 << 20, size as u64], options());
    let content = pattern(size);
    rig.disks.overwrite(1, 0, &content);
    assert_eq!(differing(&mut rig.applier, &[run(1, 0, &content)]), NONE);
    // From a sector that is no multiple of a unit on.
    assert_eq!(differing(&mut rig.applier, &[run(1, 3, &content[3 * 512..])]), NONE);
    let places = [0, UNIT_BYTES - 1, 5 * UNIT_BYTES + 7, 17 << 20, size - 1];
    let mut flipped = content.clone();
    places.iter().for_each(|at| flipped[*at] ^= 0x10);
    assert_eq!(differing(&mut rig.applier, &[run(1, 0, &flipped)]), [0, 5, 272, 320]);
    // Units are counted over all ranges, whatever the disk and the order.
    let runs =
        [run(1, size as u64 / 512 - 1, &flipped[size - 512..]), run(0, 0, &[0; 512]), run(1, 0, &flipped[..4096])];
    assert_eq!(differing(&mut rig.applier, &runs), [0, 2]);
}

#[test]
fn a_hole_is_zero_without_being_read_and_zeroes_that_are_written_are_so_too() {
    let mut rig = Rig::new(1, &[1 << 20], options());
    let unit = [7; UNIT_BYTES];
    rig.disks.overwrite(0, 4 * UNIT_BYTES as u64 + 512, &[1]);
    let zero = CompareRun { disk: 0, sector: 0, sectors: 2048, digests: Vec::new() };
    assert_eq!(differing(&mut rig.applier, std::slice::from_ref(&zero)), [4]);
    assert_eq!(rig.disks.traffic().0, UNIT_BYTES as u64);
    assert_eq!(differing(&mut rig.applier, &[run(0, 8 * UNIT_SECTORS, &unit)]), [0], "a hole is not data");
    assert_eq!(rig.disks.traffic().0, UNIT_BYTES as u64);
    let mut thick = Applier::over(rig.journal.clone(), Odd { is_thick: true, ..odd(&rig) });
    assert_eq!(differing(&mut thick, &[zero]), [4]);
}

#[test]
fn a_unit_that_cannot_be_read_differs_and_the_disks_go_on() {
    let mut rig = Rig::new(1, &[1 << 20], options());
    rig.open(1);
    let content = pattern(1 << 20);
    rig.disks.overwrite(0, 0, &content);
    let bad_offset = Some(3 * UNIT_BYTES as u64 + 4096);
    let mut applier = Applier::over(rig.journal.clone(), Odd { bad_offset, ..odd(&rig) });
    assert_eq!(differing(&mut applier, &[run(0, 0, &content)]), [3]);
    rig.set(1, 1, &[filled(0, 1024, 8, 9)]);
    applier.apply_all_and_sync().unwrap();
    assert_eq!(differing(&mut applier, &[run(0, 1024, &[9; 4096])]), NONE);
}

#[test]
fn l4_durable_sets_are_applied_before_the_disks_are_compared_and_others_do_not_count() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 8, 1)]);
    rig.set(1, 2, &[filled(0, 8, 8, 2), zeroes(0, 16, 8)]);
    rig.send(1, 3, &[filled(0, 0, 8, 3)]);
    let runs = [run(0, 0, &[1; 4096]), run(0, 8, &[2; 4096]), run(0, 0, &[3; 4096])];
    assert_eq!(differing(&mut rig.applier, &runs), [2]);
    assert_eq!(rig.journal.applied_set().0, 2);
    let counter = rig.applier.durable_counter().unwrap();
    rig.crash(true);
    assert!(rig.journal.counter() >= counter);
    assert_eq!(rig.disks.content(0)[..8192], [[1; 4096], [2; 4096]].concat());
}

#[test]
fn l4_what_a_catching_up_wrote_is_synced_once_before_it_is_called_the_same() {
    let mut rig = Rig::streaming();
    rig.journal.begin_bulk(rig.now).unwrap();
    let disks = odd(&rig);
    let syncs = disks.syncs.clone();
    let mut applier = Applier::over(rig.journal.clone(), disks);
    let record = rig.record(0, 0, &[filled(0, 0, 8, 1)]);
    applier.apply_bulk(&[proto::frame::Decoder::new().decode(&record).unwrap()]).unwrap();
    let settled = syncs.load(Ordering::Relaxed);
    assert_eq!(differing(&mut applier, &[run(0, 0, &[1; 4096])]), NONE);
    let counter = applier.durable_counter().unwrap();
    assert_eq!(syncs.load(Ordering::Relaxed), settled + 1);
    // Nothing was written since.
    assert_eq!(differing(&mut applier, &[run(0, 0, &[1; 4096])]), NONE);
    assert_eq!(applier.durable_counter().unwrap(), counter);
    assert_eq!(syncs.load(Ordering::Relaxed), settled + 1);
    rig.crash(true);
    assert_eq!(rig.disks.content(0)[..4096], [1; 4096]);
    assert!(rig.journal.counter() >= counter);
}

#[test]
fn j8_what_an_earlier_process_wrote_is_synced_before_it_is_called_the_same() {
    for seed in 0..20 {
        let mut rig = Rig::new(seed, &[1 << 20], options());
        rig.open(1);
        rig.journal.begin_bulk(rig.now).unwrap();
        rig.bulk(&[data(0, 0, pattern(UNIT_BYTES))]);
        rig.crash(false);
        assert_eq!(differing(&mut rig.applier, &[run(0, 0, &pattern(UNIT_BYTES))]), NONE);
        rig.applier.durable_counter().unwrap();
        rig.crash(true);
        assert!(rig.disks.content(0)[..UNIT_BYTES] == pattern(UNIT_BYTES), "seed {seed}");
    }
}

#[test]
fn a_range_that_is_not_on_the_disks_is_refused_as_a_whole() {
    let mut rig = Rig::streaming();
    let on_disk = run(0, 2047, &[0; 512]);
    for outside in [
        CompareRun { sectors: 2, digests: Vec::new(), ..on_disk.clone() },
        CompareRun { sector: u64::MAX, ..on_disk.clone() },
        CompareRun { disk: 1, ..on_disk.clone() },
    ] {
        let refused = rig.applier.compare(&[on_disk.clone(), outside]).unwrap_err();
        assert!(matches!(refused, ApplyError::Journal(JournalError::Protocol { .. })), "{refused}");
    }
    assert_eq!(differing(&mut rig.applier, &[on_disk]), NONE, "the applier works on");
}
