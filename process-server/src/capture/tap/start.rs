//! Opens and locks a group's disks, reads its durable state and starts its thread.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockio::{Access, BlockFile, EngineKind, IoError, LockError, LockRole, durable};
use proto::ids::GroupName;
use tracing::info;

use super::spool::SpoolPlace;
use super::state::{StateError, StateFile};
use super::thread::{self, TapArgs, TapDisk};
use crate::cli::{GroupArgs, GroupThread, SpawnedGroup};
use crate::config::{DiskConfig, GroupConfig};
use crate::dirty::{Exact, ExactError, Identity, LOCK_PATIENCE, Layout, Marks, MarksError, Sight};
use crate::group::{CatchUpReason, Tracking};
use nbd::Export;

/// Time for a device to become free: the last writes of an agent that was killed hold it until they have landed.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);
/// Block that clients should prefer.
const BLOCK_PREFERRED: u32 = 4096;
/// Longest read or write of a client.
const BLOCK_MAX: u32 = 32 << 20;

/// Why a group could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A protected disk could not be opened or flushed.
    #[error("disk {disk}: {source}; check that the file or device exists, that this user may write it, and its health")]
    Open {
        /// The disk.
        disk: String,
        /// What failed.
        source: IoError,
    },
    /// Somebody else uses the disk.
    #[error("disk {disk}: {source}")]
    Lock {
        /// The disk.
        disk: String,
        /// Who, and what to do.
        source: LockError,
    },
    /// The size of a disk can't be replicated.
    #[error("disk {disk}: {} has {size} bytes, which is no multiple of its sector of {unit} bytes; resize it", path.display())]
    Size {
        /// The disk.
        disk: String,
        /// Its source.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// Its sector.
        unit: u64,
    },
    /// The group's durable state can't be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The write-intent marks can't be used.
    #[error(transparent)]
    Marks(#[from] MarksError),
    /// The record of the last stop can't be removed.
    #[error(transparent)]
    Exact(#[from] ExactError),
    /// A protected disk can't be looked at.
    #[error("disk {disk}: it can't be recognised: {source}; check its path")]
    Identity {
        /// The disk.
        disk: String,
        /// What failed.
        source: io::Error,
    },
    /// The kernel refused what the thread needs.
    #[error("can't start the group's thread: {0}; check the limits on memory, threads and open files")]
    Thread(io::Error),
}

/// Starts a group; the error is one sentence for the operator.
///
/// # Errors
/// The text of a [`StartError`].
pub fn start(args: GroupArgs) -> Result<SpawnedGroup, String> {
    try_start(args).map_err(|error| error.to_string())
}

/// Lets a group count on after a start that its target knows (`StateFile::claim`). The error is one sentence for the operator.
///
/// # Errors
/// The agent runs, or its state can't be written.
pub fn claim(group: &GroupName, state_dir: &Path, past: u64) -> Result<(), String> {
    let claimed = || {
        durable::create_dir_all(state_dir).map_err(|source| StateError::Io { group: group.clone(), source })?;
        // A running agent holds them.
        let _marks = Marks::lock(state_dir, group)?;
        Ok::<_, StartError>(StateFile::claim(state_dir, group, past)?)
    };
    claimed().map_err(|error| error.to_string())
}

fn try_start(args: GroupArgs) -> Result<SpawnedGroup, StartError> {
    let GroupArgs { config, state_dir, cache_dir, port, inbox, wake } = args;
    let disks: Vec<TapDisk> = config.disks.iter().map(|disk| open(&config, disk)).collect::<Result<_, _>>()?;
    let mut state = StateFile::open(&state_dir, &config.name)?;
    let (marks, tracking) = recall(&config, &disks, &mut state)?;
    let exports = disks.iter().map(|disk| disk.export.clone()).collect();
    let mut source_instance = [0; 16];
    getrandom::fill(&mut source_instance).map_err(|error| StartError::Thread(io::Error::other(error)))?;
    let tap = TapArgs {
        name: config.name.to_string(),
        disks,
        state,
        marks,
        tracking,
        memory_bytes: config.memory_bytes,
        spool: cache_dir.filter(|_| config.spool_bytes > 0).map(|folder| SpoolPlace {
            folder,
            group: config.name.clone(),
            bytes: config.spool_bytes,
        }),
        point_interval: config.point_interval,
        source_instance,
        port,
        inbox,
        wake,
        engine: EngineKind::Auto,
    };
    let (started, ready) = std::sync::mpsc::sync_channel(1);
    let thread = GroupThread::start(format!("group-{}", config.name), move || {
        thread::run(tap, &started);
        Ok(())
    })
    .map_err(StartError::Thread)?;
    let result = ready.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended at once")));
    result.map_err(StartError::Thread)?;
    Ok(SpawnedGroup { exports, thread })
}

/// What is known of the disks from earlier starts (rules S10 and S12, REVIEW W9).
fn recall(
    config: &GroupConfig,
    disks: &[TapDisk],
    state: &mut StateFile,
) -> Result<(Arc<BlockFile>, Tracking), StartError> {
    let look = |(disk, tap): (&DiskConfig, &TapDisk)| {
        Identity::of(disk.name.as_str(), &disk.source, tap.file.size())
            .map_err(|source| StartError::Identity { disk: disk.name.to_string(), source })
    };
    let now: Vec<Identity> = config.disks.iter().zip(disks).map(look).collect::<Result<_, _>>()?;
    let exact = Exact::take(state.folder(), &config.name)?;
    let exclusive: Vec<bool> = config.disks.iter().map(|disk| disk.exclusive).collect();
    let doubt = doubt(&now, &exclusive, state.disks(), exact.as_ref());
    let layout = Layout::of(now.iter().map(|disk| disk.size));
    // Doubt is durable in the marks before the disks are known for what they are now.
    let Marks { file, intent, doubt } = Marks::open(state.folder(), &config.name, layout, doubt)?;
    if doubt.is_some() {
        state.set_disks(now)?;
    }
    let tracking = match (doubt, exact.filter(|exact| exact.commit == intent.committed())) {
        (Some(why), _) => {
            info!(group = %config.name, why, "all blocks of the group's disks are compared with the target");
            Tracking::marked(intent, CatchUpReason::SourceDoubt)
        }
        (None, Some(exact)) => Tracking::exact(intent, exact),
        (None, None) => {
            info!(group = %config.name, "the agent did not end cleanly: what it was writing is compared with the target");
            Tracking::marked(intent, CatchUpReason::SourceCrash)
        }
    };
    Ok((file, tracking))
}

/// Why what is remembered of the disks does not count, if it does not.
fn doubt(now: &[Identity], exclusive: &[bool], remembered: &[Identity], exact: Option<&Exact>) -> Option<String> {
    if remembered.is_empty() {
        return Some("the group is protected for the first time".to_owned());
    }
    let is_other = |(now, before): (&Identity, &Identity)| now.sight(before) == Sight::Other;
    if now.len() != remembered.len() || now.iter().zip(remembered).any(is_other) {
        return Some("the disks are not the ones of the last start".to_owned());
    }
    let left = exact?;
    let is_trusted = |(now, left, exclusive): (&Identity, &Identity, bool)| {
        now.sight(left) == Sight::Untouched || (exclusive && now.was_only_away(left))
    };
    let mut disks = now.iter().zip(&left.disks).zip(exclusive).map(|((now, left), exclusive)| (now, left, *exclusive));
    let changed = disks.find(|disk| !is_trusted(*disk));
    changed.map(|(disk, ..)| format!("disk {} may have been written while the agent was stopped", disk.name))
}

fn open(group: &GroupConfig, config: &DiskConfig) -> Result<TapDisk, StartError> {
    let disk = config.name.to_string();
    let failed = |source| StartError::Open { disk: disk.clone(), source };
    let file = BlockFile::open_within(&config.source, Access::ReadWrite, BUSY_PATIENCE).map_err(failed)?;
    file.lock_within(LockRole::SourceDisk, LOCK_PATIENCE)
        .map_err(|source| StartError::Lock { disk: disk.clone(), source })?;
    // What an earlier agent wrote and read was perhaps never flushed (S14).
    file.sync().map_err(failed)?;
    let (size, unit) = (file.size(), u64::from(file.alignment()));
    if !size.is_multiple_of(unit) {
        return Err(StartError::Size { disk, path: config.source.clone(), size, unit });
    }
    let export = Export {
        name: format!("{}/{}", group.name, config.name),
        size,
        description: format!("protected disk {} of group {}", config.name, group.name),
        block_min: file.alignment(),
        block_preferred: BLOCK_PREFERRED.max(file.alignment()),
        block_max: BLOCK_MAX,
        read_only: false,
    };
    Ok(TapDisk { file: Arc::new(file), export })
}
