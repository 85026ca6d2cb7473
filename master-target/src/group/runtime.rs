//! How a group opens what it works with, and closes. `upkeep` opens it again after a fault.
//!
//! One lock holds what changes: the session (`sessions`) and the works. The failback driver uses the same lock, so that
//! a session can't begin in between its steps.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use proto::endpoint::CloseCode;
use proto::replication::DiskSpec;
use tokio::sync::{Mutex, MutexGuard, OwnedRwLockWriteGuard, oneshot};

use super::apply_thread::ToApply;
use super::board::Board;
use super::remembered::Remembered;
use super::retention::Merging;
use super::roster::Roster;
use super::session::Session;
use super::upkeep::Retry;
use super::works::{self, Familiarity, GroupApplier, GroupJournal, Missing, Site, Works, WorksError};
use crate::config::GroupConfig;
use crate::journal::{History, Standing, Turn};
use crate::mount::Mounts;
use crate::receive::admission::{Door, GroupRules};
use crate::recover::RecoveryState;
use crate::target::Opened;

/// How often it is looked whether a mount was made while others were ended.
const READERS_LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often who holds the slot looks: 5 s in all.
const READERS_LOOKS_MAX: u32 = 25;

/// A group that this agent serves.
pub struct Group {
    config: GroupConfig,
    rules: GroupRules,
    site: Site,
    board: Arc<Board>,
    slot: Mutex<Slot>,
    journal: RwLock<Option<Arc<GroupJournal>>>,
    session_keys: AtomicU64,
    restores: Arc<tokio::sync::RwLock<()>>,
    mounts: Mounts,
    stopping: AtomicBool,
    merging: Merging,
}

/// What changes.
pub struct Slot {
    pub(super) journal_number: u32,
    pub(super) works: Option<Works>,
    pub(super) session: Option<Session>,
    /// The disks by index, once they are known.
    pub(super) specs: Option<Vec<DiskSpec>>,
    pub(super) roster: Roster,
    pub(super) door: Door,
    /// What an earlier life of the agent left has been looked at.
    pub(super) is_started: bool,
    /// Journal and disks have been open in this life: what is missing from now on has vanished and is not made anew.
    pub(super) was_open: bool,
    /// When a failed group is tried again.
    pub(super) retry: Retry,
    /// Disks that were handed over before, locked again and looked at: what is opened next takes them as they are.
    pub(super) taken_back: Option<Vec<Option<Opened>>>,
}

/// Why a group can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// Opening what it works with.
    #[error(transparent)]
    Works(#[from] WorksError),
    /// Nothing was ever replicated.
    #[error("group \"{0}\" has no journal yet: nothing was replicated; start its process-server")]
    NoJournal(String),
    /// The threads are gone.
    #[error("group \"{0}\" is being closed; try again")]
    Closing(String),
}

