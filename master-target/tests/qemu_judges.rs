//! QEMU's tools judge the VMDKs: what is made is what they expect, what they make is opened, and an open target is left
//! alone by them.
#![allow(clippy::unwrap_used)]

mod qemu;

use std::{fs, path::Path, process::Command};

use bytes::Bytes;
use master_target::{
    target::TargetFault,
    vmdk::{Descriptor, DiskKind, StampError, Unsupported, create},
};
use qemu::{Fixture, io, succeeds};

const SIZE: u64 = 8 << 20;

fn cid(path: &Path) -> u32 {
    Descriptor::parse(&fs::read(path).unwrap()).unwrap().cid.value()
}

#[test]
fn qemu_finds_a_new_vmdk_to_be_a_sound_empty_disk_of_its_size() {
    for (kind, create_type) in [(DiskKind::Vmfs, "vmfs"), (DiskKind::MonolithicFlat, "monolithicFlat")] {
        for size in [512, SIZE, 3 << 30] {
            let fixture = Fixture::of(DiskKind::Vmfs);
            create(&fixture.path("os.vmdk"), size, kind).unwrap();
            let path = fixture.text("os.vmdk");
            let info = succeeds("qemu-img", &["info", "--output=json", &path]);
            assert!(info.contains(&format!("\"virtual-size\": {size}")), "{info}");
            assert!(info.contains("\"format\": \"vmdk\"") && info.contains(create_type), "{info}");
            assert!(info.contains(&format!("\"cid\": {}", cid(&fixture.path("os.vmdk")))), "{info}");
            succeeds("qemu-img", &["check", "-f", "vmdk", &path]);
            let map = succeeds("qemu-img", &["map", "-f", "vmdk", "--output=json", &path]);
            assert!(map.contains("os-flat.vmdk") || map.contains("\"zero\": true"), "{map}");
            assert!(!map.contains("\"zero\": false"), "{map}");
        }
    }
}

#[test]
fn qemu_reads_through_the_vmdk_what_was_written_to_the_target() {
    let fixture = Fixture::of(DiskKind::Vmfs);
    let opened = fixture.open(Some(SIZE)).unwrap();
    let mut expected = vec![0; SIZE as usize];
    let mut writes = Vec::new();
    for (offset, len) in [(0, 512), (4096 + 512, 9 << 10), (SIZE - 512, 512), (3 << 20, 1 << 20)] {
        expected[offset as usize..][..len].fill(len as u8 ^ 0x5a);
        writes.push((offset, Bytes::copy_from_slice(&expected[offset as usize..][..len])));
    }
    io().write_many(&*opened.disk, writes).unwrap();
    opened.disk.sync().unwrap();
    fs::write(fixture.path("expected.raw"), &expected).unwrap();
    // Readers are let in while the target is locked.
    let (expected, disk) = (fixture.text("expected.raw"), fixture.text("os.vmdk"));
    succeeds("qemu-img", &["compare", "-f", "raw", "-F", "vmdk", &expected, &disk]);
    succeeds("qemu-img", &["info", &disk]);
    succeeds("qemu-img", &["check", "-f", "vmdk", &disk]);
    opened.release().unwrap();
    succeeds("qemu-img", &["compare", "-f", "raw", "-F", "vmdk", &expected, &disk]);
}

#[test]
fn qemu_can_not_write_an_open_target_and_can_after_its_release() {
    let fixture = Fixture::of(DiskKind::Vmfs);
    let mut opened = fixture.open(Some(SIZE)).unwrap();
    for (image, format) in [("os.vmdk", "vmdk"), ("os.vmdk", "raw"), ("os-flat.vmdk", "raw")] {
        let refusal = fixture.refusal_of_a_write(image, format).expect("the write went through");
        assert!(refusal.contains("lock"), "{refusal}");
    }
    opened.stamp_cid().unwrap();
    assert!(fixture.refusal_of_a_write("os.vmdk", "vmdk").is_some(), "stamping keeps the lock");
    opened.release().unwrap();
    assert_eq!(fixture.refusal_of_a_write("os.vmdk", "vmdk"), None);
}

#[test]
fn a_write_by_qemu_between_two_openings_shows_in_the_content_id() {
    let fixture = Fixture::of(DiskKind::Vmfs);
    let mut opened = fixture.open(Some(SIZE)).unwrap();
    opened.stamp_cid().unwrap();
    let left = opened.release().unwrap();
    assert_eq!(fixture.open(None).unwrap().identity(), left);
    assert_eq!(fixture.refusal_of_a_write("os.vmdk", "vmdk"), None);
    let found = fixture.open(None).unwrap().identity();
    assert_ne!(found.cid, left.cid);
    assert_eq!((found.size, found.inode), (left.size, left.inode));
}

