//! Reads what there is to know of a target: [`target`]. It locks nothing and changes nothing, so it may look at the disks
//! of a running agent.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use super::{
    facts::{Described, Machine, Target, TargetState, VmdkFacts},
    machine::MachineFiles,
    mounts::DeviceNumber,
    vmx::{VMX_BYTES_MAX, Vmx},
};
use crate::{
    config::DiskConfig,
    target::{Datastore, Inspected, TargetSpec, inspect},
    vmdk::{self, Cid},
};

/// Most `.vmx` that are read in a folder: one machine has one.
const VMX_FILES_MAX: usize = 64;
/// Digits of the number in the name of a snapshot, as in `os-000001.vmdk`.
const SNAPSHOT_DIGITS: usize = 6;

/// What was found of a target whose source has `source_size` bytes, as far as that is known.
pub(super) fn target(
    disk: &DiskConfig,
    datastores: &[Datastore],
    machine: &MachineFiles,
    source_size: Option<u64>,
    agent_runs: bool,
) -> Target {
    let mut target = Target {
        subject: disk.target.to_string(),
        file_system: None,
        state: TargetState::Missing,
        source_size,
        holder: None,
        agent_runs,
        device_uses: Vec::new(),
        vmdk: None,
    };
    let found = match inspect(&disk.target, datastores) {
        Ok(found) => found,
        Err(fault) => {
            target.state = TargetState::Unusable(fault.to_string());
            return target;
        }
    };
    match device_of(&found.path) {
        Some(device) => target.device_uses = machine.uses_of(device),
        None => {
            let mount = machine.mount_of(&found.path);
            target.file_system = Some(mount.map_or("an unknown file system", |mount| &mount.file_system).to_owned());
        }
    }
    // A file that can't be asked can't be read either, which the state says.
    target.holder = found.files.iter().find_map(|file| blockio::lock_holder(file).ok().flatten());
    if matches!(disk.target, TargetSpec::Vmdk { .. }) {
        target.vmdk = Some(vmdk_facts(&found));
    }
    target.state = match found.size {
        Ok(None) => TargetState::Missing,
        Ok(Some(size)) => TargetState::There(size),
        Err(fault) => TargetState::Unusable(fault.to_string()),
    };
    target
}

/// The number of a block device.
pub(super) fn device_of(path: &Path) -> Option<DeviceNumber> {
    let found = fs::metadata(path).ok().filter(|found| found.file_type().is_block_device())?;
    Some(DeviceNumber { major: rustix::fs::major(found.rdev()), minor: rustix::fs::minor(found.rdev()) })
}

fn vmdk_facts(found: &Inspected) -> VmdkFacts {
    let mut facts = VmdkFacts { snapshots: snapshots_of(&found.path), ..VmdkFacts::default() };
    if found.is_delta {
        facts.parent = Some("it is a delta extent".to_owned());
    }
    if let Some(name) = found.path.file_name().and_then(|name| name.to_str()) {
        facts.machine = machine_of(found.path.parent().unwrap_or(Path::new("/")), name);
    }
    let Some(descriptor) = &found.descriptor else {
        let is_missing = matches!(found.size, Ok(None));
        facts.described = if is_missing { Described::NotYet } else { Described::Unreadable };
        return facts;
    };
    if descriptor.parent_cid != Cid::NO_PARENT || descriptor.parent_hint.is_some() {
        let hint = descriptor.parent_hint.clone();
        facts.parent = Some(hint.unwrap_or_else(|| format!("CID {}", descriptor.parent_cid)));
    }
    facts.uuid = descriptor.uuid.clone().filter(|uuid| !uuid.trim().is_empty());
    facts.adapter_type = descriptor.adapter_type.clone();
    facts.tools_version = descriptor.tools_version.clone();
    facts
}

/// Snapshots of a disk in its folder: those that name it, and those that are named after it.
fn snapshots_of(descriptor: &Path) -> Vec<String> {
    let name_of = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut snapshots: Vec<String> =
        vmdk::snapshot_of(descriptor).ok().flatten().and_then(|path| name_of(&path)).into_iter().collect();
    let stem = descriptor.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = descriptor.parent().unwrap_or(Path::new("/"));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix(&stem).and_then(|rest| rest.strip_prefix('-')?.strip_suffix(".vmdk"));
        let is_numbered = number.is_some_and(|n| n.len() == SNAPSHOT_DIGITS && n.bytes().all(|b| b.is_ascii_digit()));
        if is_numbered && !snapshots.contains(&name) {
            snapshots.push(name);
        }
    }
    snapshots.sort();
    snapshots
}

