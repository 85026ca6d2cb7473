//! QEMU's tools judge split and sparse targets and compressed exports; golden files hold each byte of new ones.
#![allow(clippy::unwrap_used)]

mod qemu;

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use blockio::{Access, BlockFile};
use bytes::Bytes;
use master_target::{
    target::{Disk as _, Location, Opened, TargetFault},
    vmdk::{
        Damage, DiskKind, ExtentName, Header, NewDisk, SparseDisk, SparseError, StreamWriter, Unsupported,
        create_sparse,
    },
};
use qemu::{Fixture, io, succeeds};

const MIB: u64 = 1 << 20;
/// Two tables of grains, and no whole grain at the end.
const SIZE: u64 = 40 * MIB + 512;
/// The random bytes of golden files.
const RANDOM: [u8; 32] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30,
    31,
];

/// Compares a file with the golden one of this name; what it is instead is left in the folder for such files.
fn assert_golden(name: &str, actual: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vmdk").join(name);
    if fs::read(&golden).ok() != Some(fs::read(actual).unwrap()) {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::copy(actual, &kept).unwrap();
        panic!("{} differs from {}", kept.display(), golden.display());
    }
}

/// Writes here and there, and returns what the disk must hold.
fn scribble(opened: &Opened) -> Vec<u8> {
    let size = opened.disk.size();
    let mut expected = vec![0; size as usize];
    let places = [(0, 512), (70_000 / 512 * 512, 4096), (MIB - 1024, 2048), (33 * MIB, 3 << 20), (size - 512, 512)];
    let mut writes = Vec::new();
    for (index, (offset, len)) in places.into_iter().enumerate() {
        expected[offset as usize..][..len].fill(index as u8 + 1);
        writes.push((offset, Bytes::copy_from_slice(&expected[offset as usize..][..len])));
    }
    io().write_many(&*opened.disk, writes).unwrap();
    // Whole grains, a part of one, and what never had a place.
    for (offset, len) in [(34 * MIB, 128 << 10), (33 * MIB + 4096, 8192), (10 * MIB, 1 << 20)] {
        expected[offset as usize..][..len].fill(0);
        io().zero_many(&*opened.disk, &[(offset, len as u64)]).unwrap();
    }
    opened.disk.sync().unwrap();
    expected
}

/// QEMU finds the VMDK sound, and the same as `expected`. It is told not to mind the locks (`-U`) of an open target.
fn assert_qemu_agrees(fixture: &Fixture, expected: &[u8]) {
    fs::write(fixture.path("expected.raw"), expected).unwrap();
    let (raw, disk) = (fixture.text("expected.raw"), fixture.text("os.vmdk"));
    succeeds("qemu-img", &["check", "-U", "-f", "vmdk", &disk]);
    succeeds("qemu-img", &["compare", "-U", "-f", "raw", "-F", "vmdk", &raw, &disk]);
    let copy = fixture.text("copy.raw");
    succeeds("qemu-img", &["convert", "-U", "-f", "vmdk", "-O", "raw", &disk, &copy]);
    assert!(fs::read(fixture.path("copy.raw")).unwrap() == expected, "the conversion differs");
}

#[test]
fn new_targets_of_every_kind_are_sound_and_hold_what_was_written() {
    for kind in [DiskKind::MonolithicFlat, DiskKind::TwoGbMaxExtentFlat, DiskKind::MonolithicSparse] {
        let fixture = Fixture::of(kind);
        let mut opened = fixture.open(Some(SIZE)).unwrap();
        assert!(opened.created && opened.notices.is_empty());
        let info = succeeds("qemu-img", &["info", "-U", "--output=json", &fixture.text("os.vmdk")]);
        assert!(info.contains(&format!("\"virtual-size\": {SIZE}")) && info.contains(kind.create_type()), "{info}");
        let expected = scribble(&opened);
        let stamped = opened.stamp_cid().unwrap().unwrap();
        assert_qemu_agrees(&fixture, &expected);
        assert!(fixture.refusal_of_a_write("os.vmdk", "vmdk").unwrap().contains("lock"));
        let left = opened.release().unwrap();
        assert_qemu_agrees(&fixture, &expected);
        let info = succeeds("qemu-img", &["info", "-U", "--output=json", &fixture.text("os.vmdk")]);
        assert!(info.contains(&format!("\"cid\": {}", stamped.value())), "{info}");
        let again = fixture.open(None).unwrap();
        assert!(!again.created && again.notices.is_empty());
        assert_eq!(again.identity(), left);
    }
}

