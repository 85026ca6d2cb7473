//! Opening, creating, refusing and releasing targets in datastores and by path.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use blockio::{BufPool, EngineKind};
use bytes::Bytes;
use master_target::{
    target::{
        Datastore, DiskIo, FolderError, Opened, TargetError, TargetFault, TargetSpec, Thickness, open_or_create_within,
    },
    vmdk::{CreateError, Descriptor, DescriptorError, DiskKind, Fault, StampError, Unsupported, create, create_vmdk},
};

const MIB: u64 = 1 << 20;

/// A datastore `ds1` in a temporary folder.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("ds1")).unwrap();
        Fixture { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    fn open(&self, spec: &str, source_size: Option<u64>) -> Result<Opened, TargetError> {
        let datastores = [Datastore { name: "ds1".to_owned(), path: self.path("ds1") }];
        let root = self.folder.path().canonicalize().unwrap();
        let spec = TargetSpec::parse(&spec.replace("ROOT", root.to_str().unwrap())).unwrap();
        open_or_create_within(&spec, &datastores, source_size, DiskKind::Vmfs, Duration::ZERO)
    }

    fn refused(&self, spec: &str, source_size: Option<u64>) -> TargetFault {
        let error = self.open(spec, source_size).err().unwrap();
        assert!(error.to_string().starts_with("target "), "{error}");
        error.fault
    }

    /// Puts a descriptor with this kind and extent line into the datastore as `os.vmdk`.
    fn describe(&self, create_type: &str, extent: &str) -> PathBuf {
        let path = self.path("ds1/os.vmdk");
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n{extent}\n"
        );
        fs::write(&path, text).unwrap();
        path
    }
}

fn write(opened: &Opened, offset: u64, data: &[u8]) {
    let mut io = DiskIo::new(EngineKind::Auto, 8, BufPool::new(1 << 20)).unwrap();
    io.write_many(&*opened.disk, vec![(offset, Bytes::copy_from_slice(data))]).unwrap();
    opened.disk.sync().unwrap();
}

fn cid_on_disk(path: &Path) -> String {
    Descriptor::parse(&fs::read(path).unwrap()).unwrap().cid.to_string()
}

#[test]
fn a_missing_vmdk_is_created_with_its_folders_and_its_sources_size() {
    let fixture = Fixture::new();
    let error = fixture.open("[ds1] web/disks/os.vmdk", None).err().unwrap();
    assert!(error.is_missing(), "{error}");
    assert!(!fixture.path("ds1/web").exists());

    let opened = fixture.open("[ds1] web/disks/os.vmdk", Some(8 * MIB)).unwrap();
    assert!(opened.created);
    assert_eq!((opened.disk.size(), opened.disk.thickness()), (8 * MIB, Thickness::Thin));
    assert_eq!(opened.disk.describe(), "[ds1] web/disks/os.vmdk");
    assert!(opened.notices.is_empty());
    let text = fs::read_to_string(fixture.path("ds1/web/disks/os.vmdk")).unwrap();
    assert!(text.contains("createType=\"vmfs\""), "{text}");
    write(&opened, 512, &[7; 1024]);
    let flat = fs::read(fixture.path("ds1/web/disks/os-flat.vmdk")).unwrap();
    assert_eq!(flat.len() as u64, 8 * MIB);
    assert!(flat[..512].iter().chain(&flat[1536..]).all(|&b| b == 0) && flat[512..1536].iter().all(|&b| b == 7));
}

#[test]
fn what_was_created_is_opened_again_with_its_content() {
    let fixture = Fixture::new();
    let first = fixture.open("[ds1] os.vmdk", Some(4 * MIB)).unwrap();
    write(&first, MIB, &[9; 4096]);
    let left = first.release().unwrap();
    let second = fixture.open("[ds1] os.vmdk", None).unwrap();
    assert!(!second.created);
    assert_eq!(second.identity(), left);
    let mut io = DiskIo::new(EngineKind::Blocking, 2, BufPool::new(1 << 20)).unwrap();
    assert_eq!(&io.read_many(&*second.disk, &[(MIB, 4096)]).unwrap()[0][..], &[9; 4096]);
}

