//! Block files on a real file system: opening, unaligned transfers, holes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use blockio::{Access, BlockFile, LockRole, Run};
use proptest::prelude::*;

fn file_of(folder: &Path, size: u64) -> PathBuf {
    let path = folder.join(format!("file-{size}"));
    fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// A folder on a file system in memory, where there are no extents to zero and few rules.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

#[test]
fn a_created_file_is_sparse_private_and_never_replaces_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new");
    let file = BlockFile::create(&path, 1 << 30).unwrap();
    assert_eq!((file.size(), file.path()), (1 << 30, path.as_path()));
    assert!(!file.is_block_device());
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.blocks(), meta.mode() & 0o7777), (0, 0o600));
    let error = BlockFile::create(&path, 512).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 30);
    assert!(BlockFile::create(&folder.path().join("odd"), 1000).is_err());
    assert!(!folder.path().join("odd").exists());
}

#[test]
fn what_is_no_disk_is_refused_with_its_path_and_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let odd = file_of(folder.path(), 1000);
    let fifo = folder.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for (path, reason) in [
        (odd.as_path(), "no multiple of 512; extend it to one of 1024"),
        (fifo.as_path(), "neither a regular file nor a block device"),
        (folder.path(), "neither a regular file nor a block device"),
        (Path::new("/dev/null"), "neither a regular file nor a block device"),
        (Path::new("/no/such/file"), "check the path"),
    ] {
        let error = BlockFile::open(path, Access::ReadWrite).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(&path.display().to_string()), "{error}");
    }
}

#[test]
fn a_text_of_any_size_is_locked_and_changed_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    fs::write(&path, "CID=12345678\n").unwrap();
    let text = BlockFile::open_text(&path, Access::ReadWrite).unwrap();
    text.lock(LockRole::TargetDescriptor).unwrap();
    let second = BlockFile::open_text(&path, Access::ReadWrite).unwrap();
    assert!(second.lock(LockRole::TargetDescriptor).unwrap_err().is_held());
    text.write_all_at(b"9abc", 4).unwrap();
    text.sync().unwrap();
    assert!(text.write_all_at(b"longer", 10).is_err(), "a text keeps its size");
    let mut read = [0; 13];
    text.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"CID=9abc5678\n");
    assert!(BlockFile::open_text(folder.path(), Access::ReadOnly).is_err());
}

#[test]
fn a_size_that_direct_io_cannot_address_is_buffered() {
    let folder = tempfile::tempdir().unwrap();
    let direct = BlockFile::create(&folder.path().join("direct"), 1 << 20).unwrap();
    assert!(direct.is_direct(), "the file system of the tests is to have direct I/O");
    let align = u64::from(direct.alignment());
    if align > 512 {
        let file = BlockFile::create(&folder.path().join("odd"), align + 512).unwrap();
        assert!(!file.is_direct());
        assert_eq!(file.alignment(), 512);
        file.write_all_at(&[1; 512], align).unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().len(), align + 512);
    }
}

#[test]
fn nothing_is_read_or_written_beyond_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = BlockFile::create(&folder.path().join("f"), 8192).unwrap();
    for (offset, len) in [(8192, 1), (8000, 193), (u64::MAX, 2), (1 << 63, 1)] {
        let mut buf = vec![0; len];
        let error = file.read_exact_at(&mut buf, offset).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert_eq!(error.offset, Some(offset));
        assert!(file.write_all_at(&buf, offset).is_err());
        assert!(file.punch_hole(offset, len as u64).is_err());
        assert!(file.zero_range(offset, len as u64).is_err());
        assert!(file.allocated(offset, len as u64).is_err());
    }
    assert_eq!(fs::metadata(file.path()).unwrap().len(), 8192);
    file.read_exact_at(&mut [], 8192).unwrap();
    file.write_all_at(&[], 8192).unwrap();
}

#[test]
fn the_allocation_tells_data_from_holes() {
    let folder = tempfile::tempdir().unwrap();
    let file = BlockFile::create(&folder.path().join("f"), 16 << 20).unwrap();
    let hole = |offset, len| Run { offset, len, is_data: false };
    let data = |offset, len| Run { offset, len, is_data: true };
    assert_eq!(file.allocated(0, 16 << 20).unwrap(), [hole(0, 16 << 20)]);
    file.write_all_at(&vec![1; 2 << 20], 4 << 20).unwrap();
    assert_eq!(
        file.allocated(0, 16 << 20).unwrap(),
        [hole(0, 4 << 20), data(4 << 20, 2 << 20), hole(6 << 20, 10 << 20)]
    );
    assert_eq!(file.allocated(5 << 20, 4096).unwrap(), [data(5 << 20, 4096)]);
    file.punch_hole(4 << 20, 1 << 20).unwrap();
    assert_eq!(
        file.allocated(3 << 20, 4 << 20).unwrap(),
        [hole(3 << 20, 2 << 20), data(5 << 20, 1 << 20), hole(6 << 20, 1 << 20)]
    );
    assert!(file.allocated(0, 0).unwrap().is_empty());
    assert!(file.is_hole(3 << 20, 2 << 20).unwrap());
    assert!(!file.is_hole(3 << 20, (2 << 20) + 4096).unwrap());
    assert!(!file.is_hole(5 << 20, 4096).unwrap());
}

