//! The agent as a whole: makes the parts, connects them, and takes them down in order.
//!
//! Up: everything that can fail for want of a file, an address or a certificate comes before the first
//! group is started; clients are let in last. Down: NBD listeners first, then the groups, which save
//! what they must while the link still runs, then the link.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use jobs::{Clock, Now, Table};
use proto::config::NbdAddress;
use proto::ids::GroupName;
use proto::time::Timestamp;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{error, info, warn};

use super::error::RunError;
use super::groups::RunningGroups;
use super::shutdown::Signals;
use super::thread::GroupThread;
use crate::config::{Config, GroupConfig};
use crate::control::{Command, GroupHandle, Inbox, Mailbox, Snapshot, WakeCell, mailbox, service, watch_syncs};
use crate::quiesce::{Quiescer, keep_taking};
use crate::send::{GroupPort, Link, LinkConfig, LinkPort, port};
use nbd::{Export, Exports, Listener, TlsMode};

/// What a group's thread is made from.
#[derive(Debug)]
pub struct GroupArgs {
    /// The group as configured.
    pub config: GroupConfig,
    /// Folder for the group's own durable state; exists.
    pub state_dir: PathBuf,
    /// Folder on the cache volume for its spool, if there is one.
    pub cache_dir: Option<PathBuf>,
    /// Its end of the link.
    pub port: GroupPort,
    /// Its commands: points, NBD connections, and the order to stop.
    pub inbox: Inbox,
    /// Where the thread sets its waker before it first waits.
    pub wake: WakeCell,
}

/// A group that runs.
#[derive(Debug)]
pub struct SpawnedGroup {
    /// One for each disk, in the order of the configuration.
    pub exports: Vec<Export>,
    /// Its thread.
    pub thread: GroupThread,
}

/// Opens and locks a group's disks and starts its thread; an error is one sentence for the operator.
pub type SpawnGroup = fn(GroupArgs) -> Result<SpawnedGroup, String>;

/// A group before its thread is started.
struct PreparedGroup {
    args: GroupArgs,
    mailbox: Mailbox,
    listeners: Vec<Listener>,
}

/// Runs the agent until SIGTERM or SIGINT.
pub async fn run(config: Config, spawn_group: SpawnGroup) -> Result<(), RunError> {
    let mut signals = Signals::take().map_err(RunError::Signals)?;
    check_own_name(&config)?;
    let (prepared, ports) = prepare(&config).await?;
    let link = Link::new(link_config(&config), ports, random)?;

    let jobs = Table::open(&config.state_dir.join("jobs.json"), job_clock());
    let handles: Vec<_> =
        prepared.iter().map(|group| Arc::new(group.mailbox.clone()) as Arc<dyn GroupHandle>).collect();
    let mut syncs = JoinSet::new();
    syncs.spawn(watch_syncs(handles.clone(), jobs.clone()));
    let clock = job_clock();
    syncs.spawn(proto::clock::watch(move || {
        let now = clock();
        (now.mono, now.wall)
    }));
    let quiescers = quiescers(&config);
    let service = service(config.name.to_string(), link.peer(), link.rate(), handles.clone(), quiescers.clone(), jobs);
    let (stop_control, mut control_stopped) = watch::channel(false);
    let control = proto::uds::bind(&config.control)?;
    let control = tokio::spawn(proto::uds::serve(control, service, async move {
        _ = control_stopped.wait_for(|stop| *stop).await;
    }));

    let (stop_link, link_stopped) = watch::channel(false);
    let link = tokio::spawn(link.run(link_stopped));
    let mut groups = RunningGroups::default();
    let mut clients = JoinSet::new();
    let started = prepared.into_iter().try_for_each(|group| start(group, spawn_group, &mut groups, &mut clients));
    if started.is_ok() {
        for (group, handle) in config.groups.iter().zip(handles) {
            if let Some(quiescer) = quiescers.get(&group.name) {
                clients.spawn(keep_taking(Arc::clone(quiescer), handle, group.app_consistent_every));
            }
        }
        info!(name = %config.name, groups = config.groups.len(), "process-server runs");
        groups.watch(&mut signals).await;
    }

    drop(clients);
    let stopped = groups.stop(&mut signals).await;
    _ = stop_link.send(true);
    ended("link", link).await;
    _ = stop_control.send(true);
    ended("control server", control).await;
    info!("process-server has stopped");
    started.and(stopped)
}

/// The target grants groups to names in certificates: another name would be refused there, less clearly.
fn check_own_name(config: &Config) -> Result<(), RunError> {
    let found = proto::tls::own_names(&config.tls).map_err(RunError::Tls)?;
    if found.iter().any(|name| config.name == name.as_str()) {
        return Ok(());
    }
    let (name, file) = (config.name.clone(), config.tls.cert.clone());
    Err(RunError::OwnName { name, file, found: found.join(", ") })
}