#[test]
fn a_flat_extent_that_begins_inside_its_file_is_written_there() {
    let fixture = Fixture::new();
    fs::write(fixture.path("ds1/data.bin"), vec![0xee; MIB as usize]).unwrap();
    fixture.describe("monolithicFlat", "RW 8 FLAT \"data.bin\" 63");
    let opened = fixture.open("[ds1] os.vmdk", Some(4096)).unwrap();
    assert_eq!(opened.disk.thickness(), Thickness::Thick);
    write(&opened, 0, &[1; 4096]);
    let data = fs::read(fixture.path("ds1/data.bin")).unwrap();
    let start = 63 * 512;
    assert!(data[start..start + 4096].iter().all(|&b| b == 1));
    assert!(data[..start].iter().chain(&data[start + 4096..]).all(|&b| b == 0xee));
}

#[test]
fn an_open_target_can_not_be_opened_again_until_it_is_released() {
    let fixture = Fixture::new();
    for spec in ["[ds1] os.vmdk", "ROOT/os.raw"] {
        let opened = fixture.open(spec, Some(MIB)).unwrap();
        let refused = fixture.refused(spec, Some(MIB));
        assert!(matches!(&refused, TargetFault::Lock(_) | TargetFault::Stamp(StampError::Lock(_))), "{refused}");
        assert!(refused.to_string().contains("in use"), "{refused}");
        let disk = opened.disk.clone();
        opened.release().unwrap();
        fixture.open(spec, Some(MIB)).unwrap();
        drop(disk);
    }
}

#[test]
fn two_descriptors_of_one_data_file_can_not_both_be_open() {
    let fixture = Fixture::new();
    let _opened = fixture.open("[ds1] os.vmdk", Some(MIB)).unwrap();
    let text = fs::read(fixture.path("ds1/os.vmdk")).unwrap();
    fs::write(fixture.path("ds1/copy.vmdk"), text).unwrap();
    assert!(matches!(fixture.refused("[ds1] copy.vmdk", None), TargetFault::Lock(_)));
}

#[test]
fn a_new_content_id_is_on_disk_when_stamping_returns() {
    let fixture = Fixture::new();
    let mut opened = fixture.open("[ds1] os.vmdk", Some(MIB)).unwrap();
    let path = fixture.path("ds1/os.vmdk");
    let (found, inode) = (opened.cid().unwrap(), opened.identity().inode);
    assert_eq!(cid_on_disk(&path), found.to_string());
    let stamped = opened.stamp_cid().unwrap().unwrap();
    assert_ne!(stamped, found);
    assert_eq!(cid_on_disk(&path), stamped.to_string());
    let drawn = opened.draw_cid().unwrap().unwrap();
    assert_eq!(cid_on_disk(&path), stamped.to_string(), "drawing changes nothing");
    opened.stamp(drawn).unwrap();
    assert_eq!(cid_on_disk(&path), drawn.to_string());
    let left = opened.release().unwrap();
    assert_eq!((left.cid, left.inode), (Some(drawn), inode));
}

#[test]
fn raw_files_have_no_content_id_and_are_told_by_their_inode() {
    let fixture = Fixture::new();
    let mut opened = fixture.open("ROOT/os.raw", Some(MIB)).unwrap();
    assert!(opened.created);
    assert_eq!((opened.cid(), opened.stamp_cid().unwrap()), (None, None));
    let left = opened.release().unwrap();
    assert_eq!(fixture.open("ROOT/os.raw", None).unwrap().identity(), left);
    // The old file stays, so that the new one can't be given its inode.
    fs::hard_link(fixture.path("os.raw"), fixture.path("old.raw")).unwrap();
    fs::remove_file(fixture.path("os.raw")).unwrap();
    assert_ne!(fixture.open("ROOT/os.raw", Some(MIB)).unwrap().identity(), left);
}

#[test]
fn a_target_smaller_than_its_source_is_refused_and_a_larger_one_is_remarked_on() {
    let fixture = Fixture::new();
    for spec in ["[ds1] os.vmdk", "ROOT/os.raw"] {
        drop(fixture.open(spec, Some(MIB)).unwrap());
        let refused = fixture.refused(spec, Some(MIB + 512));
        assert!(
            matches!(refused, TargetFault::TooSmall { size: MIB, source_size } if source_size == MIB + 512),
            "{refused}"
        );
        let larger = fixture.open(spec, Some(MIB - 512)).unwrap();
        assert_eq!(larger.notices.len(), 1);
        assert!(larger.notices[0].contains("512 more than its source"), "{:?}", larger.notices);
    }
}

