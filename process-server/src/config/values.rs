//! From the file to checked values: everything that can be judged without looking at this machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::config::{ConfigError, HostPort, NbdAddress, Source, Spanned};
use proto::ids::{AgentName, DiskName, GroupName};
use proto::limits::{DISKS_PER_GROUP_MAX, GROUPS_PER_CONNECTION_MAX, UNIX_PATH_BYTES_MAX};
use proto::tls::TlsPaths;

use super::{Schedule, file, host, quiesce, throttle};
use crate::quiesce::Hook;

/// `point_interval` where the file has none.
const POINT_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
/// Shorter intervals would spend more on sets than on content.
const POINT_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// A day without a point is no protection.
const POINT_INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);
/// `memory` where the file has none, bytes.
const MEMORY_DEFAULT: u64 = 256 << 20;
/// Less could not hold the requests that may be in flight, bytes.
const MEMORY_MIN: u64 = 64 << 20;
/// `spool` where the file has a `cache_dir` and no `spool`, bytes: five minutes of 100 Mbit/s.
const SPOOL_DEFAULT: u64 = 4 << 30;
/// A smaller spool would be full before it helped, bytes.
const SPOOL_MIN: u64 = 64 << 20;

/// A checked `process-server.toml`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this agent, as in its certificate.
    pub name: AgentName,
    /// Folder for what must survive a restart.
    pub state_dir: PathBuf,
    /// Folder on the cache volume, for spools; nothing in it survives a restart.
    pub cache_dir: Option<PathBuf>,
    /// Unix socket of the control interface.
    pub control: PathBuf,
    /// Certificates for the link.
    pub tls: TlsPaths,
    /// The other side of the link.
    pub master_target: MasterTargetConfig,
    /// Certificates for NBD over TCP.
    pub nbd_tls: Option<NbdTlsConfig>,
    /// At least one.
    pub groups: Vec<GroupConfig>,
}

/// The master-target.
#[derive(Debug, Clone)]
pub struct MasterTargetConfig {
    /// Where it listens.
    pub address: HostPort,
    /// Its name, which must be in its certificate.
    pub name: AgentName,
    /// What may leave for it, hour by hour.
    pub schedule: Schedule,
}

/// Certificates of the NBD listeners; clients need one of the same authority.
pub type NbdTlsConfig = TlsPaths;

/// One replication group.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// Unique.
    pub name: GroupName,
    /// Time between points.
    pub point_interval: Duration,
    /// Captured content that may wait for the target, bytes of memory.
    pub memory_bytes: u64,
    /// And bytes of the cache volume; 0 where it has no spool.
    pub spool_bytes: u64,
    /// Quiesces the group's machines for application-consistent points.
    pub hook: Option<Hook>,
    /// Time between application-consistent points; none: only on demand.
    pub app_consistent_every: Option<Duration>,
    /// At least one; the order is their index on the wire.
    pub disks: Vec<DiskConfig>,
}

/// One protected disk.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// Unique in its group.
    pub name: DiskName,
    /// File or block device.
    pub source: PathBuf,
    /// Where clients find it.
    pub nbd: NbdAddress,
    /// The operator vouches that only this agent writes it, also while the host reboots (REVIEW W9).
    pub exclusive: bool,
}

/// Reads the file and checks its values, for the commands that talk to a running agent.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let (file, source) = proto::config::load_with_source(path)?;
    check(&file, &source)
}

/// As [`load`], and checks that this machine can run it.
pub fn load_for_run(path: &Path) -> Result<Config, ConfigError> {
    let (file, source) = proto::config::load_with_source(path)?;
    let config = check(&file, &source)?;
    host::check(&file, &source)?;
    Ok(config)
}

