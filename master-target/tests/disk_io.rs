//! Batched disk I/O against a plain array, on every engine, alignment and kind of disk.
#![allow(clippy::unwrap_used)]

mod loop_device;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
};

use blockio::{Access, BlockFile, BufPool, EngineKind, IoError};
use bytes::Bytes;
use loop_device::LoopDevice;
use master_target::target::{Disk, DiskIo, LinearDisk, Location, Thickness};
use proptest::prelude::*;

const KIB: u64 = 1 << 10;
const KINDS: [EngineKind; 2] = [EngineKind::Auto, EngineKind::Blocking];

fn disk_io(kind: EngineKind) -> DiskIo {
    DiskIo::new(kind, 4, BufPool::new(4 << 20)).unwrap()
}

fn raw_disk(folder: &Path, size: u64) -> LinearDisk {
    let file = Arc::new(BlockFile::create(&folder.join("disk"), size).unwrap());
    LinearDisk::new("disk".to_owned(), file, 0, size, Thickness::Thin)
}

/// Data that tells where it was written, and when.
fn pattern(offset: u64, len: u64, seed: u8) -> Vec<u8> {
    (offset..offset + len).map(|at| (at / 512) as u8 ^ (at % 251) as u8 ^ seed).collect()
}

/// A disk in pieces of 64 KiB that have no place before they are prepared, and then lie in reverse order in its file.
struct PiecesDisk {
    file: Arc<BlockFile>,
    places: Mutex<BTreeMap<u64, u64>>,
}

const PIECE: u64 = 64 * KIB;

impl PiecesDisk {
    fn new(folder: &Path, size: u64) -> Self {
        assert!(size.is_multiple_of(PIECE));
        let file = Arc::new(BlockFile::create(&folder.join("pieces"), size).unwrap());
        PiecesDisk { file, places: Mutex::default() }
    }
}

impl Disk for PiecesDisk {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn alignment(&self) -> u32 {
        self.file.alignment()
    }

    fn describe(&self) -> String {
        "pieces".to_owned()
    }

    fn locate(&self, offset: u64, len: u64) -> Result<Location, IoError> {
        let (piece, within) = (offset / PIECE, offset % PIECE);
        let len = len.min(PIECE - within);
        Ok(match self.places.lock().unwrap().get(&piece) {
            Some(place) => Location::File { file: Arc::clone(&self.file), offset: place + within, len },
            None => Location::Hole { len },
        })
    }

    fn prepare(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let mut places = self.places.lock().unwrap();
        for piece in offset / PIECE..(offset + len).div_ceil(PIECE) {
            let taken = places.len() as u64;
            places.entry(piece).or_insert_with(|| self.file.size() - (taken + 1) * PIECE);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), IoError> {
        self.file.sync()
    }
}

/// What a test does to a disk; ranges in sectors.
#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(Range<u64>, u8)>),
    Zero(Vec<Range<u64>>),
    Read(Vec<Range<u64>>),
}

const DISK_SECTORS: u64 = 512;

fn sectors() -> impl Strategy<Value = Range<u64>> {
    (0..DISK_SECTORS, 0u64..80).prop_map(|(start, len)| start..(start + len).min(DISK_SECTORS))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        prop::collection::vec((sectors(), any::<u8>()), 1..8).prop_map(Step::Write),
        prop::collection::vec(sectors(), 1..4).prop_map(Step::Zero),
        prop::collection::vec(sectors(), 1..8).prop_map(Step::Read),
    ];
    prop::collection::vec(step, 1..10)
}

fn bytes(sectors: &Range<u64>) -> Range<usize> {
    sectors.start as usize * 512..sectors.end as usize * 512
}