#[test]
fn a_disk_with_change_tracking_is_remarked_on() {
    let fixture = Fixture::new();
    fs::write(fixture.path("ds1/os-flat.vmdk"), [0; 4096]).unwrap();
    fixture.describe("vmfs", "RW 8 VMFS \"os-flat.vmdk\"\nchangeTrackPath=\"os-ctk.vmdk\"");
    let opened = fixture.open("[ds1] os.vmdk", None).unwrap();
    assert!(opened.notices[0].contains("os-ctk.vmdk"), "{:?}", opened.notices);
}

#[test]
fn an_empty_raw_file_that_a_crash_left_is_created_anew() {
    let fixture = Fixture::new();
    fs::write(fixture.path("os.raw"), "").unwrap();
    assert!(fixture.open("ROOT/os.raw", None).err().unwrap().is_missing());
    let opened = fixture.open("ROOT/os.raw", Some(MIB)).unwrap();
    assert_eq!((opened.created, opened.disk.size()), (true, MIB));
}

#[test]
fn an_unknown_datastore_is_refused_and_the_known_ones_named() {
    let fixture = Fixture::new();
    let refused = fixture.refused("[ds2] os.vmdk", Some(MIB)).to_string();
    assert!(refused.contains("\"ds2\"") && refused.contains("ds1"), "{refused}");
}

#[test]
fn nothing_outside_the_datastore_is_opened_or_created() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("outside")).unwrap();
    create_vmdk(&fixture.path("outside/os.vmdk"), MIB).unwrap();
    let before = fs::read(fixture.path("outside/os.vmdk")).unwrap();
    symlink(fixture.path("outside"), fixture.path("ds1/web")).unwrap();
    for spec in ["[ds1] web/os.vmdk", "[ds1] web/new.vmdk"] {
        let refused = fixture.refused(spec, Some(MIB));
        assert!(matches!(&refused, TargetFault::Folder(FolderError::LeadsOut { .. })), "{refused}");
    }
    symlink(fixture.path("outside/os-flat.vmdk"), fixture.path("ds1/os-flat.vmdk")).unwrap();
    fixture.describe("vmfs", "RW 8 VMFS \"os-flat.vmdk\"");
    let refused = fixture.refused("[ds1] os.vmdk", None);
    assert!(matches!(&refused, TargetFault::Folder(FolderError::LeadsOut { .. })), "{refused}");
    for name in ["../outside/os-flat.vmdk", "/etc/hostname"] {
        fixture.describe("monolithicFlat", &format!("RW 8 FLAT \"{name}\" 0"));
        let refused = fixture.refused("[ds1] os.vmdk", None);
        let TargetFault::Stamp(StampError::Descriptor { error, .. }) = &refused else { panic!("{refused}") };
        assert!(matches!(error, DescriptorError { line: 6, fault: Fault::ExtentName { .. } }), "{error}");
    }
    assert_eq!(fs::read(fixture.path("outside/os.vmdk")).unwrap(), before);
    assert_eq!(fs::read_dir(fixture.path("outside")).unwrap().count(), 2);
}

#[test]
fn a_data_file_that_is_missing_short_the_descriptor_itself_or_no_file_is_refused() {
    let fixture = Fixture::new();
    fixture.describe("vmfs", "RW 8 VMFS \"os-flat.vmdk\"");
    assert!(matches!(fixture.refused("[ds1] os.vmdk", None), TargetFault::NoExtent(_)));
    fs::write(fixture.path("ds1/os-flat.vmdk"), [0; 4095]).unwrap();
    let short = fixture.refused("[ds1] os.vmdk", None);
    assert!(matches!(short, TargetFault::ShortExtent { size: 4095, needed: 4096, .. }), "{short}");
    fs::remove_file(fixture.path("ds1/os-flat.vmdk")).unwrap();
    fs::create_dir(fixture.path("ds1/os-flat.vmdk")).unwrap();
    assert!(matches!(fixture.refused("[ds1] os.vmdk", None), TargetFault::NotADisk(_)));
    fixture.describe("vmfs", "RW 1 VMFS \"os.vmdk\"");
    assert!(matches!(fixture.refused("[ds1] os.vmdk", None), TargetFault::SelfExtent(_)));
}

