//! The preflight on real files, file systems and devices: beside a running agent, before a group is accepted, and on
//! every kind of volume that a retention volume may or may not be.
#![allow(clippy::unwrap_used)]

mod loop_device;
mod site;
mod source;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use loop_device::LoopDevice;
use master_target::{
    check::{Check, MachineFiles, Outcome, Preflight, Report},
    config::Config,
    vmdk::{DiskKind, create},
};
use site::{SIZES, Site, history};

/// What `master-target check` says of a site's configuration.
fn report(site: &Site) -> Report {
    let config = Config::load(&site.path("mt.toml")).unwrap();
    Preflight::of(&config, &MachineFiles::of_this_machine()).report(config.name.as_str(), &config.control)
}

/// The checks with this id, of all disks.
fn checks<'a>(report: &'a Report, id: &str) -> Vec<&'a Check> {
    let found: Vec<_> = report.groups.iter().flat_map(|group| &group.checks).filter(|check| check.id == id).collect();
    assert!(!found.is_empty(), "{id} is not checked: {report:?}");
    found
}

fn outcomes(report: &Report, id: &str) -> Vec<Outcome> {
    checks(report, id).into_iter().map(|check| check.outcome).collect()
}

/// A VMDK of the first disk's size, and a machine beside it with these settings.
fn machine(site: &Site, settings: &str) {
    let web = site.path("ds1/web");
    fs::create_dir_all(&web).unwrap();
    if !web.join("d0.vmdk").exists() {
        create(&web.join("d0.vmdk"), SIZES[0], DiskKind::Vmfs).unwrap();
    }
    fs::write(web.join("web.vmx"), format!("scsi0:0.fileName = \"d0.vmdk\"\n{settings}")).unwrap();
}