#[test]
fn a_write_by_qemu_is_read_and_shows_in_the_content_id() {
    for kind in [DiskKind::TwoGbMaxExtentFlat, DiskKind::MonolithicSparse] {
        let fixture = Fixture::of(kind);
        let opened = fixture.open(Some(SIZE)).unwrap();
        let mut expected = scribble(&opened);
        let left = opened.release().unwrap();
        assert_eq!(fixture.refusal_of_a_write("os.vmdk", "vmdk"), None);
        expected[..4096].fill(0x77);
        let found = fixture.open(None).unwrap();
        assert_ne!(found.cid(), left.cid, "{kind}");
        let read = io().read_many(&*found.disk, &[(0, 64 << 10)]).unwrap();
        assert!(read[0][..] == expected[..64 << 10], "{kind}");
        drop(found);
        assert_qemu_agrees(&fixture, &expected);
    }
}

#[test]
fn split_and_sparse_vmdks_made_by_qemu_are_targets() {
    for kind in ["twoGbMaxExtentFlat", "monolithicSparse"] {
        for options in ["", ",zeroed_grain=on"] {
            if kind == "twoGbMaxExtentFlat" && !options.is_empty() {
                continue;
            }
            let fixture = Fixture::of(DiskKind::Vmfs);
            let option = format!("subformat={kind}{options}");
            let size = SIZE.to_string();
            succeeds("qemu-img", &["create", "-q", "-f", "vmdk", "-o", &option, &fixture.text("os.vmdk"), &size]);
            // A grain that QEMU has made, and with zeroed grains one that it has marked as such.
            succeeds(
                "qemu-io",
                &["-f", "vmdk", "-c", "write 20M 64k", "-c", "write -z 20M 64k", &fixture.text("os.vmdk")],
            );
            let mut opened = fixture.open(Some(SIZE)).unwrap();
            assert!(!opened.created && opened.notices.is_empty(), "{:?}", opened.notices);
            opened.stamp_cid().unwrap();
            let expected = scribble(&opened);
            assert_qemu_agrees(&fixture, &expected);
            opened.release().unwrap();
        }
    }
}

#[test]
fn a_disk_over_four_gib_is_split_where_vmware_splits() {
    let fixture = Fixture::of(DiskKind::TwoGbMaxExtentFlat);
    let opened = fixture.open(Some(4 << 30)).unwrap();
    let cut = 4_192_256 * 512;
    io().write_many(&*opened.disk, vec![(cut - 512, Bytes::from(vec![7; 1024]))]).unwrap();
    opened.release().unwrap();
    for (name, size) in [("os-f001.vmdk", cut), ("os-f002.vmdk", cut), ("os-f003.vmdk", (4 << 30) - 2 * cut)] {
        assert_eq!(fs::metadata(fixture.path(name)).unwrap().len(), size, "{name}");
    }
    let byte = |name: &str, at: u64| {
        let mut file = File::open(fixture.path(name)).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        let mut byte = [0];
        file.read_exact(&mut byte).unwrap();
        byte[0]
    };
    assert_eq!((byte("os-f001.vmdk", cut - 1), byte("os-f002.vmdk", 511), byte("os-f002.vmdk", 512)), (7, 7, 0));
    succeeds("qemu-img", &["check", "-U", "-f", "vmdk", &fixture.text("os.vmdk")]);
    let pattern = ["-f", "vmdk", "-c", "read -P 7 2146434560 1024", &fixture.text("os.vmdk")];
    assert!(!succeeds("qemu-io", &pattern).contains("failed"));
}