fn link_config(config: &Config) -> LinkConfig {
    LinkConfig {
        name: config.name.clone(),
        address: config.master_target.address.clone(),
        peer_name: config.master_target.name.clone(),
        tls: config.tls.clone(),
        schedule: config.master_target.schedule.clone(),
    }
}

/// What takes the application-consistent points of the groups that have a hook.
fn quiescers(config: &Config) -> HashMap<GroupName, Arc<Quiescer>> {
    let with_hook = config.groups.iter().filter_map(|group| group.hook.clone().map(|hook| (group, hook)));
    with_hook
        .map(|(group, hook)| {
            // The guard is this very program, also after the file was replaced by a newer one.
            let program = PathBuf::from("/proc/self/exe");
            let quiescer = Quiescer::new(&group.name, hook, program, &state_dir(config, group));
            (group.name.clone(), Arc::new(quiescer))
        })
        .collect()
}

pub(super) fn state_dir(config: &Config, group: &GroupConfig) -> PathBuf {
    config.state_dir.join("groups").join(group.name.as_str())
}

/// Folders, channels and listeners of all groups; nothing runs yet.
async fn prepare(config: &Config) -> Result<(Vec<PreparedGroup>, Vec<LinkPort>), RunError> {
    let tls = match &config.nbd_tls {
        Some(paths) => TlsMode::Required(proto::tls::nbd_server_config(paths).map_err(RunError::NbdTls)?),
        None => TlsMode::Off,
    };
    let mut groups = Vec::with_capacity(config.groups.len());
    let mut ports = Vec::with_capacity(config.groups.len());
    for group in &config.groups {
        let state_dir = state_dir(config, group);
        blockio::durable::create_dir_all(&state_dir).map_err(RunError::StateDir)?;
        let mut listeners = Vec::with_capacity(group.disks.len());
        for disk in &group.disks {
            listeners.push(listen(&disk.nbd, &tls).await?);
        }
        let wake = WakeCell::default();
        let (group_port, link_port) = port(group.name.clone(), wake.clone());
        let (mailbox, inbox) = mailbox(group.name.clone(), Snapshot::starting(now()), wake.clone());
        let cache_dir = config.cache_dir.clone();
        let args = GroupArgs { config: group.clone(), state_dir, cache_dir, port: group_port, inbox, wake };
        groups.push(PreparedGroup { args, mailbox, listeners });
        ports.push(link_port);
    }
    Ok((groups, ports))
}

async fn listen(address: &NbdAddress, tls: &TlsMode) -> Result<Listener, RunError> {
    let tls = match address {
        NbdAddress::Unix(path) => {
            make_socket_folder(path)?;
            // The mode of the socket says who may connect.
            TlsMode::Off
        }
        NbdAddress::Tcp(_) => tls.clone(),
    };
    Ok(Listener::bind(address, tls).await?)
}

/// Sockets live in folders like /run/process-server, which do not survive a reboot.
fn make_socket_folder(socket: &Path) -> Result<(), RunError> {
    let Some(folder) = socket.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|source| RunError::SocketFolder { path: folder.to_owned(), source })
}

fn start(
    group: PreparedGroup,
    spawn_group: SpawnGroup,
    groups: &mut RunningGroups,
    clients: &mut JoinSet<()>,
) -> Result<(), RunError> {
    let PreparedGroup { args, mailbox, listeners } = group;
    // Opens disks and waits for their locks, with nothing else to be done meanwhile.
    let spawned = tokio::task::block_in_place(|| spawn_group(args));
    let failed = |reason| RunError::Group { group: mailbox.name().clone(), reason };
    let SpawnedGroup { exports, thread } = spawned.map_err(failed)?;
    assert_eq!(exports.len(), listeners.len(), "a group has one export for each disk");
    groups.add(mailbox.clone(), thread);
    for (disk, (listener, export)) in listeners.into_iter().zip(exports).enumerate() {
        let exports = Arc::new(Exports::new(vec![export])?);
        let mailbox = mailbox.clone();
        clients.spawn(listener.serve(exports, move |connected| {
            if mailbox.send(Command::Connection { disk, connected }).is_err() {
                warn!(group = %mailbox.name(), disk, "an NBD client was turned away: the group is busy or has stopped");
            }
        }));
    }
    Ok(())
}

/// Waits for a task that was told to end.
async fn ended<T>(what: &str, task: JoinHandle<T>) {
    if let Err(failed) = task.await {
        error!(%failed, "the {what} did not end well");
    }
}

/// Jitter needs no secrecy: without the system's randomness the attempts are merely in step.
fn random() -> u64 {
    getrandom::u64().unwrap_or(0)
}

#[expect(clippy::disallowed_methods, reason = "the shell tells the jobs what time it is")]
fn job_clock() -> Clock {
    let started = Instant::now();
    Box::new(move || Now { mono: started.elapsed(), wall: Timestamp::from_system_time(SystemTime::now()) })
}

#[expect(clippy::disallowed_methods, reason = "the shell says when a group's first state began")]
fn now() -> Instant {
    Instant::now()
}