const SOUND: &str = "disk.EnableUUID = \"TRUE\"\nscsi0.virtualDev = \"lsilogic\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_passes_before_beside_and_after_its_agent() {
    let site = Site::new();
    let before = report(&site);
    assert!(before.failures() == 0 && before.outcome == Outcome::Warning, "{before:?}");
    assert!(checks(&before, "target")[0].message.contains("doesn't exist yet"));
    let agent = site.start().await;
    let mut source = site.source().await;
    history(&mut source).await;
    let beside = report(&site);
    assert_eq!(beside.failures(), 0, "{beside:?}");
    assert!(checks(&beside, "target-in-use").iter().all(|check| check.message == "this agent has it open"));
    // What was replicated is known by its size.
    assert!(checks(&beside, "target-size")[0].message.contains(&format!("its source has {}", SIZES[0])));
    assert_eq!(outcomes(&beside, "unique-uuid"), [Outcome::Pass]);
    drop(source);
    agent.stop().await;
    let after = report(&site);
    assert_eq!(after.failures(), 0, "{after:?}");
    assert!(checks(&after, "target-in-use").iter().all(|check| check.message == "nobody has it locked"));
    fs::OpenOptions::new().write(true).open(site.path("d1.raw")).unwrap().set_len(512).unwrap();
    assert_eq!(outcomes(&report(&site), "target-size"), [Outcome::Pass, Outcome::Failure]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_accepted_when_what_its_preflight_found_is_mended() {
    let site = Site::new();
    machine(&site, "scsi0.virtualDev = \"pvscsi\"\n");
    let web = site.path("ds1/web");
    fs::write(web.join("d0-000001.vmdk"), "somebody's").unwrap();
    let agent = site.start().await;
    let mut source = site.source().await;
    let refused = source.open(&SIZES, 1, 1).await.unwrap_err();
    assert_eq!(refused.reason, "failed");
    for words in
        ["(snapshots): d0-000001.vmdk", "consolidate", "(scsi-controller)", "LSI Logic", "(disk-uuid)", "EnableUUID"]
    {
        assert!(refused.message.contains(words), "{words}: {}", refused.message);
    }
    fs::remove_file(web.join("d0-000001.vmdk")).unwrap();
    machine(&site, SOUND);
    let mut opened = source.open(&SIZES, 1, 1).await;
    for _ in 0..200 {
        if opened.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        opened = source.open(&SIZES, 1, 1).await;
    }
    opened.unwrap();
    // What is open isn't checked again: a source that comes back doesn't wait for it.
    fs::write(web.join("d0-000001.vmdk"), "somebody's").unwrap();
    source.open(&SIZES, 2, 1).await.unwrap();
    assert_eq!(outcomes(&report(&site), "snapshots"), [Outcome::Failure]);
    drop(source);
    agent.stop().await;
}

#[test]
fn two_groups_whose_disks_come_of_one_template_fail() {
    let site = Site::new();
    machine(&site, SOUND);
    let db = "[[group]]\nname = \"db\"\nprocess_server = \"ps-1\"\n[[group.disk]]\nname = \"os\"\ntarget = \"[ds1] db/os.vmdk\"\n";
    site.write_config_with("", db);
    fs::create_dir(site.path("ds1/db")).unwrap();
    create(&site.path("ds1/db/os.vmdk"), SIZES[0], DiskKind::Vmfs).unwrap();
    assert_eq!(outcomes(&report(&site), "unique-uuid"), [Outcome::Pass; 2]);
    let template = fs::read_to_string(site.path("ds1/web/d0.vmdk")).unwrap();
    fs::write(site.path("ds1/db/os.vmdk"), template.replace("d0-flat", "os-flat")).unwrap();
    assert_eq!(outcomes(&report(&site), "unique-uuid"), [Outcome::Failure; 2]);
}

#[test]
fn a_target_that_another_program_writes_fails() {
    let site = Site::new();
    let file = blockio::BlockFile::create(&site.path("d1.raw"), SIZES[1]).unwrap();
    file.lock(blockio::LockRole::TargetExtent).unwrap();
    let found = report(&site);
    assert_eq!(outcomes(&found, "target-in-use"), [Outcome::Pass, Outcome::Failure]);
    assert!(checks(&found, "target-in-use")[1].remedy.as_ref().unwrap().contains("stop that agent"));
}

#[test]
fn every_volume_is_listed_with_the_reason_against_it() {
    let site = Site::new();
    let found = report(&site);
    let root = found.retention.iter().find(|volume| volume.path == "/").unwrap();
    assert!(root.size_bytes > 0 && root.eligible == root.reason.is_none(), "{root:?}");
    assert!(found.retention.iter().all(|volume| volume.path != "/proc"), "{:?}", found.retention);
    fs::remove_dir(site.path("retention")).unwrap();
    let missing = report(&site);
    assert_eq!(outcomes(&missing, "retention-volume"), [Outcome::Failure]);
    assert!(checks(&missing, "retention-volume")[0].remedy.as_ref().unwrap().contains("/mnt/retention"));
}

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {args:?} is needed, as root: {error}");
}

/// Something mounted at a folder until it is dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(at: &Path, program: &str, args: &[&str]) -> Mount {
        let place = at.to_string_lossy();
        let args: Vec<&str> = args.iter().copied().chain([&*place]).collect();
        run(program, &args);
        Mount(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("--lazy").arg(&self.0).output();
        assert!(done.is_ok_and(|done| done.status.success()), "{} stays mounted", self.0.display());
    }
}

/// A loop device with 512-byte sectors, which all file systems take; detached when it is dropped.
struct Device {
    path: String,
    _image: tempfile::NamedTempFile,
}

impl Device {
    fn formatted(mib: u64, mkfs: &[&str]) -> Device {
        Self::attached(mib, mkfs, &[])
    }

    fn attached(mib: u64, mkfs: &[&str], options: &[&str]) -> Device {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(mib << 20).unwrap();
        let file = image.path().to_string_lossy().into_owned();
        if let Some((program, args)) = mkfs.split_first() {
            run(program, &args.iter().copied().chain([&*file]).collect::<Vec<_>>());
        }
        let losetup = Command::new("losetup").args(["--find", "--show"]).args(options).arg(&file).output().unwrap();
        assert!(losetup.status.success(), "a loop device is needed, as root");
        Device { path: String::from_utf8(losetup.stdout).unwrap().trim().to_owned(), _image: image }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.path]).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays attached", self.path);
    }
}