#[test]
fn qemu_maps_each_grain_to_where_the_disk_says_that_it_lies() {
    let fixture = Fixture::of(DiskKind::MonolithicSparse);
    let opened = fixture.open(Some(SIZE)).unwrap();
    let grain = 64 << 10;
    for at in [5 * grain, 3 * grain, 4 * grain, 600 * grain] {
        io().write_many(&*opened.disk, vec![(at, Bytes::from(vec![1; 512]))]).unwrap();
    }
    opened.disk.sync().unwrap();
    let map = succeeds("qemu-img", &["map", "-U", "-f", "vmdk", "--output=json", &fixture.text("os.vmdk")]);
    let mut at = 0;
    let mut places = 0;
    while at < SIZE {
        match opened.disk.locate(at, SIZE - at).unwrap() {
            Location::Hole { len } => at += len,
            Location::File { offset, len, .. } => {
                let line = format!("\"start\": {at}, \"length\": {len}, \"depth\": 0");
                let found = map.lines().find(|l| l.contains(&line)).unwrap_or_else(|| panic!("{line}\n{map}"));
                assert!(found.contains(&format!("\"offset\": {offset}")), "{found}");
                (at, places) = (at + len, places + 1);
            }
        }
    }
    assert_eq!(places, 3, "{map}");
}

#[test]
fn a_new_sparse_disk_is_each_byte_of_the_golden_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.vmdk");
    let header = Header::of_new_disk(4 * MIB / 512).unwrap();
    let name = ExtentName::parse("small.vmdk").unwrap();
    let text = NewDisk::new(DiskKind::MonolithicSparse, name, 4 * MIB, RANDOM).text();
    create_sparse(&path, &header, &text).unwrap();
    let file = BlockFile::open(&path, Access::ReadWrite).unwrap();
    let (disk, differing) = SparseDisk::open("small".to_owned(), file.into(), header).unwrap();
    assert_eq!(differing, 0);
    // The second grain of the file is the first of the disk.
    for at in [17 << 16, 512] {
        io().write_many(&disk, vec![(at, Bytes::from(vec![0xab; 1024]))]).unwrap();
    }
    disk.sync().unwrap();
    assert_golden("created-monolithic-sparse.vmdk", &path);
    succeeds("qemu-img", &["check", "-U", "-f", "vmdk", path.to_str().unwrap()]);
}

/// Writes a disk as a stream, in pieces of one MiB.
fn stream(path: &Path, content: &[u8]) {
    let name = ExtentName::parse(path.file_name().unwrap().to_str().unwrap()).unwrap();
    let file = File::create_new(path).unwrap();
    let mut writer = StreamWriter::begin(file, name, content.len() as u64, RANDOM).unwrap();
    content.chunks(MIB as usize).for_each(|piece| writer.append(piece).unwrap());
    writer.finish().unwrap();
}

#[test]
fn a_stream_is_each_byte_of_the_golden_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.vmdk");
    let mut content = vec![0; (4 * MIB) as usize];
    content[17 << 16..][..1024].fill(0xab);
    content[512..1536].fill(0xab);
    stream(&path, &content);
    assert_golden("exported-stream-optimized.vmdk", &path);
}

