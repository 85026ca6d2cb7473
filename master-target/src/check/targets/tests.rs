//! Each judgement, with what makes it pass, warn and fail.

use super::*;
use crate::check::report::Outcome::{self, Failure, Pass, Warning};

fn machine() -> Machine {
    Machine::Known { name: "web.vmx".into(), shows_uuids: true, controller: Some("lsisas1068".into()) }
}

/// A VMDK with which all is well.
fn sound() -> Target {
    Target {
        subject: "[ds1] web/os.vmdk".into(),
        file_system: Some("vmfs".into()),
        state: TargetState::There(1 << 30),
        source_size: Some(1 << 30),
        holder: None,
        agent_runs: false,
        device_uses: Vec::new(),
        vmdk: Some(VmdkFacts {
            uuid: Some("60 00 C2 93 04 05 06 07-08 09 0a 0b 0c 0d 0e 0f".into()),
            adapter_type: Some("lsilogic".into()),
            tools_version: Some("12389".into()),
            machine: machine(),
            ..VmdkFacts::default()
        }),
    }
}

/// What the check `id` says of a target in which one thing was changed; all others must still pass.
fn judged(id: &str, change: impl Fn(&mut Target)) -> (Outcome, String) {
    let mut target = sound();
    change(&mut target);
    let checks = judge(&target);
    for check in &checks {
        let remedy = check.remedy.is_some();
        assert_eq!(remedy, check.outcome != Pass, "{check:?}");
    }
    let check = checks.into_iter().find(|check| check.id == id).expect("the check is made");
    (check.outcome, check.message)
}

fn vmdk(target: &mut Target) -> &mut VmdkFacts {
    target.vmdk.as_mut().unwrap()
}

#[test]
fn a_sound_target_passes_every_check_of_a_vmdk() {
    let checks = judge(&sound());
    let ids: Vec<_> = checks.iter().map(|check| check.id).collect();
    let expected = [id::TARGET, id::SIZE, id::NFS, id::IN_USE, id::SNAPSHOTS, id::UUID, id::CONTROLLER, id::TOOLS];
    assert_eq!(ids, expected);
    assert!(checks.iter().all(|check| check.outcome == Pass), "{checks:?}");
}

#[test]
fn snapshots_in_either_direction_fail() {
    let (outcome, message) = judged(id::SNAPSHOTS, |t| vmdk(t).parent = Some("base.vmdk".into()));
    assert!(outcome == Failure && message.contains("base.vmdk"));
    let (outcome, message) = judged(id::SNAPSHOTS, |t| vmdk(t).snapshots = vec!["os-000001.vmdk".into()]);
    assert!(outcome == Failure && message.contains("os-000001.vmdk"));
}

#[test]
fn nfs_fails_and_other_file_systems_pass() {
    for (kind, outcome) in [("nfs", Failure), ("nfs4", Failure), ("ext4", Pass), ("xfs", Pass)] {
        assert_eq!(judged(id::NFS, |t| t.file_system = Some(kind.into())).0, outcome, "{kind}");
    }
}

#[test]
fn a_disk_that_its_guest_can_not_tell_by_uuid_fails_and_without_a_machine_warns() {
    assert_eq!(judged(id::UUID, |t| vmdk(t).uuid = None).0, Failure);
    let hidden = Machine::Known { name: "web.vmx".into(), shows_uuids: false, controller: None };
    let (outcome, message) = judged(id::UUID, |t| vmdk(t).machine = hidden.clone());
    assert!(outcome == Failure && message.contains("disk.EnableUUID"));
    assert_eq!(judged(id::UUID, |t| vmdk(t).machine = Machine::Unknown).0, Warning);
    let neither = |t: &mut Target| (vmdk(t).uuid, vmdk(t).machine) = (None, Machine::Unknown);
    assert_eq!(judged(id::UUID, neither).0, Warning);
}

#[test]
fn paravirtual_scsi_fails_and_other_adapters_warn() {
    let on = |kind: &str| Machine::Known { name: "x.vmx".into(), shows_uuids: true, controller: Some(kind.into()) };
    assert_eq!(judged(id::CONTROLLER, |t| vmdk(t).machine = on("pvscsi")).0, Failure);
    assert_eq!(judged(id::CONTROLLER, |t| vmdk(t).adapter_type = Some("pvscsi".into())).0, Failure);
    assert_eq!(judged(id::CONTROLLER, |t| vmdk(t).machine = on("buslogic")).0, Warning);
    for (adapter, outcome) in [(Some("lsilogic"), Pass), (Some("ide"), Warning), (None, Warning)] {
        let change = |t: &mut Target| {
            vmdk(t).machine = Machine::Unknown;
            vmdk(t).adapter_type = adapter.map(str::to_owned);
        };
        assert_eq!(judged(id::CONTROLLER, change).0, outcome, "{adapter:?}");
    }
}

