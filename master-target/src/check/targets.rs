//! What would make a failback of a target fail (requirement R5): pure judgements over facts.

use blockio::Holder;

use super::{
    facts::{Described, Machine, Target, TargetState, VmdkFacts},
    report::Check,
};

/// The ids of the checks; `docs/preflight.md` explains each.
pub mod id {
    /// The target is there, of a kind that is written, or can be made.
    pub const TARGET: &str = "target";
    /// No snapshot stands on it.
    pub const SNAPSHOTS: &str = "snapshots";
    /// It is not on NFS.
    pub const NFS: &str = "datastore-nfs";
    /// The machine and its guest know it by an id that stays.
    pub const UUID: &str = "disk-uuid";
    /// No other target has that id.
    pub const UNIQUE_UUID: &str = "unique-uuid";
    /// Its controller is LSI Logic.
    pub const CONTROLLER: &str = "scsi-controller";
    /// VMware Tools are installed.
    pub const TOOLS: &str = "vmware-tools";
    /// It is as large as its source.
    pub const SIZE: &str = "target-size";
    /// Nobody else has it open.
    pub const IN_USE: &str = "target-in-use";
    /// Its device is not mounted or held.
    pub const MOUNTED: &str = "target-mounted";
}

/// All checks of one target but that of its UUID among others.
pub fn judge(target: &Target) -> Vec<Check> {
    let subject = target.subject.as_str();
    let mut checks = vec![usable(subject, &target.state), size(subject, target)];
    checks.extend(target.file_system.as_deref().map(|kind| nfs(subject, kind)));
    checks.push(in_use(subject, target));
    if target.file_system.is_none() {
        checks.push(mounted(subject, &target.device_uses));
    }
    if let Some(vmdk) = &target.vmdk {
        checks.push(snapshots(subject, vmdk));
        match vmdk.described {
            Described::ByDescriptor => {
                checks.extend([uuid(subject, vmdk), controller(subject, vmdk), tools(subject, vmdk)]);
            }
            Described::NotYet => checks.extend([uuid(subject, vmdk), controller(subject, vmdk)]),
            // What is wrong with it was said by the first check.
            Described::Unreadable => {}
        }
    }
    checks
}

/// No two of all targets may have the same UUID. The checks are those of the `wanted` targets, by place.
pub fn judge_unique(targets: &[Target], wanted: impl Fn(usize) -> bool) -> Vec<(usize, Check)> {
    let uuid_of = |target: &Target| target.vmdk.as_ref().and_then(|vmdk| vmdk.uuid.as_deref()).map(plain_uuid);
    let mut checks = Vec::new();
    for (place, target) in targets.iter().enumerate().filter(|(place, _)| wanted(*place)) {
        let Some(uuid) = uuid_of(target) else { continue };
        let mut others = targets.iter().enumerate().filter(|(other, _)| *other != place);
        let check = match others.find(|(_, other)| uuid_of(other).as_ref() == Some(&uuid)) {
            Some((_, twin)) => Check::failure(
                id::UNIQUE_UUID,
                &target.subject,
                format!("{} has the same UUID: both were copied from one template", twin.subject),
                "give one of them a new one: `vmkfstools -J setuuid DISK.vmdk`, with its machine shut down",
            ),
            None => Check::pass(id::UNIQUE_UUID, &target.subject, "no other target has its UUID"),
        };
        checks.push((place, check));
    }
    checks
}

/// A UUID without what programs write differently.
fn plain_uuid(text: &str) -> String {
    text.chars().filter(char::is_ascii_hexdigit).map(|c| c.to_ascii_lowercase()).collect()
}

fn usable(subject: &str, state: &TargetState) -> Check {
    match state {
        TargetState::There(_) => Check::pass(id::TARGET, subject, "it is there, and of a kind that is written"),
        TargetState::Missing => {
            Check::pass(id::TARGET, subject, "it doesn't exist yet, and is made with its source's size")
        }
        TargetState::Unusable(why) => {
            // Errors of targets end with what to do, but for those of the system.
            let (what, remedy) = match why.rsplit_once(": ") {
                Some((what, remedy)) if !remedy.contains("os error") => (what, remedy),
                _ => (why.as_str(), "mend what the system says, then check again"),
            };
            Check::failure(id::TARGET, subject, what, remedy)
        }
    }
}

fn size(subject: &str, target: &Target) -> Check {
    match (&target.state, target.source_size) {
        (TargetState::There(size), Some(source)) if *size < source => Check::failure(
            id::SIZE,
            subject,
            format!("its size is {size} bytes, but its source has {source}"),
            "grow it, or name a target that is as large",
        ),
        (TargetState::There(size), Some(source)) => {
            Check::pass(id::SIZE, subject, format!("its size is {size} bytes, its source has {source}"))
        }
        (TargetState::Missing, _) => Check::pass(id::SIZE, subject, "it is made with its source's size"),
        (TargetState::Unusable(_), _) => Check::warning(
            id::SIZE,
            subject,
            "its size can't be told",
            "make the target usable first, as the check above says",
        ),
        (TargetState::There(_), None) => {
            Check::pass(id::SIZE, subject, "its source's size is not known before it connects, and is compared then")
        }
    }
}

fn nfs(subject: &str, file_system: &str) -> Check {
    if file_system.starts_with("nfs") {
        let what = format!("it is on {file_system}, where another host can write it unseen");
        return Check::failure(id::NFS, subject, what, "move the disk to a local, SAN or VMFS datastore");
    }
    Check::pass(id::NFS, subject, format!("it is on {file_system}"))
}