fn check(file: &file::File, source: &Source) -> Result<Config, ConfigError> {
    absolute(source, &file.state_dir, "state_dir")?;
    if let Some(cache_dir) = &file.cache_dir {
        absolute(source, cache_dir, "cache_dir")?;
    }
    absolute(source, &file.control, "control")?;
    if file.control.get_ref().as_os_str().len() > UNIX_PATH_BYTES_MAX {
        let what = format!("control: the path of a unix socket has at most {UNIX_PATH_BYTES_MAX} bytes");
        return Err(source.invalid(&file.control, what, "choose a shorter path"));
    }
    let config = Config {
        name: file.name.clone(),
        state_dir: file.state_dir.get_ref().clone(),
        cache_dir: file.cache_dir.as_ref().map(|path| path.get_ref().clone()),
        control: file.control.get_ref().clone(),
        tls: tls(source, &file.tls)?,
        master_target: MasterTargetConfig {
            address: file.master_target.address.clone(),
            name: file.master_target.name.clone(),
            schedule: throttle::check(file, source)?,
        },
        nbd_tls: file.nbd_tls.as_ref().map(|paths| tls(source, paths)).transpose()?,
        groups: file.group.iter().map(|group| check_group(file, source, group)).collect::<Result<_, _>>()?,
    };
    check_groups_together(file, source)?;
    check_nbd(file, source)?;
    Ok(config)
}

fn absolute(source: &Source, path: &Spanned<PathBuf>, key: &str) -> Result<(), ConfigError> {
    if path.get_ref().is_absolute() {
        return Ok(());
    }
    let what = format!("{key}: {:?} is not an absolute path", path.get_ref().display().to_string());
    Err(source.invalid(path, what, "write the whole path, beginning with /"))
}

fn tls(source: &Source, paths: &file::Tls) -> Result<TlsPaths, ConfigError> {
    for (path, key) in [(&paths.ca, "ca"), (&paths.cert, "cert"), (&paths.key, "key")] {
        absolute(source, path, key)?;
    }
    Ok(TlsPaths {
        ca: paths.ca.get_ref().clone(),
        cert: paths.cert.get_ref().clone(),
        key: paths.key.get_ref().clone(),
    })
}

fn check_group(file: &file::File, source: &Source, group: &file::Group) -> Result<GroupConfig, ConfigError> {
    let name = group.name.get_ref().clone();
    let count = group.disks().count();
    if !(1..=DISKS_PER_GROUP_MAX).contains(&count) {
        let what = format!("group {name} has {count} disks, 1 to {DISKS_PER_GROUP_MAX} are possible");
        let remedy = "give it [[group.disk]] tables, or [[group.machine]] tables with disks, or remove it";
        return Err(source.invalid(&group.name, what, remedy));
    }
    let point_interval = group.point_interval.as_ref().map_or(POINT_INTERVAL_DEFAULT, |at| at.get_ref().0);
    if let Some(at) = &group.point_interval
        && !(POINT_INTERVAL_MIN..=POINT_INTERVAL_MAX).contains(&point_interval)
    {
        let what = format!("point_interval of group {name} is {}", at.get_ref());
        return Err(source.invalid(at, what, "choose one from 100ms to 24h"));
    }
    let memory_bytes = group.memory.as_ref().map_or(MEMORY_DEFAULT, |at| at.get_ref().0);
    if let Some(at) = &group.memory
        && memory_bytes < MEMORY_MIN
    {
        let what = format!("memory of group {name} is {memory_bytes} bytes, too little for the writes in flight");
        return Err(source.invalid(at, what, "give it 64MiB at least; 256MiB is the default"));
    }
    let mut disks = Vec::with_capacity(count);
    for (machine, disk) in group.disks() {
        absolute(source, &disk.source, "source")?;
        disks.push(DiskConfig {
            name: full_name(source, machine, disk)?,
            source: disk.source.get_ref().clone(),
            nbd: disk.nbd.get_ref().clone(),
            exclusive: disk.exclusive,
        });
    }
    let hook = group.hook.as_ref().map(|table| quiesce::hook(source, table)).transpose()?;
    let app_consistent_every = quiesce::every(source, group)?;
    let spool_bytes = check_spool(file, source, group)?;
    Ok(GroupConfig { name, point_interval, memory_bytes, spool_bytes, hook, app_consistent_every, disks })
}