#[test]
fn a_disk_that_is_yet_to_be_made_passes_unless_its_machine_or_a_snapshot_is_in_the_way() {
    let new = |t: &mut Target| {
        let facts = VmdkFacts { described: Described::NotYet, ..VmdkFacts::default() };
        (t.state, t.vmdk) = (TargetState::Missing, Some(facts));
    };
    for id in [id::TARGET, id::SIZE, id::SNAPSHOTS, id::UUID, id::CONTROLLER] {
        assert_eq!(judged(id, new).0, Pass, "{id}");
    }
    let hidden = Machine::Known { name: "web.vmx".into(), shows_uuids: false, controller: Some("pvscsi".into()) };
    let with_machine = |t: &mut Target| {
        new(t);
        vmdk(t).machine = hidden.clone();
        vmdk(t).snapshots = vec!["os-000001.vmdk".into()];
    };
    for id in [id::SNAPSHOTS, id::UUID, id::CONTROLLER] {
        assert_eq!(judged(id, with_machine).0, Failure, "{id}");
    }
}

#[test]
fn nothing_is_said_of_a_descriptor_that_can_not_be_read() {
    let mut target = sound();
    vmdk(&mut target).described = Described::Unreadable;
    let ids: Vec<_> = judge(&target).iter().map(|check| check.id).collect();
    assert_eq!(ids, [id::TARGET, id::SIZE, id::NFS, id::IN_USE, id::SNAPSHOTS]);
}

#[test]
fn missing_tools_warn() {
    for version in [None, Some("0"), Some("")] {
        assert_eq!(judged(id::TOOLS, |t| vmdk(t).tools_version = version.map(str::to_owned)).0, Warning);
    }
}

#[test]
fn a_target_smaller_than_its_source_fails() {
    let (outcome, message) = judged(id::SIZE, |t| t.state = TargetState::There(512));
    assert!(outcome == Failure && message.contains("512 bytes, but its source has 1073741824"), "{message}");
    assert_eq!(judged(id::SIZE, |t| t.source_size = None).0, Pass);
    assert_eq!(judged(id::SIZE, |t| t.state = TargetState::Missing).0, Pass);
}

#[test]
fn a_target_in_use_fails_unless_this_agent_is_who_uses_it() {
    for (holder, agent_runs, outcome) in [
        (Holder::Agent, true, Pass),
        (Holder::Agent, false, Failure),
        (Holder::Writer, true, Failure),
        (Holder::Reader, false, Failure),
    ] {
        let change = |t: &mut Target| (t.holder, t.agent_runs) = (Some(holder), agent_runs);
        assert_eq!(judged(id::IN_USE, change).0, outcome, "{holder:?} {agent_runs}");
    }
}

#[test]
fn a_device_that_is_mounted_or_held_fails() {
    let device = |uses: &[&str]| {
        let uses: Vec<String> = uses.iter().map(|&u| u.to_owned()).collect();
        judged(id::MOUNTED, |t| (t.file_system, t.vmdk, t.device_uses) = (None, None, uses.clone()))
    };
    assert_eq!(device(&[]).0, Pass);
    let (outcome, message) = device(&["mounted at /srv", "held by dm-0"]);
    assert!(outcome == Failure && message.contains("mounted at /srv, held by dm-0"));
}

#[test]
fn a_target_that_can_not_be_used_says_what_to_do() {
    let check = |why: &str| usable("x", &TargetState::Unusable(why.to_owned()));
    let named = check("os.vmdk can't be a target: its kind is custom (a mixture): convert it");
    assert_eq!((named.outcome, named.remedy.as_deref()), (Failure, Some("convert it")));
    assert_eq!(named.message, "os.vmdk can't be a target: its kind is custom (a mixture)");
    let system = check("can't read /x: Permission denied (os error 13)");
    assert!(system.message.contains("Permission") && system.remedy.unwrap().contains("check again"));
}

#[test]
fn two_targets_with_one_uuid_fail_however_it_is_written() {
    let mut twin = sound();
    twin.subject = "[ds1] db/os.vmdk".into();
    twin.vmdk.as_mut().unwrap().uuid = Some("6000c293-0405-0607-0809-0A0B0C0D0E0F".into());
    let mut other = sound();
    other.vmdk.as_mut().unwrap().uuid = Some("60 00".into());
    let mut without = sound();
    without.vmdk.as_mut().unwrap().uuid = None;
    let targets = [sound(), twin, other, without.clone(), without];
    let outcomes: Vec<_> =
        judge_unique(&targets, |_| true).into_iter().map(|(at, check)| (at, check.outcome)).collect();
    assert_eq!(outcomes, [(0, Failure), (1, Failure), (2, Pass)]);
    let named = judge_unique(&targets, |place| place == 0);
    assert!(named.len() == 1 && named[0].1.message.contains("[ds1] db/os.vmdk"));
}
