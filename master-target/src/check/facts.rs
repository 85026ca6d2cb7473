//! What was found on the machine, as plain values: readers (`machine`, `disk_files`) make them, judgements (`targets`,
//! `retention`) take them.

use std::path::PathBuf;

use blockio::Holder;

/// A mounted volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Its file system.
    pub file_system: String,
    /// Its size in bytes.
    pub size: u64,
    /// What this user may still write, in bytes.
    pub free: u64,
    /// It is mounted read-only.
    pub is_read_only: bool,
    /// Its device takes no writes.
    pub is_write_protected: bool,
    /// This user may write to it.
    pub is_writable: bool,
    /// What it is used for.
    pub uses: Uses,
}

/// What a volume is used for beside retention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Its device is a target.
    pub is_target: bool,
    /// Files on it are targets.
    pub holds_targets: bool,
    /// The agent's program is on it.
    pub is_installation: bool,
    /// The agent's state is on it.
    pub is_state: bool,
}

/// What was found of a target.
#[derive(Clone, Debug)]
pub struct Target {
    /// The target as configured.
    pub subject: String,
    /// The file system that it lies on; none for a device.
    pub file_system: Option<String>,
    /// The disk itself.
    pub state: TargetState,
    /// Bytes that its source has, once it is known.
    pub source_size: Option<u64>,
    /// Who has locked it.
    pub holder: Option<Holder>,
    /// Whether this configuration's agent runs, which then is who.
    pub agent_runs: bool,
    /// Who uses its device: mounts, LVM, md, swap.
    pub device_uses: Vec<String>,
    /// What only a VMDK has.
    pub vmdk: Option<VmdkFacts>,
}

/// Whether there is a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// Not yet: it is made when its source is known.
    Missing,
    /// Of this many bytes.
    There(u64),
    /// It can't be used; what is wrong, with the remedy behind the last colon.
    Unusable(String),
}

/// Whether a VMDK's descriptor says anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Described {
    /// It does.
    #[default]
    ByDescriptor,
    /// The disk is yet to be made.
    NotYet,
    /// It can't be read.
    Unreadable,
}

/// What a VMDK's descriptor and folder say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmdkFacts {
    /// Whether there is a descriptor to say the rest.
    pub described: Described,
    /// The disk that it is a snapshot of.
    pub parent: Option<String>,
    /// Snapshots of it.
    pub snapshots: Vec<String>,
    /// `ddb.uuid`.
    pub uuid: Option<String>,
    /// `ddb.adapterType`.
    pub adapter_type: Option<String>,
    /// `ddb.toolsVersion`.
    pub tools_version: Option<String>,
    /// The machine that has it.
    pub machine: Machine,
}

/// The machine beside a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Machine {
    /// There is no `.vmx` in the disk's folder, or none that names the disk.
    #[default]
    Unknown,
    /// One that names the disk.
    Known {
        /// Its `.vmx`.
        name: String,
        /// `disk.EnableUUID`.
        shows_uuids: bool,
        /// The kind of the disk's controller, where it is said.
        controller: Option<String>,
    },
}