#[test]
fn qemu_reads_streams_as_the_disks_they_were_made_of() {
    let mut noise = vec![0; 40 * MIB as usize + 1536];
    let mut state = 1u64;
    noise[33 * MIB as usize..].iter_mut().for_each(|byte| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    });
    noise[70_000..80_000].fill(9);
    let zeroes = vec![0; 3 * MIB as usize];
    let one_sector = vec![5; 512];
    let whole_tables: Vec<u8> = (0..64 * MIB as usize).map(|at| (at >> 16) as u8 | 1).collect();
    for (name, content) in [("noise", noise), ("zeroes", zeroes), ("sector", one_sector), ("tables", whole_tables)] {
        let fixture = Fixture::of(DiskKind::Vmfs);
        stream(&fixture.path("os.vmdk"), &content);
        let info = succeeds("qemu-img", &["info", "-U", "--output=json", &fixture.text("os.vmdk")]);
        assert!(info.contains(&format!("\"virtual-size\": {}", content.len())), "{name}: {info}");
        assert!(info.contains("streamOptimized") && info.contains("\"cid\": 522067228"), "{name}: {info}");
        assert_qemu_agrees(&fixture, &content);
        let size = fs::metadata(fixture.path("os.vmdk")).unwrap().len();
        assert!(name == "noise" || size < MIB, "{name}: {size} bytes");
        let refused = fixture.open(None).err().unwrap().fault;
        let is_named = matches!(&refused, TargetFault::Unsupported { why: Unsupported::Kind { kind, .. }, .. } if kind == "streamOptimized");
        assert!(is_named, "{refused}");
    }
}

