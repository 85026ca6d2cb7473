//! Block devices as targets, on loop devices.
#![allow(clippy::unwrap_used)]

mod loop_device;

use std::{fs::File, os::unix::fs::OpenOptionsExt as _, time::Duration};

use blockio::{BufPool, EngineKind};
use bytes::Bytes;
use loop_device::LoopDevice;
use master_target::target::{
    DiskIo, Opened, TargetError, TargetFault, TargetSpec, Thickness, open_or_create, open_or_create_within,
};
use master_target::vmdk::DiskKind;

const MIB: u64 = 1 << 20;
/// O_EXCL: of a block device, a claim that mounts and other claims respect.
const EXCLUSIVE: i32 = 0o200;

fn spec(device: &LoopDevice) -> TargetSpec {
    TargetSpec::parse(device.path.to_str().unwrap()).unwrap()
}

fn open(device: &LoopDevice, source_size: u64) -> Result<Opened, TargetError> {
    open_or_create_within(&spec(device), &[], Some(source_size), DiskKind::Vmfs, Duration::ZERO)
}

#[test]
fn a_device_is_a_thick_disk_without_a_content_id() {
    let device = LoopDevice::new(MIB);
    let mut opened = open(&device, MIB).unwrap();
    assert_eq!((opened.disk.size(), opened.created, opened.stamp_cid().unwrap()), (MIB, false, None));
    assert_eq!(opened.disk.thickness(), Thickness::Thick);
    let mut io = DiskIo::new(EngineKind::Auto, 8, BufPool::new(1 << 20)).unwrap();
    io.write_many(&*opened.disk, vec![(512, Bytes::from(vec![3; 8192]))]).unwrap();
    io.zero_many(&*opened.disk, &[(1024, 4096)]).unwrap();
    opened.disk.sync().unwrap();
    let left = opened.release().unwrap();
    let again = open(&device, MIB).unwrap();
    assert_eq!(again.identity(), left);
    let read = io.read_many(&*again.disk, &[(0, 16384)]).unwrap();
    let expected: Vec<u8> = [(512, 0), (512, 3), (4096, 0), (3584, 3), (7680, 0)]
        .into_iter()
        .flat_map(|(len, byte)| std::iter::repeat_n(byte, len))
        .collect();
    assert!(read[0][..] == expected[..]);
}

#[test]
fn a_device_in_use_is_refused_and_an_open_one_can_not_be_claimed() {
    let device = LoopDevice::new(MIB);
    let claim = || File::options().read(true).custom_flags(EXCLUSIVE).open(&device.path);
    let claimed = claim().unwrap();
    let refused = open(&device, MIB).err().unwrap();
    assert!(matches!(refused.fault, TargetFault::DeviceBusy(_)), "{refused}");
    drop(claimed);
    let opened = open(&device, MIB).unwrap();
    assert!(claim().is_err(), "a mount would go through");
    assert!(matches!(open(&device, MIB).err().unwrap().fault, TargetFault::DeviceBusy(_)));
    drop(opened);
    claim().unwrap();
}

#[test]
fn an_opening_waits_for_a_claim_that_is_given_up() {
    let device = LoopDevice::new(MIB);
    let opened = open(&device, MIB).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| open_or_create(&spec(&device), &[], Some(MIB), DiskKind::Vmfs).map(drop));
        drop(opened);
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn a_device_smaller_than_its_source_is_refused() {
    let device = LoopDevice::new(MIB);
    let refused = open(&device, 2 * MIB).err().unwrap();
    assert!(matches!(refused.fault, TargetFault::TooSmall { size: MIB, .. }), "{refused}");
}