/// What the list, and the group's check, say of the volume at the site's retention folder.
fn judged(site: &Site) -> (String, Option<String>, Outcome) {
    let found = report(site);
    let path = site.path("retention").canonicalize().unwrap();
    let listed = found.retention.iter().find(|volume| Path::new(&volume.path) == path);
    let listed = listed.unwrap_or_else(|| panic!("{} is not listed: {:?}", path.display(), found.retention));
    assert_eq!(listed.eligible, listed.reason.is_none());
    (listed.file_system.clone(), listed.reason.clone(), outcomes(&found, "retention-volume")[0])
}

#[test]
#[ignore = "needs root: loop devices"]
fn volumes_of_their_own_are_eligible_whatever_their_file_system() {
    for (kind, mib, mkfs) in [
        ("ext4", 32, &["mkfs.ext4", "-q"][..]),
        ("xfs", 320, &["mkfs.xfs", "-q"]),
        ("btrfs", 128, &["mkfs.btrfs", "-q"]),
    ] {
        let site = Site::new();
        let device = Device::formatted(mib, mkfs);
        let _mount = Mount::new(&site.path("retention"), "mount", &[&device.path]);
        assert_eq!(judged(&site), (kind.to_owned(), None, Outcome::Pass));
    }
}

#[test]
#[ignore = "needs root: loop devices"]
fn fat_exfat_tmpfs_read_only_and_locked_volumes_are_not_eligible() {
    let site = Site::new();
    let at = site.path("retention");
    let expect = |kind: &str, words: &str, outcome: Outcome| {
        let (file_system, reason, found) = judged(&site);
        let reason = reason.unwrap_or_else(|| panic!("{kind} is eligible"));
        assert!(file_system.contains(kind) && reason.contains(words), "{file_system}: {reason}");
        assert_eq!(found, outcome, "{kind}");
    };
    {
        let device = Device::formatted(32, &["mkfs.vfat"]);
        let _mount = if fs::read_to_string("/proc/filesystems").unwrap().contains("\tvfat") {
            Mount::new(&at, "mount", &["-t", "vfat", &device.path])
        } else {
            Mount::new(&at, "fusefat", &["-o", "rw+", &device.path])
        };
        expect("fat", "no large files", Outcome::Failure);
    }
    {
        let device = Device::formatted(32, &["mkfs.exfat"]);
        let _mount = Mount::new(&at, "mount.exfat-fuse", &[&device.path]);
        expect("exfat", "no large files", Outcome::Failure);
    }
    {
        let _mount = Mount::new(&at, "mount", &["-t", "tmpfs", "-o", "size=16m", "none"]);
        expect("tmpfs", "empties", Outcome::Warning);
    }
    {
        let device = Device::formatted(32, &["mkfs.ext4", "-q"]);
        let _mount = Mount::new(&at, "mount", &["-o", "ro", &device.path]);
        expect("ext4", "read-only", Outcome::Failure);
    }
    {
        let device = Device::attached(32, &["mkfs.ext4", "-q"], &["--read-only"]);
        let _mount = Mount::new(&at, "mount", &["-o", "ro", &device.path]);
        expect("ext4", "locked", Outcome::Failure);
    }
}

#[test]
#[ignore = "needs root: loop devices"]
fn a_device_that_is_mounted_or_carries_the_retention_volume_fails() {
    let site = Site::new();
    let free = LoopDevice::new(8 << 20);
    let target = |device: &str| {
        let text = fs::read_to_string(site.path("mt.toml")).unwrap();
        let line = format!("target = \"{}/d1.raw\"", site.path("").to_string_lossy().trim_end_matches('/'));
        assert!(text.contains(&line), "{text}");
        fs::write(site.path("mt.toml"), text.replace(&line, &format!("target = \"{device}\""))).unwrap();
    };
    target(&free.path.to_string_lossy());
    assert_eq!(outcomes(&report(&site), "target-mounted"), [Outcome::Pass]);
    site.write_config("");
    let device = Device::formatted(32, &["mkfs.ext4", "-q"]);
    target(&device.path);
    let _mount = Mount::new(&site.path("retention"), "mount", &[&device.path]);
    let found = report(&site);
    assert_eq!(outcomes(&found, "target-mounted"), [Outcome::Failure]);
    assert!(checks(&found, "target-mounted")[0].message.contains("retention"));
    let (_, reason, outcome) = judged(&site);
    assert!(outcome == Outcome::Failure && reason.unwrap().contains("on a replication target"));
}
