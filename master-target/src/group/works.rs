//! What a group works with once its disks are known: the journal, the locked disks, and the two threads.
//!
//! Opening waits for locks that a process killed a moment ago still holds through its last writes (rule S14). A target
//! that somebody else wrote since this agent did is found by its identity; then the journal tells of a disk that is no
//! more: it is left where it is, a new one begins, and the source must send or compare everything (rules J14 and L1).

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use proto::replication::DiskSpec;
use proto::tls::TlsPaths;
use tokio::sync::{Semaphore, mpsc};

use super::apply_core::ApplyCore;
use super::apply_thread::{ApplyThread, ToApply};
use super::board::Board;
use super::journal_core::JournalCore;
use super::journal_thread::{JournalThread, ToJournal};
use super::remembered::{Remembered, RememberedDisk, RememberedError};
use super::roster::{self, Member, Roster};
use super::target_disks::TargetDisks;
use crate::agent::Clock;
use crate::apply::Applier;
use crate::check::{MachineFiles, Preflight, Refused};
use crate::config::GroupConfig;
use crate::journal::{DirVolume, Journal, JournalError, MANIFEST, Options, Standing};
use crate::target::{Datastore, Identity, Opened, TargetError, TargetFault, open_or_create};
use crate::vmdk::Cid;

/// Memory for frames between arrival and journal or disk, per group, KiB.
const RECEIVE_KIB: usize = 32 << 10;
/// Commands that wait for a thread. More than the frames that the memory lets in, so that messages never wait behind it.
const COMMANDS_MAX: usize = 4096;
/// Memory for comparisons between arrival and answer, per group, KiB. Their own, so that they never wait behind content
/// and messages of other groups never behind them: a source has far fewer than the 512 that always fit.
const COMPARE_KIB: usize = 8 << 10;
/// Least memory that one frame counts for, KiB: bounds the number of waiting frames.
pub const FRAME_KIB_MIN: usize = 16;
/// How long to wait for a lock that a killed process may still hold.
const LOCK_WAIT: Duration = Duration::from_secs(15);
/// How often it is tried.
const LOCK_RETRY: Duration = Duration::from_millis(250);

const _: () = assert!((RECEIVE_KIB + COMPARE_KIB) / FRAME_KIB_MIN < COMMANDS_MAX);
const _: () = assert!(COMPARE_KIB * 1024 >= proto::limits::MESSAGE_BYTES_MAX);

/// The journal of a group on the retention volume.
pub type GroupJournal = Journal<DirVolume>;
/// What writes the disks of a group.
pub type GroupApplier = Applier<DirVolume, TargetDisks>;

/// Where a group's things are, and what time it is.
#[derive(Debug, Clone)]
pub struct Site {
    /// The retention volume.
    pub retention: PathBuf,
    /// Folders of VMDKs.
    pub datastores: Vec<Datastore>,
    /// Every group of the configuration, for what one must not share with another.
    pub groups: Arc<[GroupConfig]>,
    /// Folder of the agent's small state; what clients write to mounts goes there, too.
    pub state_dir: PathBuf,
    /// Certificates for mounts over TCP.
    pub nbd_tls: Option<TlsPaths>,
    /// The clocks.
    pub clock: Clock,
}

impl Site {
    /// The folder of a group on the retention volume.
    pub fn folder(&self, group: &GroupConfig) -> PathBuf {
        self.retention.join(group.name.as_str())
    }

    /// The file of what is remembered of a group.
    pub fn remembered(&self, group: &GroupConfig) -> PathBuf {
        self.folder(group).join("disks.json")
    }
}

