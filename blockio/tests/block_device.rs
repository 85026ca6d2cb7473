//! Block files on loop devices: needs root and losetup (util-linux).

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use blockio::{Access, AlignedBuf, BlockFile, Engine, EngineKind, Event, LockRole, Op};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

/// A loop device over a file of [`SIZE`] bytes, detached when dropped.
struct Loop {
    device: PathBuf,
    _folder: tempfile::TempDir,
}

impl Loop {
    fn new(sector: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backing = folder.path().join("backing");
        drop(BlockFile::create(&backing, SIZE).unwrap());
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector.to_string()])
            .arg(&backing)
            .output()
            .expect("these tests need losetup (util-linux)");
        assert!(output.status.success(), "these tests need root: {output:?}");
        let device = String::from_utf8(output.stdout).unwrap().trim().into();
        Self { device, _folder: folder }
    }

    fn open(&self) -> BlockFile {
        BlockFile::open(&self.device, Access::ReadWrite).unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.device).status();
        if !std::thread::panicking() {
            assert!(detached.unwrap().success());
        }
    }
}

fn content(file: &BlockFile) -> Vec<u8> {
    let mut bytes = vec![1; SIZE as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_device_that_is_held_is_waited_for_and_no_longer_than_asked() {
    let device = Loop::new(512);
    let held = device.open();
    let busy = BlockFile::open_within(&device.device, Access::ReadWrite, Duration::from_millis(100)).unwrap_err();
    assert_eq!(busy.kind(), std::io::ErrorKind::ResourceBusy, "{busy}");
    let last_write_lands = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(held);
    });
    BlockFile::open_within(&device.device, Access::ReadWrite, Duration::from_secs(10)).unwrap();
    last_write_lands.join().unwrap();
}

#[test]
fn size_and_alignment_are_those_of_the_device() {
    for sector in [512, 4096] {
        let device = Loop::new(sector);
        let file = device.open();
        assert!(file.is_block_device() && file.is_direct());
        assert_eq!((file.size(), file.alignment()), (SIZE, sector));
    }
}

#[test]
fn any_offset_is_written_punched_and_zeroed_on_either_sector_size() {
    for sector in [512, 4096] {
        let device = Loop::new(sector);
        let file = device.open();
        let mut model = vec![7; SIZE as usize];
        file.write_all_at(&model, 0).unwrap();
        for (offset, len) in [(0, 4096), (MIB, MIB), (700, 100), (5000, 9000), (SIZE - 512, 512)] {
            file.punch_hole(offset, len).unwrap();
            model[offset as usize..][..len as usize].fill(0);
            let offset = (offset + 3 * MIB) % (SIZE - len);
            file.zero_range(offset, len).unwrap();
            model[offset as usize..][..len as usize].fill(0);
        }
        for (offset, len) in [(513, 1), (8191, 2), (4 * MIB - 1, 2 << 20)] {
            file.write_all_at(&vec![9; len], offset).unwrap();
            model[offset as usize..][..len].fill(9);
        }
        file.sync().unwrap();
        assert!(content(&file) == model, "sector {sector}");
    }
}

#[test]
fn all_of_a_device_counts_as_data() {
    let device = Loop::new(512);
    let runs = device.open().allocated(MIB, MIB).unwrap();
    assert_eq!(runs.len(), 1);
    assert!(runs[0].is_data && (runs[0].offset, runs[0].len) == (MIB, MIB));
}

#[test]
fn a_device_is_opened_once_for_writing_and_locked_against_agents() {
    let device = Loop::new(512);
    let file = device.open();
    file.lock(LockRole::TargetExtent).unwrap();
    let error = BlockFile::open(&device.device, Access::ReadWrite).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    assert!(error.to_string().contains("unmount it"), "{error}");
    let reader = BlockFile::open(&device.device, Access::ReadOnly).unwrap();
    reader.read_exact_at(&mut [0; 512], 0).unwrap();
    let refused = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 4k"])
        .arg(&device.device)
        .output()
        .expect("these tests need qemu-io (qemu-utils)");
    assert!(!refused.status.success(), "{refused:?}");
}

#[test]
fn both_kinds_of_engine_work_on_a_device() {
    for kind in [EngineKind::Uring, EngineKind::Blocking] {
        for sector in [512, 4096] {
            let device = Loop::new(sector);
            let file = Arc::new(device.open());
            through_engine(&file, kind);
            let mut expected = vec![0; SIZE as usize];
            expected[..MIB as usize].fill(5);
            expected[8192..12288].fill(0);
            expected[65536..131_072].fill(0);
            assert!(content(&file) == expected, "{kind:?}, sector {sector}");
        }
    }
}

fn through_engine(file: &Arc<BlockFile>, kind: EngineKind) {
    let mut engine = Engine::new(kind, 8).unwrap();
    let mut finish = |ops: Vec<Op>| {
        for op in ops {
            engine.submit(1, op);
        }
        let mut events = Vec::new();
        while engine.in_flight() > 0 {
            engine.wait(Some(Duration::from_secs(30)), &mut events).unwrap();
            assert!(!events.is_empty(), "timed out");
            for event in events.drain(..) {
                let Event::Done { result, .. } = event else { panic!("{event:?}") };
                result.unwrap();
            }
        }
    };
    let mut data = AlignedBuf::zeroed(MIB as usize);
    data.fill(5);
    let clone = || Arc::clone(file);
    finish(vec![Op::Write { file: clone(), offset: 0, data: data.freeze() }]);
    finish(vec![
        Op::Punch { file: clone(), offset: 8192, len: 4096 },
        Op::Zero { file: clone(), offset: 65536, len: 65536 },
    ]);
    finish(vec![Op::Sync { file: clone() }]);
}