#[test]
fn a_disk_with_a_snapshot_beside_it_is_refused() {
    let fixture = Fixture::new();
    drop(fixture.open("[ds1] os.vmdk", Some(MIB)).unwrap());
    let snapshot = "# Disk DescriptorFile\nversion=1\nCID=2\nparentCID=1\ncreateType=\"vmfsSparse\"\n\
        parentFileNameHint=\"os.vmdk\"\nRW 2048 VMFSSPARSE \"os-000001-delta.vmdk\"\n";
    fs::write(fixture.path("ds1/os-000001.vmdk"), snapshot).unwrap();
    let refused = fixture.refused("[ds1] os.vmdk", None);
    assert!(matches!(refused, TargetFault::HasSnapshot { .. }), "{refused}");
    let of_snapshot = fixture.refused("[ds1] os-000001.vmdk", None);
    assert!(matches!(of_snapshot, TargetFault::Unsupported { why: Unsupported::Snapshot { .. }, .. }));
}

#[test]
fn files_that_are_no_descriptor_are_refused_by_what_they_are() {
    let fixture = Fixture::new();
    let path = fixture.path("ds1/os.vmdk");
    for (head, what) in [(&b"QFI\xfb"[..], "qcow2"), (b"vhdxfile", "VHDX"), (b"", "plain data")] {
        let mut bytes = head.to_vec();
        bytes.resize(100_000, 0);
        fs::write(&path, bytes).unwrap();
        let refused = fixture.refused("[ds1] os.vmdk", None);
        assert!(matches!(&refused, TargetFault::NotAVmdk { what: w, .. } if w.contains(what)), "{refused}");
    }
    fs::write(&path, "").unwrap();
    let refused = fixture.refused("[ds1] os.vmdk", Some(MIB));
    assert!(refused.to_string().contains("empty"), "{refused}");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(fixture.refused("[ds1] os.vmdk", None), TargetFault::NotADisk(_)));
}

#[test]
fn a_data_file_left_without_its_descriptor_is_not_overwritten() {
    let fixture = Fixture::new();
    create(&fixture.path("ds1/os.vmdk"), MIB, DiskKind::Vmfs).unwrap();
    fs::write(fixture.path("ds1/os-flat.vmdk"), vec![5; MIB as usize]).unwrap();
    fs::remove_file(fixture.path("ds1/os.vmdk")).unwrap();
    let refused = fixture.refused("[ds1] os.vmdk", Some(MIB));
    assert!(matches!(refused, TargetFault::Create(CreateError::Exists(_))), "{refused}");
    assert_eq!(fs::read(fixture.path("ds1/os-flat.vmdk")).unwrap(), vec![5; MIB as usize]);
}

#[test]
fn paths_that_hold_no_raw_disk_are_refused_and_devices_are_never_created() {
    let fixture = Fixture::new();
    let refused = |spec: &str| fixture.refused(spec, Some(MIB));
    assert!(matches!(refused("/dev/backhaul-no-such-device"), TargetFault::NoDevice(_)));
    assert!(!Path::new("/dev/backhaul-no-such-device").exists());
    assert!(matches!(refused("/dev/null"), TargetFault::NotADisk(_)));
    assert!(matches!(refused("ROOT/ds1"), TargetFault::NotADisk(_)));
    assert!(matches!(refused("ROOT/missing/os.raw"), TargetFault::NoFolder(_)));
    symlink("/nonexistent/os.raw", fixture.path("link.raw")).unwrap();
    assert!(matches!(refused("ROOT/link.raw"), TargetFault::Read { .. }));
    assert!(matches!(fixture.refused("ROOT/os.raw", None), TargetFault::Missing(_)));
    fs::write(fixture.path("odd.raw"), [0; 1000]).unwrap();
    assert!(refused("ROOT/odd.raw").to_string().contains("multiple of 512"));
}