/// Runs the steps on the disk and on an array, and compares all that is read.
fn agrees_with_an_array(io: &mut DiskIo, disk: &dyn Disk, steps: &[Step]) {
    let mut model = vec![0; DISK_SECTORS as usize * 512];
    io.zero_many(disk, &[(0, model.len() as u64)]).unwrap();
    let whole = Step::Read(std::iter::once(0..DISK_SECTORS).collect());
    for step in steps.iter().chain([&whole]) {
        match step {
            Step::Write(writes) => {
                let mut batch = Vec::new();
                for (range, seed) in writes {
                    let range = bytes(range);
                    let data = pattern(range.start as u64, range.len() as u64, *seed);
                    model[range.clone()].copy_from_slice(&data);
                    batch.push((range.start as u64, Bytes::from(data)));
                }
                io.write_many(disk, batch).unwrap();
            }
            Step::Zero(ranges) => {
                ranges.iter().for_each(|range| model[bytes(range)].fill(0));
                let ranges: Vec<_> = ranges.iter().map(|r| (r.start * 512, (r.end - r.start) * 512)).collect();
                io.zero_many(disk, &ranges).unwrap();
            }
            Step::Read(ranges) => {
                let asked: Vec<_> = ranges.iter().map(|r| (r.start * 512, bytes(r).len())).collect();
                let read = io.read_many(disk, &asked).unwrap();
                assert_eq!(read.len(), ranges.len());
                for (range, buf) in ranges.iter().zip(read) {
                    assert!(buf[..] == model[bytes(range)], "{range:?} differs");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn a_linear_disk_agrees_with_an_array(steps in steps(), blocking in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let disk = raw_disk(folder.path(), DISK_SECTORS * 512);
        agrees_with_an_array(&mut disk_io(KINDS[usize::from(blocking)]), &disk, &steps);
    }

    #[test]
    fn a_disk_in_pieces_with_holes_agrees_with_an_array(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let disk = PiecesDisk::new(folder.path(), DISK_SECTORS * 512);
        agrees_with_an_array(&mut disk_io(EngineKind::Auto), &disk, &steps);
    }
}

#[test]
fn a_device_with_sectors_of_4_kib_agrees_with_an_array_sector_by_sector() {
    let device = LoopDevice::new(DISK_SECTORS * 512 + 4096);
    let file = Arc::new(BlockFile::open(&device.path, Access::ReadWrite).unwrap());
    assert_eq!((file.is_direct(), file.alignment()), (true, 4096));
    // Also a disk that begins inside a block: no offset on it is aligned.
    for (start, kind) in [(0, EngineKind::Auto), (63 * 512 % 4096, EngineKind::Auto), (0, EngineKind::Blocking)] {
        let name = format!("device from {start}");
        let disk = LinearDisk::new(name, Arc::clone(&file), start, DISK_SECTORS * 512, Thickness::Thick);
        let io = Mutex::new(disk_io(kind));
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(16));
        runner
            .run(&steps(), |steps| {
                agrees_with_an_array(&mut io.lock().unwrap(), &disk, &steps);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn ranges_longer_than_one_operation_are_moved_whole() {
    let folder = tempfile::tempdir().unwrap();
    let disk = raw_disk(folder.path(), 8 << 20);
    for kind in KINDS {
        let mut io = disk_io(kind);
        let data = pattern(512, 3 << 20, 17);
        io.write_many(&disk, vec![(512, Bytes::from(data.clone()))]).unwrap();
        let read = io.read_many(&disk, &[(512, 3 << 20), (0, 0), (0, 512)]).unwrap();
        assert!(read[0][..] == data[..]);
        assert!(read[1].is_empty());
        assert_eq!(&read[2][..], &[0; 512]);
    }
}

#[test]
fn many_small_writes_of_one_batch_all_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let disk = raw_disk(folder.path(), 4 << 20);
    for kind in KINDS {
        let mut io = disk_io(kind);
        let writes = (0..1024).map(|i| (i * 4096, Bytes::from(pattern(i * 4096, 4096, 3)))).collect();
        io.write_many(&disk, writes).unwrap();
        assert!(io.read_many(&disk, &[(0, 4 << 20)]).unwrap()[0][..] == pattern(0, 4 << 20, 3)[..]);
    }
}

#[test]
fn zeroes_give_place_back_on_a_thin_disk_and_keep_it_on_a_thick_one() {
    let folder = tempfile::tempdir().unwrap();
    let size = 1 << 20;
    let file = Arc::new(BlockFile::create(&folder.path().join("disk"), size).unwrap());
    let allocated = || std::os::unix::fs::MetadataExt::blocks(&file.path().metadata().unwrap()) * 512;
    let mut io = disk_io(EngineKind::Auto);
    for (thickness, left) in [(Thickness::Thick, size), (Thickness::Thin, 0)] {
        let disk = LinearDisk::new("disk".to_owned(), Arc::clone(&file), 0, size, thickness);
        io.write_many(&disk, vec![(0, Bytes::from(vec![1; size as usize]))]).unwrap();
        io.zero_many(&disk, &[(0, size)]).unwrap();
        disk.sync().unwrap();
        assert_eq!(allocated(), left, "{thickness:?}");
        assert!(io.read_many(&disk, &[(0, size as usize)]).unwrap()[0].iter().all(|&b| b == 0));
    }
}

#[test]
fn the_allocation_is_told_in_the_disks_own_offsets() {
    let folder = tempfile::tempdir().unwrap();
    let io = &mut disk_io(EngineKind::Auto);
    let file = Arc::new(BlockFile::create(&folder.path().join("file"), 1 << 20).unwrap());
    let disk = LinearDisk::new("disk".to_owned(), file, 256 * KIB, 512 * KIB, Thickness::Thin);
    io.write_many(&disk, vec![(128 * KIB, Bytes::from(vec![1; 4096]))]).unwrap();
    let pieces = PiecesDisk::new(folder.path(), 512 * KIB);
    io.write_many(&pieces, vec![(128 * KIB, Bytes::from(vec![1; 4096]))]).unwrap();
    for disk in [&disk as &dyn Disk, &pieces] {
        disk.sync().unwrap();
        let runs = io.allocated(disk, 64 * KIB, 256 * KIB).unwrap();
        let told: Vec<_> = runs.iter().map(|r| (r.offset / KIB, r.len / KIB, r.is_data)).collect();
        assert_eq!(told, [(64, 64, false), (128, 4, true), (132, 188, false)], "{}", disk.describe());
    }
}

#[test]
fn a_failed_write_fails_the_batch_and_leaves_the_engine_usable() {
    let folder = tempfile::tempdir().unwrap();
    drop(raw_disk(folder.path(), 1 << 20));
    let read_only = Arc::new(BlockFile::open(&folder.path().join("disk"), Access::ReadOnly).unwrap());
    let disk = LinearDisk::new("disk".to_owned(), read_only, 0, 1 << 20, Thickness::Thin);
    for kind in KINDS {
        let mut io = disk_io(kind);
        let writes = (0..16).map(|i| (i * 4096, Bytes::from(vec![1; 4096]))).collect();
        let error = io.write_many(&disk, writes).unwrap_err();
        assert!(error.to_string().contains("write") && error.path.ends_with("disk"), "{error}");
        assert!(io.zero_many(&disk, &[(0, 4096)]).is_err());
        assert_eq!(&io.read_many(&disk, &[(0, 4096)]).unwrap()[0][..], &[0; 4096]);
    }
}
