//! [`Preflight`]: all checks of a configuration, or of one group that is about to be accepted.
//!
//! The same judgements in both places. A group that is about to be accepted is not judged by who has its targets locked: the
//! opening that follows asks for the locks, and waits for an agent that was killed a moment ago.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use super::{
    disk_files::{device_of, target},
    facts::{Target, Volume},
    machine::MachineFiles,
    mounts::DeviceNumber,
    report::{Check, GroupReport, Outcome, Report, VolumeReport},
    retention::{judge_configured, judge_volume},
    targets::{id, judge, judge_unique},
};
use crate::{
    config::{Config, GroupConfig},
    group::Remembered,
    target::{Datastore, TargetSpec},
};

/// Name of the file that a journal is locked by, in its folder.
const JOURNAL_LOCK: &str = "lock";

/// Why a group isn't accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the preflight failed: {}", .0.iter().map(words).collect::<Vec<_>>().join("; "))]
pub struct Refused(Vec<Check>);

fn words(check: &Check) -> String {
    let remedy = check.remedy.as_deref().unwrap_or_default();
    format!("{} ({}): {}: {remedy}", check.subject, check.id, check.message)
}

/// What is checked, and where.
pub struct Preflight<'a> {
    /// All groups: a target must differ from those of the others.
    pub groups: &'a [GroupConfig],
    /// Folders of VMDKs.
    pub datastores: &'a [Datastore],
    /// The retention folder.
    pub retention: &'a Path,
    /// The agent's state folder.
    pub state_dir: &'a Path,
    /// The kernel's files.
    pub machine: &'a MachineFiles,
}

impl<'a> Preflight<'a> {
    /// The checks of a configuration.
    pub fn of(config: &'a Config, machine: &'a MachineFiles) -> Preflight<'a> {
        Preflight {
            groups: &config.groups,
            datastores: &config.datastores,
            retention: &config.retention,
            state_dir: &config.state_dir,
            machine,
        }
    }

    /// Every check of every group, and every volume. `control` is where this agent would answer; it need not run.
    pub fn report(&self, name: &str, control: &Path) -> Report {
        // Only to learn whether it is there: nothing is asked, and a lock of its own is none of somebody else.
        let agent_runs = UnixStream::connect(control).is_ok();
        let sizes = |group: &GroupConfig| -> Vec<(String, u64)> {
            let path = self.retention.join(group.name.as_str()).join("disks.json");
            let remembered = Remembered::load(&path).ok().flatten();
            // The newest of a name: one that was let go may have had another size.
            let disks = remembered.into_iter().flat_map(|known| known.disks).rev();
            disks.map(|disk| (disk.name, disk.size)).collect()
        };
        let groups = self.groups.iter().map(|group| {
            let mut checks = self.checks_of(group, &sizes(group), agent_runs);
            checks.push(self.retention_check(group, agent_runs));
            GroupReport { name: group.name.to_string(), checks }
        });
        let groups = groups.collect();
        Report::new(name.to_owned(), groups, self.volumes().iter().map(judge_volume).collect::<Vec<VolumeReport>>())
    }

    /// Whether a group can be accepted whose source has disks of these names and sizes.
    ///
    /// # Errors
    /// The checks that failed.
    pub fn admit(&self, group: &GroupConfig, sizes: &[(String, u64)]) -> Result<(), Refused> {
        let mut checks = self.checks_of(group, sizes, true);
        checks.push(self.retention_check(group, true));
        checks.retain(|check| check.outcome == Outcome::Failure && check.id != id::IN_USE);
        if checks.is_empty() { Ok(()) } else { Err(Refused(checks)) }
    }

    /// The checks of a group's targets, disk by disk.
    fn checks_of(&self, group: &GroupConfig, sizes: &[(String, u64)], agent_runs: bool) -> Vec<Check> {
        let size_of = |name: &str| sizes.iter().find(|(known, _)| known == name).map(|(_, size)| *size);
        let facts = |of: &GroupConfig| -> Vec<Target> {
            let is_it = of.name == group.name;
            let size = |name: &str| if is_it { size_of(name) } else { None };
            let read = |disk: &crate::config::DiskConfig| {
                target(disk, self.datastores, self.machine, size(disk.name.as_str()), agent_runs)
            };
            of.disks.iter().map(read).collect()
        };
        let own = facts(group);
        let others = self.groups.iter().filter(|other| other.name != group.name).flat_map(facts);
        let count = own.len();
        let all: Vec<Target> = own.into_iter().chain(others).collect();
        let unique = judge_unique(&all, |place| place < count);
        let mut checks = Vec::new();
        for (place, target) in all.iter().take(count).enumerate() {
            checks.extend(judge(target));
            checks.extend(unique.iter().filter(|(at, _)| *at == place).map(|(_, check)| check.clone()));
        }
        checks
    }

    fn retention_check(&self, group: &GroupConfig, agent_runs: bool) -> Check {
        let subject = self.retention.display().to_string();
        let mount = self.retention.is_dir().then(|| self.machine.mount_of(self.retention)).flatten();
        let volume = mount.map(|mount| {
            let mut volume = self.with_uses(mount.device, self.machine.volume(mount));
            volume.is_writable = MachineFiles::is_writable(self.retention);
            volume
        });
        let locked_by = if agent_runs { None } else { self.journal_locked_by(group) };
        judge_configured(&subject, volume.as_ref(), locked_by)
    }

    /// The process that has a journal of the group locked.
    fn journal_locked_by(&self, group: &GroupConfig) -> Option<u32> {
        let folder = self.retention.join(group.name.as_str());
        let journals = std::fs::read_dir(folder).into_iter().flatten().flatten();
        journals.map(|journal| journal.path().join(JOURNAL_LOCK)).find_map(|lock| self.machine.locked_by(&lock))
    }

    fn volumes(&self) -> Vec<Volume> {
        self.machine.volumes().into_iter().map(|(device, volume)| self.with_uses(device, volume)).collect()
    }

    /// A volume with what it is used for.
    fn with_uses(&self, device: DeviceNumber, mut volume: Volume) -> Volume {
        let holds = |path: &Path| self.machine.mount_of(path).is_some_and(|mount| mount.device == device);
        for disk in self.groups.iter().flat_map(|group| &group.disks) {
            match &disk.target {
                TargetSpec::Path(path) => match device_of(path) {
                    Some(target) => volume.uses.is_target |= self.machine.is_on(device, target),
                    None => volume.uses.holds_targets |= holds(path),
                },
                TargetSpec::Vmdk { datastore, .. } => {
                    let root = self.datastores.iter().find(|known| known.name == *datastore);
                    volume.uses.holds_targets |= root.is_some_and(|root| holds(&root.path));
                }
            }
        }
        volume.uses.is_state = holds(self.state_dir);
        volume.uses.is_installation = program().is_some_and(|program| holds(&program));
        volume
    }
}

/// The file that runs.
fn program() -> Option<PathBuf> {
    std::env::current_exe().ok()
}