#[test]
fn a_map_of_very_many_runs_stops_early_and_can_be_continued() {
    let folder = in_memory();
    let size = 8192 * 5000;
    let file = BlockFile::create(&folder.path().join("f"), size).unwrap();
    for pair in 0..5000 {
        file.write_all_at(&[1; 4096], pair * 8192).unwrap();
    }
    let mut at = 0;
    let mut data_bytes = 0;
    let mut looks = 0;
    while at < size {
        let runs = file.allocated(at, size - at).unwrap();
        assert!(runs.len() <= 4096 && !runs.is_empty());
        for run in runs {
            assert_eq!(run.offset, at);
            at += run.len;
            data_bytes += if run.is_data { run.len } else { 0 };
        }
        looks += 1;
    }
    assert_eq!((at, data_bytes, looks), (size, 5000 * 4096, 3));
}

#[test]
fn zeroing_works_where_the_file_system_cannot() {
    let folder = in_memory();
    let file = BlockFile::create(&folder.path().join("f"), 4 << 20).unwrap();
    file.write_all_at(&vec![9; 4 << 20], 0).unwrap();
    file.zero_range(1000, (3 << 20) + 7).unwrap();
    let mut content = vec![1; 4 << 20];
    file.read_exact_at(&mut content, 0).unwrap();
    let end = 1000 + (3 << 20) + 7;
    assert!(content[1000..end].iter().all(|&byte| byte == 0));
    assert!(content[..1000].iter().chain(&content[end..]).all(|&byte| byte == 9));
}

#[test]
fn unaligned_writers_of_one_block_do_not_undo_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = BlockFile::create(&folder.path().join("f"), 64 << 10).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let file = &file;
            scope.spawn(move || {
                for piece in 0..200 {
                    file.write_all_at(&[writer as u8 + 1; 50], piece * 200 + writer * 50).unwrap();
                }
            });
        }
    });
    let mut content = vec![0; 40_000];
    file.read_exact_at(&mut content, 0).unwrap();
    for (index, byte) in content.iter().enumerate() {
        assert_eq!(usize::from(*byte), index / 50 % 4 + 1, "byte {index}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Read(u64, usize),
    Punch(u64, u64),
    Zero(u64, u64),
}

#[test]
fn a_file_that_is_resized_reads_zeroes_where_it_grew_and_forgets_what_was_cut_off() {
    for folder in [tempfile::tempdir().unwrap(), in_memory()] {
        let file = BlockFile::create(&folder.path().join("f"), 8192).unwrap();
        file.write_all_at(&[7; 8192], 0).unwrap();
        file.resize(4096).unwrap();
        assert!(file.write_all_at(&[1; 512], 4096).is_err(), "beyond the end");
        file.resize(64 << 10).unwrap();
        file.write_all_at(&[9; 512], (64 << 10) - 512).unwrap();
        let mut content = vec![1; 64 << 10];
        file.read_exact_at(&mut content, 0).unwrap();
        assert!(content[..4096].iter().all(|&b| b == 7) && content[4096..(64 << 10) - 512].iter().all(|&b| b == 0));
        assert!(file.resize(513).is_err(), "no whole sectors");
        assert_eq!((file.size(), fs::metadata(file.path()).unwrap().len()), (64 << 10, 64 << 10));
    }
}

const SIZE: u64 = 3 << 20;

fn step() -> impl Strategy<Value = Step> {
    let place = prop_oneof![0..SIZE, (0..SIZE / 512).prop_map(|sector| sector * 512)];
    let len = prop_oneof![0..5000u64, (0..20u64).prop_map(|n| n * 512), 0..SIZE];
    (0..4, place, len, any::<u8>()).prop_map(|(kind, offset, len, byte)| {
        let len = len.min(SIZE - offset);
        match kind {
            0 => Step::Write(offset, len as usize, byte),
            1 => Step::Read(offset, len as usize),
            2 => Step::Punch(offset, len),
            _ => Step::Zero(offset, len),
        }
    })
}

fn agrees_with_memory(folder: &Path, steps: Vec<Step>) {
    let path = folder.join("f");
    let file = BlockFile::create(&path, SIZE).unwrap();
    let mut model = vec![0; SIZE as usize];
    for step in steps {
        match step {
            Step::Write(offset, len, byte) => {
                file.write_all_at(&vec![byte; len], offset).unwrap();
                model[offset as usize..][..len].fill(byte);
            }
            Step::Read(offset, len) => {
                let mut buf = vec![0x55; len];
                file.read_exact_at(&mut buf, offset).unwrap();
                assert_eq!(buf, model[offset as usize..][..len]);
            }
            Step::Punch(offset, len) => {
                file.punch_hole(offset, len).unwrap();
                model[offset as usize..][..len as usize].fill(0);
            }
            Step::Zero(offset, len) => {
                file.zero_range(offset, len).unwrap();
                model[offset as usize..][..len as usize].fill(0);
            }
        }
    }
    file.sync().unwrap();
    assert_eq!(fs::read(&path).unwrap(), model);
    for run in file.allocated(0, SIZE).unwrap() {
        let content = &model[run.offset as usize..][..run.len as usize];
        assert!(run.is_data || content.iter().all(|&byte| byte == 0), "{run:?} hides data");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_offset_and_length_agrees_with_memory(steps in proptest::collection::vec(step(), 1..12)) {
        agrees_with_memory(tempfile::tempdir().unwrap().path(), steps.clone());
        agrees_with_memory(in_memory().path(), steps);
    }
}