/// A sparse target that was written and released, and where its file is.
fn sparse_target() -> (Fixture, PathBuf, Vec<u8>) {
    let fixture = Fixture::of(DiskKind::MonolithicSparse);
    let opened = fixture.open(Some(SIZE)).unwrap();
    let expected = scribble(&opened);
    opened.release().unwrap();
    let path = fixture.path("os.vmdk");
    (fixture, path, expected)
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn a_killed_agents_leftovers_are_cut_off_and_its_content_stays() {
    let (fixture, path, expected) = sparse_target();
    let opened = fixture.open(None).unwrap();
    // Written and not synced: killed, the grain is in the file and no entry names it.
    io().write_many(&*opened.disk, vec![(20 * MIB, Bytes::from(vec![0xee; 4096]))]).unwrap();
    drop(opened);
    let left = fs::metadata(&path).unwrap().len();
    assert_qemu_agrees(&fixture, &expected);
    let opened = fixture.open(None).unwrap();
    assert!(fs::metadata(&path).unwrap().len() < left);
    io().write_many(&*opened.disk, vec![(20 * MIB, Bytes::from(vec![0xdd; 512]))]).unwrap();
    opened.disk.sync().unwrap();
    let mut expected = expected;
    expected[20 * MIB as usize..][..512].fill(0xdd);
    assert_qemu_agrees(&fixture, &expected);
}

#[test]
fn redundant_tables_that_are_behind_are_mended_and_reported() {
    let (fixture, path, expected) = sparse_target();
    let before = fs::read(&path).unwrap();
    let header = Header::parse(&before).unwrap();
    let copy = (header.redundant_at.unwrap() + header.directory_sectors()) * 512;
    overwrite(&path, copy, &[0; 2048]);
    let opened = fixture.open(None).unwrap();
    assert!(opened.notices[0].contains("1 of its redundant grain tables"), "{:?}", opened.notices);
    opened.release().unwrap();
    assert!(fs::read(&path).unwrap() == before);
    assert_qemu_agrees(&fixture, &expected);
}

#[test]
fn sparse_files_whose_tables_can_not_be_trusted_are_refused_and_left_alone() {
    let (fixture, path, _) = sparse_target();
    let good = fs::read(&path).unwrap();
    let header = Header::parse(&good).unwrap();
    let table = (header.directory_at + header.directory_sectors()) * 512;
    let first = header.overhead as u32;
    for (at, bytes, expected) in [
        (56, u64::MAX.to_le_bytes().to_vec(), "its header is damaged"),
        (12, 1u64.to_le_bytes().to_vec(), "its header"),
        (header.directory_at * 512, vec![0; 4], "its table is missing"),
        (table + 4, (first + 1).to_le_bytes().to_vec(), "it lies across two places"),
        (table + 8, 5u32.to_le_bytes().to_vec(), "it lies among the tables"),
        (table + 8, first.to_le_bytes().to_vec(), "another grain lies there"),
        (table + 8, (u32::MAX - 127).to_le_bytes().to_vec(), "behind the end of the file"),
    ] {
        fs::write(&path, &good).unwrap();
        overwrite(&path, at, &bytes);
        let bad = fs::read(&path).unwrap();
        let refused = fixture.open(None).err().unwrap().to_string();
        assert!(refused.contains(expected) && refused.contains("restore"), "{refused}");
        assert!(fs::read(&path).unwrap() == bad, "{expected}: a refused file was changed");
    }
    fs::write(&path, &good[..good.len() - 65_536]).unwrap();
    let refused = fixture.open(None).err().unwrap().fault;
    let cut_off = matches!(&refused, TargetFault::Sparse { why: SparseError::Damage(Damage::Grain { .. }), .. });
    assert!(cut_off, "{refused}");
}

#[test]
fn a_sparse_snapshot_and_its_base_are_refused() {
    let (fixture, path, _) = sparse_target();
    let base = fixture.text("os.vmdk");
    succeeds("qemu-img", &["create", "-q", "-f", "vmdk", "-b", &base, "-F", "vmdk", &fixture.text("os-000001.vmdk")]);
    let refused = fixture.open(None).err().unwrap().fault;
    assert!(matches!(refused, TargetFault::HasSnapshot { .. }), "{refused}");
    fs::copy(fixture.path("os-000001.vmdk"), path).unwrap();
    fs::remove_file(fixture.path("os-000001.vmdk")).unwrap();
    let refused = fixture.open(None).err().unwrap().fault;
    assert!(matches!(refused, TargetFault::Unsupported { why: Unsupported::Snapshot { .. }, .. }), "{refused}");
}

#[test]
fn a_split_disk_whose_files_are_missing_short_or_named_twice_is_refused() {
    let fixture = Fixture::of(DiskKind::TwoGbMaxExtentFlat);
    drop(fixture.open(Some(3 << 30)).unwrap());
    let text = fs::read_to_string(fixture.path("os.vmdk")).unwrap();
    fs::write(fixture.path("os.vmdk"), text.replace("f002", "f001")).unwrap();
    let refused = fixture.open(None).err().unwrap().fault;
    assert!(matches!(refused, TargetFault::ExtentTwice(_)), "{refused}");
    fs::write(fixture.path("os.vmdk"), &text).unwrap();
    File::options().write(true).open(fixture.path("os-f002.vmdk")).unwrap().set_len(512).unwrap();
    let refused = fixture.open(None).err().unwrap().fault;
    assert!(matches!(refused, TargetFault::ShortExtent { size: 512, .. }), "{refused}");
    fs::remove_file(fixture.path("os-f002.vmdk")).unwrap();
    let refused = fixture.open(None).err().unwrap().fault;
    assert!(matches!(refused, TargetFault::NoExtent(_)), "{refused}");
}

#[test]
fn each_file_of_a_split_disk_is_locked() {
    let fixture = Fixture::of(DiskKind::TwoGbMaxExtentFlat);
    let opened = fixture.open(Some(3 << 30)).unwrap();
    for name in ["os-f001.vmdk", "os-f002.vmdk"] {
        assert!(fixture.refusal_of_a_write(name, "raw").unwrap().contains("lock"), "{name}");
    }
    opened.release().unwrap();
    assert_eq!(fixture.refusal_of_a_write("os-f002.vmdk", "raw"), None);
}

#[test]
fn disks_that_a_kind_can_not_hold_are_not_made() {
    for kind in [DiskKind::TwoGbMaxExtentFlat, DiskKind::MonolithicSparse] {
        let fixture = Fixture::of(kind);
        let refused = fixture.open(Some(3 << 40)).err().unwrap().to_string();
        assert!(refused.contains("it ends at about 2 TiB"), "{refused}");
        assert!(!fixture.path("os.vmdk").exists());
    }
}
