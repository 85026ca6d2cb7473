//! The configuration once it is checked: what the rest of the agent works with.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::config::{ConfigError, load_with_source};
use proto::ids::{AgentName, DiskName, GroupName};
use proto::tls::TlsPaths;

use super::check;
use super::file::ConfigFile;
use crate::journal::WhenFull;
use crate::receive::admission::GroupRules;
use crate::retention::ThinPolicy;
use crate::target::{Datastore, TargetSpec};
use crate::vmdk::DiskKind;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this agent.
    pub name: AgentName,
    /// Where sources connect.
    pub listen: SocketAddr,
    /// Folder of the agent's small durable state.
    pub state_dir: PathBuf,
    /// Path of the control socket.
    pub control: PathBuf,
    /// Folder of the journals.
    pub retention: PathBuf,
    /// Certificates.
    pub tls: TlsPaths,
    /// Certificates for mounts over TCP; clients need one of the same authority.
    pub nbd_tls: Option<TlsPaths>,
    /// Folders of VMDKs.
    pub datastores: Vec<Datastore>,
    /// The groups that may be replicated here.
    pub groups: Vec<GroupConfig>,
}

/// One group.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// Its name.
    pub name: GroupName,
    /// The certificate that may write it.
    pub process_server: AgentName,
    /// How long points are kept.
    pub retention: Duration,
    /// What gives way when the retention volume is full.
    pub when_full: WhenFull,
    /// Bytes that the group's journal may take; none: all that the volume has.
    pub retention_bytes_max: Option<u64>,
    /// Points younger than this are not given up for want of room.
    pub keep_at_least: Duration,
    /// Which points stay as they grow older.
    pub thin: ThinPolicy,
    /// Time between application-consistent points; zero: on demand only; none: as the source has it.
    pub app_consistent_every: Option<Duration>,
    /// Its disks, in the order both agents use.
    pub disks: Vec<DiskConfig>,
}

/// One disk.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// Its name.
    pub name: DiskName,
    /// Where it is written.
    pub target: TargetSpec,
    /// What is made where there is no VMDK yet.
    pub kind: DiskKind,
}

impl Config {
    /// Reads a file and checks what can be checked without touching targets.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let (file, source) = load_with_source::<ConfigFile>(path)?;
        check::check(file, &source)
    }

    /// Checks that what the file names exists: for `run`, not for commands that only need the control socket.
    pub fn check_files(path: &Path) -> Result<(), ConfigError> {
        let (file, source) = load_with_source::<ConfigFile>(path)?;
        check::check_files(&file, &source)
    }
}

impl GroupConfig {
    /// Who may open the group, and with which disks.
    pub fn rules(&self) -> GroupRules {
        GroupRules {
            name: self.name.to_string(),
            process_server: self.process_server.to_string(),
            disks: self.disks.iter().map(|disk| disk.name.to_string()).collect(),
        }
    }
}
