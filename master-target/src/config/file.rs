//! The shape of `master-target.toml`: keys and types, as written. `check` knows what the values may be.

use std::net::SocketAddr;
use std::path::PathBuf;

use proto::config::{ByteSize, HumanDuration, Spanned};
use proto::ids::{AgentName, DiskName, GroupName, MachineName};
use proto::tls::TlsPaths;
use serde::Deserialize;

use crate::journal::WhenFull;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigFile {
    pub name: AgentName,
    pub listen: SocketAddr,
    pub state_dir: Spanned<PathBuf>,
    pub control: Spanned<PathBuf>,
    #[serde(default = "retention_default")]
    pub retention: Spanned<PathBuf>,
    pub tls: Spanned<TlsPaths>,
    pub nbd_tls: Option<Spanned<TlsPaths>>,
    #[serde(default)]
    pub datastore: Vec<DatastoreTable>,
    #[serde(default)]
    pub group: Vec<GroupTable>,
}

/// Where a retention volume is mounted where nothing is said.
fn retention_default() -> Spanned<PathBuf> {
    Spanned::new(0..0, crate::check::RETENTION_DEFAULT.into())
}

/// `[[datastore]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DatastoreTable {
    pub name: Spanned<String>,
    pub path: Spanned<PathBuf>,
}

/// `[[group]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupTable {
    pub name: Spanned<GroupName>,
    pub process_server: AgentName,
    pub retention: Option<Spanned<HumanDuration>>,
    #[serde(default)]
    pub when_full: WhenFull,
    pub retention_size: Option<Spanned<ByteSize>>,
    pub keep_at_least: Option<Spanned<HumanDuration>>,
    pub thin: Option<Spanned<Vec<ThinTable>>>,
    pub app_consistent_every: Option<Spanned<HumanDuration>>,
    #[serde(default)]
    pub disk: Vec<DiskTable>,
    #[serde(default)]
    pub machine: Vec<MachineTable>,
}

/// `thin`: points older than `after` are kept `keep` apart.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ThinTable {
    pub after: HumanDuration,
    pub keep: HumanDuration,
}

/// `[[group.machine]]`: the disks of one of several machines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineTable {
    pub name: Spanned<MachineName>,
    #[serde(default)]
    pub disk: Vec<DiskTable>,
}

impl GroupTable {
    /// Its disks in the order of their index: those of the group itself, then those of each machine.
    pub(super) fn disks(&self) -> impl Iterator<Item = (Option<&MachineTable>, &DiskTable)> {
        let own = self.disk.iter().map(|disk| (None, disk));
        own.chain(self.machine.iter().flat_map(|machine| machine.disk.iter().map(move |disk| (Some(machine), disk))))
    }
}

/// `[[group.disk]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskTable {
    pub name: Spanned<DiskName>,
    pub target: Spanned<String>,
    pub kind: Option<Spanned<String>>,
}