fn in_use(subject: &str, target: &Target) -> Check {
    match target.holder {
        None => Check::pass(id::IN_USE, subject, "nobody has it locked"),
        Some(Holder::Agent) if target.agent_runs => Check::pass(id::IN_USE, subject, "this agent has it open"),
        Some(Holder::Agent) => Check::failure(
            id::IN_USE,
            subject,
            "another process-server or master-target has it open",
            "stop that agent, or give this disk another target",
        ),
        Some(Holder::Writer) => Check::failure(
            id::IN_USE,
            subject,
            "QEMU or a program with its locks has it open for writing",
            "shut that machine down",
        ),
        Some(Holder::Reader) => Check::failure(
            id::IN_USE,
            subject,
            "QEMU or qemu-img has it open and forbids others to write it",
            "wait until it is done, or shut that machine down",
        ),
    }
}

fn mounted(subject: &str, uses: &[String]) -> Check {
    if uses.is_empty() {
        return Check::pass(id::MOUNTED, subject, "it is neither mounted nor held");
    }
    let remedy =
        "unmount it, deactivate LVM or md on it (`vgchange -an`, `mdadm --stop`), and keep udev from starting them";
    Check::failure(id::MOUNTED, subject, format!("it is in use: {}", uses.join(", ")), remedy)
}

fn snapshots(subject: &str, vmdk: &VmdkFacts) -> Check {
    let remedy = "delete (consolidate) the machine's snapshots, and name the base disk";
    if let Some(parent) = &vmdk.parent {
        return Check::failure(id::SNAPSHOTS, subject, format!("it is a snapshot of another disk ({parent})"), remedy);
    }
    if vmdk.snapshots.is_empty() {
        return Check::pass(id::SNAPSHOTS, subject, "it has none");
    }
    let what = format!("{} is a snapshot of it, and would be corrupted", vmdk.snapshots.join(", "));
    Check::failure(id::SNAPSHOTS, subject, what, remedy)
}

fn uuid(subject: &str, vmdk: &VmdkFacts) -> Check {
    let set = "give it one: `vmkfstools -J setuuid DISK.vmdk`, with its machine shut down";
    let is_new = vmdk.described == Described::NotYet;
    match (vmdk.uuid.is_some() || is_new, &vmdk.machine) {
        (true, Machine::Unknown) if is_new => Check::pass(id::UUID, subject, "it is made with a UUID of its own"),
        (false, Machine::Known { name, .. }) => {
            let what = format!("its descriptor has no ddb.uuid, so {name}'s guest can't tell it from others");
            Check::failure(id::UUID, subject, what, set)
        }
        (false, Machine::Unknown) => Check::warning(id::UUID, subject, "its descriptor has no ddb.uuid", set),
        (true, Machine::Known { name, shows_uuids: false, .. }) => Check::failure(
            id::UUID,
            subject,
            format!("{name} doesn't set disk.EnableUUID, so the guest doesn't see the disk's UUID"),
            "shut the machine down, and add disk.EnableUUID = \"TRUE\" to its advanced configuration",
        ),
        (true, Machine::Known { name, .. }) => {
            Check::pass(id::UUID, subject, format!("it has a UUID, and {name} shows it to the guest"))
        }
        (true, Machine::Unknown) => Check::warning(
            id::UUID,
            subject,
            "it has a UUID; no .vmx beside it names it, so disk.EnableUUID can't be checked",
            "see that the machine that will have it sets disk.EnableUUID = \"TRUE\"",
        ),
    }
}

fn controller(subject: &str, vmdk: &VmdkFacts) -> Check {
    let remedy = "shut the machine down, and change its SCSI controller to LSI Logic";
    let of_machine = match &vmdk.machine {
        Machine::Known { name, controller: Some(kind), .. } => Some((name, kind.as_str())),
        _ => None,
    };
    if let Some((name, "pvscsi")) = of_machine {
        let what = format!("{name} has it on a paravirtual SCSI controller");
        return Check::failure(id::CONTROLLER, subject, what, remedy);
    }
    match (of_machine, vmdk.adapter_type.as_deref()) {
        (None, None) if vmdk.described == Described::NotYet => {
            Check::pass(id::CONTROLLER, subject, "its descriptor is made for LSI Logic")
        }
        (_, Some("pvscsi")) => {
            Check::failure(id::CONTROLLER, subject, "its descriptor is for a paravirtual SCSI controller", remedy)
        }
        (Some((name, kind)), _) if kind.starts_with("lsi") => {
            Check::pass(id::CONTROLLER, subject, format!("{name} has it on LSI Logic ({kind})"))
        }
        (Some((name, kind)), _) => {
            Check::warning(id::CONTROLLER, subject, format!("{name} has it on {kind}, not on LSI Logic"), remedy)
        }
        (None, Some("lsilogic")) => Check::pass(id::CONTROLLER, subject, "its descriptor is for LSI Logic"),
        (None, other) => {
            let what = format!("its descriptor is for {}, not for LSI Logic", other.unwrap_or("no adapter"));
            Check::warning(
                id::CONTROLLER,
                subject,
                what,
                "attach it to an LSI Logic controller, or see that its guest boots there",
            )
        }
    }
}

fn tools(subject: &str, vmdk: &VmdkFacts) -> Check {
    match vmdk.tools_version.as_deref() {
        None | Some("" | "0") => Check::warning(
            id::TOOLS,
            subject,
            "its descriptor names no version of VMware Tools",
            "install VMware Tools in the guest, so that it can be shut down and found after a failback",
        ),
        Some(version) => Check::pass(id::TOOLS, subject, format!("VMware Tools {version}")),
    }
}

#[cfg(test)]
mod tests;