/// Runs blocking work beside the runtime.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl Group {
    /// A group that is not opened yet.
    pub fn new(config: GroupConfig, site: Site) -> Arc<Self> {
        let board = Arc::new(Board::new(config.name.as_str(), config.process_server.as_str(), site.clock.elapsed()));
        let slot = Slot {
            journal_number: 1,
            works: None,
            session: None,
            specs: None,
            roster: Roster::default(),
            door: Door::Open,
            is_started: false,
            was_open: false,
            retry: Retry::default(),
            taken_back: None,
        };
        Arc::new(Self {
            rules: config.rules(),
            config,
            site,
            board,
            slot: Mutex::new(slot),
            journal: RwLock::new(None),
            session_keys: AtomicU64::new(1),
            restores: Arc::default(),
            mounts: Mounts::default(),
            stopping: AtomicBool::new(false),
            merging: Merging::default(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &GroupConfig {
        &self.config
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.config.name.as_str()
    }

    /// What others see of it.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Where its things are.
    pub fn site(&self) -> &Site {
        &self.site
    }

    pub(super) fn merging(&self) -> &Merging {
        &self.merging
    }

    /// Its journal, once opened.
    pub fn journal(&self) -> Result<Arc<GroupJournal>, GroupError> {
        let journal = self.journal.read().unwrap_or_else(PoisonError::into_inner).clone();
        journal.ok_or_else(|| GroupError::NoJournal(self.name().to_owned()))
    }

    pub(super) fn set_journal(&self, journal: Option<Arc<GroupJournal>>) {
        *self.journal.write().unwrap_or_else(PoisonError::into_inner) = journal;
    }

    /// Its mounts.
    pub fn mounts(&self) -> &Mounts {
        &self.mounts
    }

    /// Ends the mounts of the group and waits for its restores to end: afterwards nobody reads points any more.
    pub async fn end_readers(&self, reason: &str) -> OwnedRwLockWriteGuard<()> {
        loop {
            self.mounts.end_all(reason).await;
            // A mount that was being made meanwhile is ended in the next round.
            if let Ok(none) = tokio::time::timeout(READERS_LOOK_EVERY, self.restores().write_owned()).await {
                return none;
            }
        }
    }

    /// The same for who holds the slot, which those who begin to read wait for, as does who ends the group: none where it takes
    /// longer than some seconds, or the agent stops.
    pub(super) async fn end_readers_soon(&self, reason: &str) -> Option<OwnedRwLockWriteGuard<()>> {
        for _ in 0..READERS_LOOKS_MAX {
            self.mounts.end_all(reason).await;
            if self.is_stopping() {
                return None;
            }
            if let Ok(none) = tokio::time::timeout(READERS_LOOK_EVERY, self.restores().write_owned()).await {
                return Some(none);
            }
        }
        None
    }

    /// Held shared by each mount and restore of the group, and alone by a failback from its lock-out on.
    pub fn restores(&self) -> Arc<tokio::sync::RwLock<()>> {
        self.restores.clone()
    }

    /// True once the agent stops: long work ends early.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Who may open it, and with which disks.
    pub(super) fn rules(&self) -> &GroupRules {
        &self.rules
    }

    /// A key for a new session.
    pub(super) fn next_session_key(&self) -> u64 {
        self.session_keys.fetch_add(1, Ordering::Relaxed)
    }

    /// The lock over what changes.
    pub async fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().await
    }

    /// The lock, unless somebody has it.
    pub(super) fn try_slot(&self) -> Option<MutexGuard<'_, Slot>> {
        self.slot.try_lock().ok()
    }

    /// Opens what an earlier life of the agent left; returns its failback, if there is one to go on with or to show.
    pub(super) async fn start_in(&self, slot: &mut Slot) -> Result<RecoveryState, WorksError> {
        let Some(remembered) = Remembered::load(&self.site.remembered(&self.config))? else {
            slot.is_started = true;
            return Ok(RecoveryState::Normal);
        };
        slot.journal_number = remembered.journal;
        slot.specs = Some(remembered.specs());
        let journal = self.open_journal(slot).await?;
        self.say_changes(&slot.roster);
        let recovery = RecoveryState::of(&journal);
        if recovery == RecoveryState::Normal {
            self.open_works(slot, journal).await?;
        } else {
            // Until the failback says otherwise: in it a set taken is a set that lands in a machine's disk.
            slot.door = Door::Fenced;
        }
        slot.is_started = true;
        Ok(recovery)
    }

    pub(super) async fn open_journal(&self, slot: &mut Slot) -> Result<Arc<GroupJournal>, WorksError> {
        if let Ok(journal) = self.journal() {
            return Ok(journal);
        }
        let (site, config) = (self.site.clone(), self.config.clone());
        let specs = slot.specs.clone().unwrap_or_default();
        let number = slot.journal_number;
        if slot.was_open {
            works::check_journal(&site, &config, number)?;
        }
        let (journal, roster) = blocking(move || {
            let journal = works::open_journal(&site, &config, number, &specs)?;
            let roster = works::roster_of(&site, &config, number, &journal, &specs)?;
            Ok::<_, WorksError>((journal, roster))
        })
        .await?;
        self.set_roster(slot, roster);
        self.set_journal(Some(journal.clone()));
        self.show_journal(&journal);
        Ok(journal)
    }

    pub(super) fn show_journal(&self, journal: &GroupJournal) {
        self.board.set_history(journal.has_history(), journal.bulk_open());
        self.board.set_durable(journal.last_durable_set().into());
    }

    async fn open_works(&self, slot: &mut Slot, journal: Arc<GroupJournal>) -> Result<Arc<GroupJournal>, WorksError> {
        let (site, config) = (self.site.clone(), self.config.clone());
        let missing = if slot.was_open { Missing::Refused } else { Missing::Made };
        let (mut opened, familiarity) = match slot.taken_back.take() {
            Some(opened) => (opened, Familiarity::Familiar),
            None => {
                let (site, config, roster) = (site.clone(), config.clone(), slot.roster.clone());
                let targets = blocking(move || works::open_targets(&site, &config, &roster, missing)).await?;
                self.judge_removed(slot, &journal, targets).await?
            }
        };
        let journal = match familiarity {
            Familiarity::Foreign if RecoveryState::of(&journal) != RecoveryState::Normal => {
                return Err(WorksError::ForeignInFailback);
            }
            Familiarity::Foreign if journal.has_history() => {
                // Of disks that were removed there is no point any more.
                let is_current = slot.roster.iter().map(|disk| disk.standing == Standing::Current).collect::<Vec<_>>();
                let mut keeps = is_current.into_iter();
                opened.retain(|_| keeps.next().unwrap_or(false));
                self.begin_new_journal(slot, journal).await?
            }
            _ => journal,
        };
        let roster = slot.roster.clone();
        let (number, board, used) = (slot.journal_number, self.board.clone(), journal.clone());
        let works = blocking(move || Works::begin(&site, &config, &roster, opened, number, &used, &board)).await?;
        slot.works = Some(works);
        slot.was_open = true;
        Ok(journal)
    }

    /// The targets are not what the journal tells of: its points are of no use, all content must come again.
    async fn begin_new_journal(
        &self,
        slot: &mut Slot,
        journal: Arc<GroupJournal>,
    ) -> Result<Arc<GroupJournal>, WorksError> {
        let folder = self.site.folder(&self.config);
        tracing::warn!(
            group = self.name(),
            left_behind = %folder.join(format!("journal-{}", slot.journal_number)).display(),
            "a target was written or replaced by somebody else: its recovery points are void, and the source must send \
             everything; remove the journal that is left behind when nobody needs it"
        );
        // A source that waits for its fence to be lifted must not wait for ever.
        let cancelled = journal.cancelled_fence();
        drop(journal);
        self.set_journal(None);
        let current = slot.roster.iter().filter(|disk| disk.standing == Standing::Current);
        slot.specs = Some(current.map(|disk| disk.spec.clone()).collect());
        slot.journal_number += 1;
        slot.was_open = false;
        let journal = self.open_journal(slot).await?;
        if cancelled.is_some() {
            let turn = Turn { record: None, lineage: None, cancelled, history: History::Kept };
            let (turning, now) = (journal.clone(), self.site.clock.wall());
            blocking(move || turning.turn(turn, now)).await?;
        }
        Ok(journal)
    }

    pub(super) fn set_roster(&self, slot: &mut Slot, roster: Roster) {
        slot.specs = Some(roster.iter().map(|disk| disk.spec.clone()).collect());
        self.board.set_roster(roster.clone());
        slot.roster = roster;
    }

    /// Opens journal, disks and threads where they are not, or anew after a failure (rule J13).
    pub async fn ready(&self, slot: &mut Slot) -> Result<Arc<GroupJournal>, WorksError> {
        // A journal that stopped while only a failback wrote it has not failed the group yet (rule J13).
        if self.board.has_failed() || self.journal().is_ok_and(|journal| journal.has_stopped()) {
            self.let_go(slot).await;
        }
        let mut journal = self.open_journal(slot).await?;
        if slot.works.is_none() {
            journal = self.open_works(slot, journal).await?;
        }
        self.board.clear_failure();
        self.board.clear_shortage();
        Ok(journal)
    }

    /// Ends what works with the journal and the disks, and lets both go.
    pub(super) async fn let_go(&self, slot: &mut Slot) {
        self.stop_works(slot).await;
        self.set_journal(None);
    }

    /// As [`Group::ready`]; disks that are new are remembered only if they can be opened.
    pub(super) async fn ready_for(&self, slot: &mut Slot, disks: &[DiskSpec]) -> Result<Arc<GroupJournal>, WorksError> {
        // What is open was checked when it was opened: a source that comes back doesn't wait for it.
        if slot.works.is_none() {
            let (site, config, specs) = (self.site.clone(), self.config.clone(), disks.to_vec());
            blocking(move || works::admit(&site, &config, &specs)).await?;
        }
        let known = slot.specs.is_some();
        if !known {
            slot.specs = Some(disks.to_vec());
        }
        let ready = self.ready(slot).await;
        if ready.is_err() && !known {
            self.set_roster(slot, Roster::default());
            slot.specs = None;
            self.set_journal(None);
        }
        ready
    }

    /// Ends the threads and lets the disks go as they are, locks included.
    pub async fn stop_works(&self, slot: &mut Slot) {
        if let Some(works) = slot.works.take() {
            blocking(move || drop(works.stop())).await;
        }
    }

    /// Does something with the disks on the thread that writes them.
    pub async fn with_applier<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut GroupApplier) -> T + Send + 'static,
    ) -> Result<T, GroupError> {
        let closing = || GroupError::Closing(self.name().to_owned());
        let to_apply = {
            let slot = self.slot.lock().await;
            slot.works.as_ref().map(|works| works.to_apply.clone()).ok_or_else(closing)?
        };
        let (reply, answer) = oneshot::channel();
        let work = ToApply::Work(Box::new(move |applier: &mut GroupApplier| {
            let _ = reply.send(work(applier));
        }));
        to_apply.send(work).await.map_err(|_| closing())?;
        answer.await.map_err(|_| closing())
    }

    /// Nothing of the group is opened any more, and what takes long ends early.
    pub fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Orderly end: mounts and restores end, the session is closed, the threads finish what they do, the disks are let go.
    pub async fn stop(&self) {
        self.begin_stop();
        let _no_readers = self.end_readers("the agent stops").await;
        let mut slot = self.slot.lock().await;
        if let Some(session) = &slot.session {
            session.about().link.wire.close(CloseCode::Stopping, "the master-target stops");
        }
        self.end_session(&mut slot, None).await;
        self.stop_works(&mut slot).await;
        self.set_journal(None);
    }
}
