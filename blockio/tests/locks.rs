//! Locks against the outside judge: QEMU's tools refuse and allow what they should.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use blockio::{Access, BlockFile, LockError, LockRole, lock_file, lock_holder, unlock_file};

const MIB: u64 = 1 << 20;
/// Longer than anything takes; a test that gets here fails.
const PATIENCE: Duration = Duration::from_secs(30);

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("these tests need {program} (qemu-utils): {error}"))
}

fn works(program: &str, arguments: &[&str]) {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

fn is_refused(program: &str, arguments: &[&str]) {
    let output = run(program, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("lock"), "{program} {arguments:?} was not kept out: {output:?}");
}

fn raw(folder: &Path) -> PathBuf {
    let path = folder.join("disk.raw");
    drop(BlockFile::create(&path, MIB).unwrap());
    path
}

/// Descriptor and extent of a flat VMDK as QEMU makes it.
fn vmdk(folder: &Path) -> (PathBuf, PathBuf) {
    let descriptor = folder.join("disk.vmdk");
    let path = descriptor.to_str().unwrap();
    works("qemu-img", &["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", path, "1M"]);
    (descriptor, folder.join("disk-flat.vmdk"))
}

fn open(path: &Path) -> BlockFile {
    BlockFile::open(path, Access::ReadWrite).unwrap()
}

/// A QEMU that has the image open until it is dropped.
struct Holder(Child);

impl Holder {
    fn of(arguments: &[&str], image: &Path) -> Self {
        let socket = image.with_extension("sock");
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--socket", socket.to_str().unwrap()])
            .args(arguments)
            .arg(image)
            .stdin(Stdio::null())
            .spawn()
            .expect("these tests need qemu-nbd (qemu-utils)");
        let mut holder = Self(child);
        // The socket is there before the image is open; the greeting comes after.
        while !is_greeted(&socket) {
            assert!(holder.0.try_wait().unwrap().is_none(), "qemu-nbd ended");
            std::thread::sleep(Duration::from_millis(10));
        }
        holder
    }
}

fn is_greeted(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok_and(|mut stream| stream.read_exact(&mut [0; 8]).is_ok())
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_target_file_keeps_writers_out_and_lets_readers_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path());
    let name = path.to_str().unwrap();
    let file = open(&path);
    file.lock(LockRole::TargetExtent).unwrap();
    is_refused("qemu-io", &["-f", "raw", "-c", "write 0 4k", name]);
    works("qemu-img", &["info", name]);
    works("qemu-img", &["info", "-U", name]);
    works("qemu-img", &["compare", "-f", "raw", "-F", "raw", name, name]);
    works("qemu-img", &["compare", "-U", "-f", "raw", "-F", "raw", name, name]);
    file.write_all_at(&[1; 512], 0).unwrap();
    file.unlock().unwrap();
    works("qemu-io", &["-f", "raw", "-c", "write 0 4k", name]);
}

#[test]
fn a_target_vmdk_keeps_writers_of_either_file_out_and_lets_readers_in() {
    let folder = tempfile::tempdir().unwrap();
    let (descriptor, extent) = vmdk(folder.path());
    let (image, flat) = (descriptor.to_str().unwrap(), extent.to_str().unwrap());
    let mut text = fs::OpenOptions::new();
    let text = text.read(true).write(true).open(&descriptor).unwrap();
    lock_file(text.as_fd(), &descriptor, LockRole::TargetDescriptor).unwrap();
    let data = open(&extent);
    data.lock(LockRole::TargetExtent).unwrap();
    is_refused("qemu-io", &["-f", "vmdk", "-c", "write 0 4k", image]);
    is_refused("qemu-io", &["-f", "raw", "-c", "write 0 4k", image]);
    is_refused("qemu-io", &["-f", "raw", "-c", "write 0 4k", flat]);
    works("qemu-img", &["info", image]);
    works("qemu-img", &["check", image]);
    works("qemu-img", &["compare", image, image]);
    works("qemu-img", &["info", "-U", image]);
    unlock_file(text.as_fd(), &descriptor).unwrap();
    drop(data);
    works("qemu-io", &["-f", "vmdk", "-c", "write 0 4k", image]);
}