#[test]
fn a_target_is_not_opened_while_qemu_has_it_open_for_writing() {
    let fixture = Fixture::of(DiskKind::Vmfs);
    drop(fixture.open(Some(SIZE)).unwrap());
    for image in ["os.vmdk", "os-flat.vmdk"] {
        let format = if image == "os.vmdk" { "vmdk" } else { "raw" };
        let writer = Writer::start(&fixture.path(image), format);
        let fault = fixture.open(None).err().unwrap().fault;
        assert!(matches!(fault, TargetFault::Lock(_) | TargetFault::Stamp(StampError::Lock(_))), "{fault}");
        drop(writer);
        drop(fixture.open(None).unwrap());
    }
}

/// A `qemu-io` that holds an image open for writing until it is dropped.
struct Writer(std::process::Child);

impl Writer {
    fn start(image: &Path, format: &str) -> Self {
        use std::io::{BufRead as _, BufReader, Write as _};
        let mut command = Command::new("qemu-io");
        command.args(["-f", format]).arg(image);
        let mut child =
            command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        // Its answer to a command shows that the image is open.
        child.stdin.as_mut().unwrap().write_all(b"write 0 512\n").unwrap();
        let mut answers = BufReader::new(child.stdout.as_mut().unwrap());
        let mut answer = String::new();
        while !answer.contains("wrote 512/512") {
            assert_ne!(answers.read_line(&mut answer).unwrap(), 0, "qemu-io ended: {answer}");
        }
        Writer(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn flat_vmdks_made_by_qemu_are_targets() {
    // Some of QEMU's content ids have fewer than eight digits; all widths must be stamped in place.
    for _ in 0..8 {
        let fixture = Fixture::of(DiskKind::Vmfs);
        let path = fixture.text("os.vmdk");
        succeeds("qemu-img", &["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", &path, "8M"]);
        let mut opened = fixture.open(Some(SIZE)).unwrap();
        assert!(!opened.created && opened.notices.is_empty());
        let before = fs::read(fixture.path("os.vmdk")).unwrap();
        let stamped = opened.stamp_cid().unwrap().unwrap();
        assert_eq!(cid(&fixture.path("os.vmdk")), stamped.value());
        assert_eq!(fs::read(fixture.path("os.vmdk")).unwrap().len(), before.len());
        let info = succeeds("qemu-img", &["info", "--output=json", &path]);
        assert!(info.contains(&format!("\"cid\": {}", stamped.value())), "{info}");
    }
}

#[test]
fn other_kinds_made_by_qemu_are_refused_by_name() {
    for kind in ["streamOptimized", "twoGbMaxExtentSparse"] {
        let fixture = Fixture::of(DiskKind::Vmfs);
        let option = format!("subformat={kind}");
        succeeds("qemu-img", &["create", "-q", "-f", "vmdk", "-o", &option, &fixture.text("os.vmdk"), "8M"]);
        let error = fixture.open(Some(SIZE)).err().unwrap();
        let named = matches!(&error.fault,
            TargetFault::Unsupported { why: Unsupported::Kind { kind: k, .. }, .. } if k == kind);
        assert!(named, "{error}");
        assert!(error.to_string().contains("qemu-img convert"), "{error}");
    }
}

#[test]
fn a_snapshot_made_by_qemu_is_refused_and_so_is_its_base() {
    let fixture = Fixture::of(DiskKind::Vmfs);
    succeeds(
        "qemu-img",
        &["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", &fixture.text("os.vmdk"), "8M"],
    );
    let base = fixture.text("os.vmdk");
    succeeds("qemu-img", &["create", "-q", "-f", "vmdk", "-b", &base, "-F", "vmdk", &fixture.text("top.vmdk")]);
    let fault = fixture.open(None).err().unwrap().fault;
    assert!(matches!(&fault, TargetFault::HasSnapshot { snapshot } if snapshot.ends_with("top.vmdk")), "{fault}");
    fs::copy(fixture.path("top.vmdk"), fixture.path("os.vmdk")).unwrap();
    let fault = fixture.open(None).err().unwrap().fault;
    assert!(matches!(fault, TargetFault::Unsupported { why: Unsupported::Snapshot { .. }, .. }), "{fault}");
}