/// The machine in a folder that has a disk.
fn machine_of(folder: &Path, descriptor: &str) -> Machine {
    let is_vmx = |path: &Path| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("vmx"));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in entries.filter(|path| is_vmx(path) && path.is_file()).take(VMX_FILES_MAX) {
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(VMX_BYTES_MAX).read_to_end(&mut bytes));
        let vmx = Vmx::parse(&bytes);
        let Some(slot) = read.ok().and_then(|_| vmx.slot_of(descriptor)) else { continue };
        return Machine::Known {
            name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            shows_uuids: vmx.shows_uuids(),
            controller: vmx.controller_of(slot).map(str::to_owned),
        };
    }
    Machine::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELTA: &str = "# Disk DescriptorFile\nversion=1\nCID=2\nparentCID=1\ncreateType=\"vmfsSparse\"\n\
        parentFileNameHint=\"os.vmdk\"\nRW 8 VMFSSPARSE \"x-delta.vmdk\"\n";

    fn facts_of(change: impl Fn(&Path)) -> Target {
        let folder = tempfile::tempdir().unwrap();
        let web = folder.path().join("web");
        fs::create_dir(&web).unwrap();
        vmdk::create(&web.join("os.vmdk"), 1 << 20, vmdk::DiskKind::Vmfs).unwrap();
        change(&web);
        let disk = DiskConfig {
            name: "os".parse().unwrap(),
            target: "[ds1] web/os.vmdk".parse().unwrap(),
            kind: vmdk::DiskKind::Vmfs,
        };
        let datastores = [Datastore { name: "ds1".into(), path: folder.path().to_owned() }];
        target(&disk, &datastores, &MachineFiles::of_this_machine(), Some(512), false)
    }

    #[test]
    fn a_disk_that_this_agent_made_is_found_with_its_uuid_and_adapter() {
        let target = facts_of(|_| ());
        assert_eq!((target.state, target.holder), (TargetState::There(1 << 20), None));
        assert!(target.file_system.is_some());
        let vmdk = target.vmdk.unwrap();
        assert!(vmdk.uuid.unwrap().starts_with("60 00 C2 9"));
        assert_eq!((vmdk.adapter_type.as_deref(), vmdk.tools_version), (Some("lsilogic"), None));
        assert_eq!((vmdk.parent, vmdk.snapshots, vmdk.machine), (None, vec![], Machine::Unknown));
    }

    #[test]
    fn snapshots_are_found_by_their_parent_and_by_their_name() {
        let target = facts_of(|web| {
            fs::write(web.join("renamed.vmdk"), DELTA).unwrap();
            fs::write(web.join("os-000007.vmdk"), "orphan").unwrap();
            fs::write(web.join("os-flat-000007.vmdk"), "").unwrap();
            fs::write(web.join("os-00007.vmdk"), "").unwrap();
        });
        assert_eq!(target.vmdk.unwrap().snapshots, ["os-000007.vmdk", "renamed.vmdk"]);
        let itself = facts_of(|web| fs::write(web.join("os.vmdk"), DELTA).unwrap());
        assert_eq!(itself.vmdk.unwrap().parent.as_deref(), Some("os.vmdk"));
        assert!(matches!(itself.state, TargetState::Unusable(_)));
        let delta = facts_of(|web| fs::write(web.join("os.vmdk"), b"COWD\x01\0\0\0").unwrap());
        assert!(delta.vmdk.unwrap().parent.unwrap().contains("delta"));
    }

    #[test]
    fn a_disk_that_is_missing_and_one_that_can_not_be_read_are_told_apart() {
        let missing = facts_of(|web| fs::remove_file(web.join("os.vmdk")).unwrap());
        assert_eq!((missing.state, missing.vmdk.unwrap().described), (TargetState::Missing, Described::NotYet));
        let unreadable = facts_of(|web| fs::write(web.join("os.vmdk"), "not a descriptor").unwrap());
        assert!(matches!(unreadable.state, TargetState::Unusable(_)));
        assert_eq!(unreadable.vmdk.unwrap().described, Described::Unreadable);
    }

    #[test]
    fn the_machine_is_the_one_whose_settings_name_the_disk() {
        let target = facts_of(|web| {
            fs::write(web.join("other.vmx"), "scsi0:0.fileName = \"other.vmdk\"\ndisk.enableUUID = \"TRUE\"\n")
                .unwrap();
            fs::write(web.join("web.vmx"), "scsi0:0.fileName = \"os.vmdk\"\nscsi0.virtualDev = \"pvscsi\"\n").unwrap();
        });
        let expected = Machine::Known { name: "web.vmx".into(), shows_uuids: false, controller: Some("pvscsi".into()) };
        assert_eq!(target.vmdk.unwrap().machine, expected);
    }

    #[test]
    fn a_sparse_disk_tells_the_same_from_its_inside() {
        let target = facts_of(|web| {
            fs::remove_file(web.join("os.vmdk")).unwrap();
            vmdk::create(&web.join("os.vmdk"), 1 << 20, vmdk::DiskKind::MonolithicSparse).unwrap();
        });
        assert_eq!(target.state, TargetState::There(1 << 20));
        assert!(target.vmdk.unwrap().uuid.is_some());
    }
}
