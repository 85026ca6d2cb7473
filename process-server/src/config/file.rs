//! The shape of the file. Keys are a contract; values keep their place for error messages.

use std::path::PathBuf;

use proto::config::{ByteSize, HostPort, HumanDuration, NbdAddress, Spanned};
use proto::ids::{AgentName, DiskName, GroupName, MachineName};
use proto::throttle::BitRate;
use serde::Deserialize;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub name: AgentName,
    pub state_dir: Spanned<PathBuf>,
    pub cache_dir: Option<Spanned<PathBuf>>,
    pub control: Spanned<PathBuf>,
    pub tls: Tls,
    pub master_target: MasterTarget,
    pub nbd_tls: Option<Tls>,
    #[serde(default)]
    pub throttle: Vec<Throttle>,
    #[serde(default)]
    pub group: Vec<Group>,
}

/// `[tls]` and `[nbd_tls]`: PEM files.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub ca: Spanned<PathBuf>,
    pub cert: Spanned<PathBuf>,
    pub key: Spanned<PathBuf>,
}

/// `[master_target]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MasterTarget {
    pub address: HostPort,
    pub name: AgentName,
    pub rate: Option<Spanned<BitRate>>,
}

/// `[[throttle]]`: a window of the week with a cap of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Throttle {
    pub from: Spanned<String>,
    pub to: Spanned<String>,
    pub days: Option<Spanned<Vec<String>>>,
    pub rate: Spanned<BitRate>,
}

/// `[[group]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    pub name: Spanned<GroupName>,
    pub point_interval: Option<Spanned<HumanDuration>>,
    pub memory: Option<Spanned<ByteSize>>,
    pub spool: Option<Spanned<ByteSize>>,
    pub app_consistent_every: Option<Spanned<HumanDuration>>,
    pub hook: Option<Hook>,
    #[serde(default)]
    pub disk: Vec<Disk>,
    #[serde(default)]
    pub machine: Vec<Machine>,
}

/// `[group.hook]`: commands that quiesce the group's machines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hook {
    pub freeze: Spanned<String>,
    pub thaw: Spanned<String>,
    pub timeout: Option<Spanned<HumanDuration>>,
}

/// `[[group.machine]]`: the disks of one of several machines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    pub name: Spanned<MachineName>,
    #[serde(default)]
    pub disk: Vec<Disk>,
}

impl Group {
    /// Its disks in the order of their index: those of the group itself, then those of each machine.
    pub(super) fn disks(&self) -> impl Iterator<Item = (Option<&Machine>, &Disk)> {
        let own = self.disk.iter().map(|disk| (None, disk));
        own.chain(self.machine.iter().flat_map(|machine| machine.disk.iter().map(move |disk| (Some(machine), disk))))
    }
}

/// `[[group.disk]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Disk {
    pub name: Spanned<DiskName>,
    pub source: Spanned<PathBuf>,
    pub nbd: Spanned<NbdAddress>,
    #[serde(default)]
    pub exclusive: bool,
}