/// A disk's name in its group: with that of its machine, where there are several.
fn full_name(source: &Source, machine: Option<&file::Machine>, disk: &file::Disk) -> Result<DiskName, ConfigError> {
    let own = disk.name.get_ref();
    let name = machine.map_or_else(|| Ok(own.clone()), |machine| machine.name.get_ref().disk(own));
    name.map_err(|error| source.invalid(&disk.name, error.to_string(), "choose shorter names"))
}

fn check_spool(file: &file::File, source: &Source, group: &file::Group) -> Result<u64, ConfigError> {
    let Some(at) = &group.spool else {
        return Ok(file.cache_dir.as_ref().map_or(0, |_| SPOOL_DEFAULT));
    };
    let (bytes, name) = (at.get_ref().0, group.name.get_ref());
    if bytes > 0 && file.cache_dir.is_none() {
        let what = format!("spool of group {name} is {bytes} bytes, but there is no cache_dir for it");
        return Err(source.invalid(at, what, "add cache_dir, a folder on a volume for it, or remove spool"));
    }
    if (1..SPOOL_MIN).contains(&bytes) {
        let what = format!("spool of group {name} is {bytes} bytes, too little to help");
        return Err(source.invalid(at, what, "give it 64MiB at least, or \"0B\" for none; 4GiB is the default"));
    }
    Ok(bytes)
}

fn check_groups_together(file: &file::File, source: &Source) -> Result<(), ConfigError> {
    if file.group.is_empty() {
        return Err(source.invalid_file("there is no group", "add a [[group]] with a [[group.disk]]"));
    }
    if let Some(group) = file.group.get(GROUPS_PER_CONNECTION_MAX) {
        let what = format!("there are more than {GROUPS_PER_CONNECTION_MAX} groups");
        return Err(source.invalid(&group.name, what, "give the rest to another process-server"));
    }
    let mut groups = HashMap::new();
    for group in &file.group {
        let name = group.name.get_ref();
        unique(source, &mut groups, name.clone(), &group.name, || format!("a second group is named {name}"))?;
        let mut machines = HashMap::new();
        for machine in &group.machine {
            let what = || format!("a second machine of group {name} is named {}", machine.name.get_ref());
            unique(source, &mut machines, machine.name.get_ref().clone(), &machine.name, what)?;
        }
        let mut disks = HashMap::new();
        for (machine, disk) in group.disks() {
            let key = full_name(source, machine, disk)?;
            let what = || format!("a second disk of group {name} is named {key}");
            unique(source, &mut disks, key.clone(), &disk.name, what)?;
        }
    }
    Ok(())
}

fn check_nbd(file: &file::File, source: &Source) -> Result<(), ConfigError> {
    let mut addresses = HashMap::new();
    for (_, disk) in file.group.iter().flat_map(file::Group::disks) {
        let address = disk.nbd.get_ref();
        unique(source, &mut addresses, address.clone(), &disk.nbd, || {
            format!("{address} is the nbd address of two disks")
        })?;
        match address {
            NbdAddress::Unix(path) if path == file.control.get_ref() => {
                let what = format!("{address} is the control socket of this agent");
                return Err(source.invalid(&disk.nbd, what, "choose another path"));
            }
            NbdAddress::Tcp(at) if !at.is_loopback() && file.nbd_tls.is_none() => {
                let what =
                    format!("{address} can be reached from beyond this machine, and without TLS so could the disk");
                let remedy = "add [nbd_tls] with ca, cert and key, or use unix:/PATH or tcp:127.0.0.1:PORT";
                return Err(source.invalid(&disk.nbd, what, remedy));
            }
            NbdAddress::Unix(_) | NbdAddress::Tcp(_) => {}
        }
    }
    Ok(())
}

/// Refuses the second of two equal values, naming the line of the first.
pub(super) fn unique<K: std::hash::Hash + Eq, T>(
    source: &Source,
    seen: &mut HashMap<K, usize>,
    key: K,
    at: &Spanned<T>,
    what: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    let line = source.line_of(at.span().start);
    match seen.insert(key, line) {
        None => Ok(()),
        Some(first) => Err(source.invalid(at, format!("{}, the first on line {first}", what()), "change one of them")),
    }
}