#[test]
fn a_source_disk_keeps_writers_out_and_can_be_inspected() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path());
    let name = path.to_str().unwrap();
    let file = open(&path);
    file.lock(LockRole::SourceDisk).unwrap();
    is_refused("qemu-io", &["-f", "raw", "-c", "write 0 4k", name]);
    works("qemu-img", &["info", name]);
    works("qemu-img", &["info", "-U", name]);
    works("qemu-img", &["compare", "-f", "raw", "-F", "raw", name, name]);
    works("qemu-img", &["compare", "-U", "-f", "raw", "-F", "raw", name, name]);
}

#[test]
fn a_file_that_qemu_writes_is_refused_and_free_again_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path());
    let file = open(&path);
    let holder = Holder::of(&["--format=raw"], &path);
    for role in [LockRole::TargetExtent, LockRole::TargetDescriptor, LockRole::SourceDisk] {
        let error = file.lock(role).unwrap_err();
        assert!(error.is_held(), "{role:?}: {error}");
        let said = error.to_string();
        assert!(said.contains("disk.raw") && said.contains("shut that machine down"), "{said}");
    }
    drop(holder);
    file.lock_within(LockRole::TargetExtent, PATIENCE).unwrap();
}

#[test]
fn a_failed_attempt_leaves_nothing_locked() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path());
    let (file, other) = (open(&path), open(&path));
    let holder = Holder::of(&["--format=raw"], &path);
    file.lock(LockRole::TargetExtent).unwrap_err();
    drop(holder);
    other.lock_within(LockRole::TargetExtent, PATIENCE).unwrap();
}

#[test]
fn agents_exclude_each_other_whatever_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path());
    let roles = [LockRole::SourceDisk, LockRole::TargetExtent, LockRole::TargetDescriptor];
    for first in roles {
        for second in roles {
            let (ours, theirs) = (open(&path), open(&path));
            ours.lock(first).unwrap();
            ours.lock(first).unwrap();
            let error = theirs.lock(second).unwrap_err();
            assert!(matches!(error, LockError::Held { .. }), "{first:?}, {second:?}");
            assert!(error.to_string().contains("process-server or master-target"), "{error}");
        }
    }
}

#[test]
fn a_lock_is_waited_for_until_its_holder_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path());
    let (ours, theirs) = (open(&path), open(&path));
    theirs.lock(LockRole::SourceDisk).unwrap();
    let error = ours.lock_within(LockRole::SourceDisk, Duration::from_millis(30)).unwrap_err();
    assert!(error.is_held());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            drop(theirs);
        });
        ours.lock_within(LockRole::SourceDisk, PATIENCE).unwrap();
    });
}

#[test]
fn who_has_a_lock_is_told_without_disturbing_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path());
    assert_eq!(lock_holder(&path).unwrap(), None);
    let ours = open(&path);
    ours.lock(LockRole::TargetExtent).unwrap();
    assert_eq!(lock_holder(&path).unwrap(), Some(blockio::Holder::Agent));
    ours.unlock().unwrap();
    assert_eq!(lock_holder(&path).unwrap(), None);
    ours.lock(LockRole::TargetExtent).unwrap();
    assert_eq!(lock_holder(Path::new("/dev/null")).unwrap(), None, "neither file nor block device");
    assert!(lock_holder(&folder.path().join("missing")).is_err());
}

#[test]
fn a_file_open_for_reading_cannot_be_locked_and_the_error_is_no_holder() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path());
    let file = BlockFile::open(&path, Access::ReadOnly).unwrap();
    assert!(!file.lock(LockRole::TargetExtent).unwrap_err().is_held());
}