/// Why a group can't be worked with.
#[derive(Debug, thiserror::Error)]
pub enum WorksError {
    /// The journal.
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    /// A target.
    #[error("disk \"{disk}\": {source}")]
    Target {
        /// Name of the disk.
        disk: String,
        /// What happened, with the remedy.
        source: Box<TargetError>,
    },
    /// A failback under way, and a target that is not as the agent left it.
    #[error(
        "a disk was written or replaced by somebody else while the group fails back: stop the machine that uses it and bring          the disk back as it was, from a snapshot or copy; or cancel with `master-target failback --cancel`, which gives up          all points"
    )]
    ForeignInFailback,
    /// A disk was removed, and nobody knows where it was.
    #[error(
        "disk \"{disk}\", which was removed from the group: its target is not known; restore disks.json beside the journal"
    )]
    NoTarget {
        /// Name of the disk.
        disk: String,
    },
    /// What was there when the group failed is there no more.
    #[error(
        "{} has vanished: mount the retention volume again; if it was moved away to begin anew, restart the agent", path.display()
    )]
    Vanished {
        /// The file.
        path: PathBuf,
    },
    /// What would make a failback fail.
    #[error(transparent)]
    Preflight(#[from] Refused),
    /// The file beside the journal.
    #[error(transparent)]
    Remembered(#[from] RememberedError),
    /// The folder of the group on the retention volume.
    #[error(transparent)]
    Folder(#[from] blockio::IoError),
    /// The I/O engine or a thread can't be made.
    #[error("{what}: {source}; free memory or processes and restart the agent")]
    System {
        /// What was to be made.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A group's journal, disks and threads.
pub struct Works {
    /// The disks, locked, by index; none of a disk that was let go, or was removed and can't be opened.
    pub opened: Vec<Option<Opened>>,
    /// What they are.
    pub roster: Roster,
    /// To the journal thread.
    pub to_journal: mpsc::Sender<ToJournal>,
    /// To the apply thread.
    pub to_apply: mpsc::Sender<ToApply>,
    /// Memory for receiving, in KiB.
    pub budget: Arc<Semaphore>,
    /// Memory for comparisons, in KiB.
    pub compare_budget: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
}

fn journal_folder(site: &Site, group: &GroupConfig, number: u32) -> PathBuf {
    site.folder(group).join(format!("journal-{number}"))
}

/// Checks that a journal that was open is still there: an unmounted volume leaves an empty folder in its place, in which
/// a new journal would begin and void all points.
pub fn check_journal(site: &Site, group: &GroupConfig, number: u32) -> Result<(), WorksError> {
    let files = [site.remembered(group), journal_folder(site, group, number).join(MANIFEST)];
    match files.into_iter().find(|path| matches!(path.try_exists(), Ok(false))) {
        Some(path) => Err(WorksError::Vanished { path }),
        None => Ok(()),
    }
}

/// Checks what would make a failback of the group fail, before its source is accepted; blocks.
pub fn admit(site: &Site, group: &GroupConfig, specs: &[DiskSpec]) -> Result<(), WorksError> {
    let machine = MachineFiles::of_this_machine();
    let preflight = Preflight {
        groups: &site.groups,
        datastores: &site.datastores,
        retention: &site.retention,
        state_dir: &site.state_dir,
        machine: &machine,
    };
    let sizes: Vec<(String, u64)> = specs.iter().map(|spec| (spec.name.clone(), spec.size)).collect();
    Ok(preflight.admit(group, &sizes)?)
}

/// Opens the journal of a group; blocks. `specs` are its disks where nothing is remembered of it.
pub fn open_journal(
    site: &Site,
    group: &GroupConfig,
    number: u32,
    specs: &[DiskSpec],
) -> Result<Arc<GroupJournal>, WorksError> {
    let folder = journal_folder(site, group, number);
    blockio::durable::create_dir_all(&folder)?;
    let volume = DirVolume::open(&folder).map_err(JournalError::from)?;
    let remembered = Remembered::load(&site.remembered(group))?.filter(|remembered| remembered.journal == number);
    let mut specs = remembered.map_or_else(|| specs.to_vec(), |remembered| remembered.specs());
    // A disk is remembered before the journal has it.
    let stored = Journal::stored_disks(&volume)?.map_or(specs.len(), |stored| stored.len());
    specs.truncate(stored);
    let defaults = Options::default();
    let options = Options {
        // So short that each end that shall stay is the end of a generation.
        generation_age: group.thin.generation_age().unwrap_or(defaults.generation_age).min(defaults.generation_age),
        marked_points_end_generations: group.thin.generation_age().is_some(),
        when_full: group.when_full,
        size_max: group.retention_bytes_max,
        keep_at_least: group.keep_at_least,
        group: group.name.to_string(),
        ..defaults
    };
    Ok(Arc::new(Journal::open(volume, &specs, site.clock.wall(), options)?))
}

/// The disks of a group whose journal is open; blocks. `specs` are those of a source that is new.
pub fn roster_of(
    site: &Site,
    group: &GroupConfig,
    number: u32,
    journal: &GroupJournal,
    specs: &[DiskSpec],
) -> Result<Roster, WorksError> {
    let remembered = Remembered::load(&site.remembered(group))?.filter(|remembered| remembered.journal == number);
    let remembered = remembered.map_or_else(Vec::new, |remembered| remembered.disks);
    Ok(roster::roster(group, &journal.disks(), &remembered, specs))
}

/// Disks that were opened.
pub struct Targets {
    /// The disks, locked, by index.
    pub opened: Vec<Option<Opened>>,
    /// Whether those that are replicated are what this agent left.
    pub familiarity: Familiarity,
    /// Disks that were removed, and are not what this agent left.
    pub foreign: Vec<u32>,
    /// Why disks that were removed can't be opened, by index.
    pub absent: Vec<(usize, WorksError)>,
}

/// Opens and locks the disks; blocks. One that was removed does not keep the others from being replicated.
pub fn open_targets(
    site: &Site,
    group: &GroupConfig,
    roster: &[Member],
    missing: Missing,
) -> Result<Targets, WorksError> {
    let (mut opened, mut absent) = (Vec::with_capacity(roster.len()), Vec::new());
    let waited_from = site.clock.elapsed();
    for (index, disk) in roster.iter().enumerate() {
        opened.push(match disk.standing {
            Standing::Gone => None,
            Standing::Current => Some(open_disk(site, group, disk, missing, waited_from)?),
            Standing::Kept => match open_disk(site, group, disk, Missing::Refused, waited_from) {
                Ok(opened) => Some(opened),
                Err(error) => {
                    absent.push((index, error));
                    None
                }
            },
        });
    }
    let before = Remembered::load(&site.remembered(group))?;
    let (mut familiarity, mut foreign) = (Familiarity::Familiar, Vec::new());
    for (index, (disk, opened)) in (0..).zip(roster.iter().zip(&opened)) {
        let known = before.iter().flat_map(|before| before.disks.get(index as usize));
        let Some((opened, known)) = opened.as_ref().zip(known.last()) else { continue };
        let is_same = known.name == disk.spec.name
            && !opened.created
            && known.identities.contains(&identity_text(&opened.identity()));
        match (is_same, disk.standing) {
            (true, _) => {}
            (false, Standing::Kept) => foreign.push(index),
            (false, _) => familiarity = Familiarity::Foreign,
        }
    }
    Ok(Targets { opened, familiarity, foreign, absent })
}

/// What becomes of a target that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It is made.
    Made,
    /// It was there a moment ago: its datastore has vanished, and a new disk in its place would void all points.
    Refused,
}

/// Whether a disk is as this agent left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Familiarity {
    /// It is, or nothing was ever left on it.
    Familiar,
    /// Somebody else wrote or replaced it.
    Foreign,
}

impl Works {
    /// Stamps the disks and starts the threads; blocks.
    pub fn begin(
        site: &Site,
        group: &GroupConfig,
        roster: &Roster,
        mut opened: Vec<Option<Opened>>,
        number: u32,
        journal: &Arc<GroupJournal>,
        board: &Arc<Board>,
    ) -> Result<Self, WorksError> {
        stamp(site, group, number, roster, &mut opened)?;
        Self::start(site, group, roster.clone(), opened, journal, board)
    }

    fn start(
        site: &Site,
        group: &GroupConfig,
        roster: Roster,
        opened: Vec<Option<Opened>>,
        journal: &Arc<GroupJournal>,
        board: &Arc<Board>,
    ) -> Result<Self, WorksError> {
        let disks = opened.iter().map(|opened| opened.as_ref().map(|opened| opened.disk.clone()));
        let disks = TargetDisks::new(disks.collect())
            .map_err(|source| WorksError::System { what: "the I/O engine", source })?;
        let (to_journal, journal_commands) = mpsc::channel(COMMANDS_MAX);
        let (to_apply, apply_commands) = mpsc::channel(COMMANDS_MAX);
        let journal_thread = JournalThread {
            core: JournalCore::new(journal.clone(), board.clone()),
            commands: journal_commands,
            to_apply: to_apply.clone(),
        };
        let applier = Applier::over(journal.clone(), disks);
        let apply_thread = ApplyThread {
            core: ApplyCore::new(applier, journal.clone(), board.clone(), (group.retention, group.thin.clone())),
            commands: apply_commands,
            to_journal: to_journal.downgrade(),
            clock: site.clock,
        };
        let threads = vec![
            spawn(format!("journal {}", group.name), move || journal_thread.run())?,
            spawn(format!("apply {}", group.name), move || apply_thread.run())?,
        ];
        let budget = Arc::new(Semaphore::new(RECEIVE_KIB));
        let compare_budget = Arc::new(Semaphore::new(COMPARE_KIB));
        Ok(Self { opened, roster, to_journal, to_apply, budget, compare_budget, threads })
    }

    /// Ends the threads, which finish what they do, and gives the disks back; blocks.
    ///
    /// Every other sender of commands must be gone.
    pub fn stop(self) -> Vec<Option<Opened>> {
        drop((self.to_journal, self.to_apply));
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of a group panicked");
            }
        }
        self.opened
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, WorksError> {
    let spawned = std::thread::Builder::new().name(name).spawn(|| {
        blockio::priority::step_back();
        run();
    });
    spawned.map_err(|source| WorksError::System { what: "a thread", source })
}

fn is_busy(error: &TargetError) -> bool {
    matches!(error.fault, TargetFault::Lock(_) | TargetFault::DeviceBusy(_))
}

/// Opens and locks one disk; blocks.
pub(super) fn open_disk(
    site: &Site,
    group: &GroupConfig,
    disk: &Member,
    missing: Missing,
    waited_from: Duration,
) -> Result<Opened, WorksError> {
    let name = disk.spec.name.as_str();
    let target = disk.target.as_ref().ok_or_else(|| WorksError::NoTarget { disk: name.to_owned() })?;
    let size = (missing == Missing::Made).then_some(disk.spec.size);
    let opened = loop {
        match open_or_create(target, &site.datastores, size, disk.kind) {
            Err(error) if is_busy(&error) && site.clock.elapsed() - waited_from < LOCK_WAIT => {
                std::thread::sleep(LOCK_RETRY);
            }
            result => break result,
        }
    };
    let opened = opened.map_err(target_error(disk))?;
    for notice in &opened.notices {
        tracing::warn!(group = group.name.as_str(), disk = name, %target, "{notice}");
    }
    Ok(opened)
}

/// What tells a target from others and from itself as somebody else wrote it.
///
/// The number of the file system's device changes with each boot, so it counts for block devices only.
fn identity_text(identity: &Identity) -> String {
    let cid = identity.cid.map(|cid| format!(" cid {:08x}", cid.value())).unwrap_or_default();
    match identity.inode {
        0 => format!("device {} size {}{cid}", identity.device, identity.size),
        inode => format!("inode {inode} size {}{cid}", identity.size),
    }
}

/// Gives each disk a new content id. It is remembered before it is on the disk, so that a crash in between does not
/// look like a stranger's write.
pub(super) fn stamp(
    site: &Site,
    group: &GroupConfig,
    journal: u32,
    roster: &[Member],
    opened: &mut [Option<Opened>],
) -> Result<(), WorksError> {
    let mut drawn = Vec::with_capacity(opened.len());
    for (disk, opened) in roster.iter().zip(opened.iter()) {
        let cid = opened.as_ref().map(|opened| opened.draw_cid().map_err(target_error(disk))).transpose()?;
        drawn.push(cid.flatten());
    }
    remember(site, group, journal, roster, opened, &drawn)?;
    for ((disk, opened), cid) in roster.iter().zip(opened).zip(drawn) {
        if let Some((opened, cid)) = opened.as_mut().zip(cid) {
            opened.stamp(cid).map_err(target_error(disk))?;
        }
    }
    Ok(())
}

/// Remembers the disks as they are, and as they will be with the content ids that were drawn for them. What is not open is
/// remembered as it was.
pub(super) fn remember(
    site: &Site,
    group: &GroupConfig,
    journal: u32,
    roster: &[Member],
    opened: &[Option<Opened>],
    drawn: &[Option<Cid>],
) -> Result<(), WorksError> {
    let path = site.remembered(group);
    let before = Remembered::load(&path)?.filter(|before| before.journal == journal);
    let mut disks = Vec::with_capacity(roster.len());
    for (index, (disk, opened)) in roster.iter().zip(opened).enumerate() {
        let known = before.iter().flat_map(|before| before.disks.get(index)).find(|known| known.name == disk.spec.name);
        let identities = match opened {
            Some(opened) => {
                let now = opened.identity();
                let next = drawn.get(index).map(|cid| Identity { cid: *cid, ..now });
                [Some(now), next].iter().flatten().map(identity_text).collect()
            }
            None => known.map_or_else(Vec::new, |known| known.identities.clone()),
        };
        let was_at = || known.map_or_else(String::new, |known| known.target.clone());
        disks.push(RememberedDisk {
            name: disk.spec.name.clone(),
            size: disk.spec.size,
            logical_block: disk.spec.logical_block,
            target: disk.target.as_ref().map_or_else(was_at, ToString::to_string),
            identities,
        });
    }
    Ok(Remembered { journal, disks }.save(&path)?)
}

pub(super) fn target_error(disk: &Member) -> impl Fn(TargetError) -> WorksError {
    |source| WorksError::Target { disk: disk.spec.name.clone(), source: Box::new(source) }
}
