//! How the disks of a group change: added and removed by the configuration of both agents, and let go when no point has them.
//!
//! The change is made when a source opens the group with the disks that the configuration has here, too: until then the
//! group's points are there as they were. Order: the targets of new disks are open and locked; `disks.json` has them; the
//! journal says from which set on they count; then all is opened as after a restart. A crash in between leaves a journal that
//! does not have them yet, and a next try.

use std::sync::Arc;

use proto::replication::OpenGroup;

use super::apply_thread::ToApply;
use super::roster::{Member, Places, Roster, conflict, roster};
use super::runtime::{Group, Slot, blocking};
use super::works::{self, Familiarity, GroupApplier, GroupJournal, Missing, Targets, WorksError};
use crate::journal::{JournalError, Standing};
use crate::receive::admission::{Door, Refusal};
use crate::target::Opened;

impl Group {
    /// Says how the configuration differs from what is replicated.
    pub(super) fn say_changes(&self, roster: &[Member]) {
        let is_current = |disk: &&Member| disk.standing == Standing::Current;
        let current: Vec<&str> = roster.iter().filter(is_current).map(|disk| disk.spec.name.as_str()).collect();
        let configured: Vec<&str> = self.config().disks.iter().map(|disk| disk.name.as_str()).collect();
        let without = |these: &[&str], those: &[&str]| {
            these.iter().filter(|name| !those.contains(name)).copied().collect::<Vec<_>>().join(", ")
        };
        let (added, removed) = (without(&configured, &current), without(&current, &configured));
        if !added.is_empty() || !removed.is_empty() {
            tracing::info!(
                group = self.name(),
                added,
                removed,
                "the configuration changes the disks of the group: done when its source connects with the same disks"
            );
        }
    }

    /// What becomes of disks that were removed and are not as they were left, or not there.
    pub(super) async fn judge_removed(
        &self,
        slot: &mut Slot,
        journal: &Arc<GroupJournal>,
        targets: Targets,
    ) -> Result<(Vec<Option<Opened>>, Familiarity), WorksError> {
        let Targets { mut opened, familiarity, foreign, absent } = targets;
        for (index, error) in absent {
            if slot.roster[index].last.is_some_and(|last| last > journal.applied_set().0) {
                // Change sets of it are still to be written.
                return Err(error);
            }
            tracing::warn!(
                group = self.name(),
                %error,
                "a disk that was removed from the group can't be opened: its points can't be read until the agent is restarted \
                 with it in place"
            );
        }
        if journal.recovery_state().is_some() {
            // Whoever has it was handed it; the failback compares it.
            return Ok((opened, familiarity));
        }
        for index in foreign {
            tracing::error!(
                group = self.name(),
                disk = slot.roster[index as usize].spec.name,
                "a disk that was removed from the group was written or replaced by somebody else: its points are without it from \
                 now on"
            );
            opened[index as usize] = None;
            let journal = journal.clone();
            blocking(move || journal.forget_disk(index)).await?;
        }
        self.refresh_roster(slot, journal).await?;
        Ok((opened, familiarity))
    }

    async fn refresh_roster(&self, slot: &mut Slot, journal: &Arc<GroupJournal>) -> Result<(), WorksError> {
        let (site, config, number) = (self.site().clone(), self.config().clone(), slot.journal_number);
        let (journal, specs) = (journal.clone(), slot.specs.clone().unwrap_or_default());
        let roster = blocking(move || works::roster_of(&site, &config, number, &journal, &specs)).await?;
        self.set_roster(slot, roster);
        Ok(())
    }

    /// Has the group the disks of its source, which the configuration has as well. Its journal is opened anew where they are
    /// others than before.
    pub(super) async fn with_disks_of(
        &self,
        slot: &mut Slot,
        journal: Arc<GroupJournal>,
        open: &OpenGroup,
    ) -> Result<Arc<GroupJournal>, Refusal> {
        if journal.has_disks(&open.disks) {
            return Ok(journal);
        }
        let refused = |what: String| Refusal::Disks { group: self.name().to_owned(), what };
        let failed = |error: WorksError| Refusal::Failed { group: self.name().to_owned(), what: error.to_string() };
        let (known, wanted) = (journal.clone(), open.disks.clone());
        let after = blocking(move || known.disks_after(&wanted)).await.map_err(|error| match error {
            JournalError::WrongDisks { what } => refused(what),
            error => failed(error.into()),
        })?;
        let (site, config, specs) = (self.site().clone(), self.config().clone(), open.disks.clone());
        blocking(move || works::admit(&site, &config, &specs)).await.map_err(failed)?;
        let before = slot.roster.clone();
        let next = self.next_roster(&before, &after, open);
        if let Some(what) = conflict(&next, &before) {
            return Err(refused(what));
        }
        if let Some(what) = returns_unseen(&before, &next, slot) {
            return Err(refused(what));
        }
        let Some(_no_readers) = self.end_readers_soon("the disks of the group change").await else {
            let what = "restores of it are under way, or a mount is being made, and its disks can't change meanwhile: wait for \
                        them, or end them (`master-target jobs`); it is tried again";
            return Err(Refusal::Failed { group: self.name().to_owned(), what: what.to_owned() });
        };
        let fresh = self.open_new(slot, &next).await.map_err(failed)?;
        drop(journal);
        let changed = self.change(slot, &next, fresh, open).await;
        changed.map_err(|error| {
            // As after any fault: what was done of it is found when the group is opened again.
            self.board().fail(error.to_string());
            failed(error)
        })
    }

    fn next_roster(&self, before: &Roster, after: &[crate::journal::KnownDisk], open: &OpenGroup) -> Roster {
        let mut next: Vec<Member> = roster(self.config(), after, &[], &open.disks).to_vec();
        for (disk, was) in next.iter_mut().zip(before.iter()) {
            if disk.standing == Standing::Kept {
                disk.target.clone_from(&was.target);
            }
            disk.spec.logical_block = was.spec.logical_block;
        }
        next.into()
    }

    /// Opens the disks that are not open yet: a change that can't be made ends here.
    async fn open_new(&self, slot: &Slot, next: &Roster) -> Result<Vec<Option<Opened>>, WorksError> {
        let has = |index: usize| {
            slot.works.as_ref().is_some_and(|works| works.opened.get(index).is_some_and(Option::is_some))
        };
        let missing: Vec<bool> = (0..next.len()).map(|index| !has(index)).collect();
        let (site, config, next) = (self.site().clone(), self.config().clone(), next.clone());
        blocking(move || {
            let waited_from = site.clock.elapsed();
            let open = |(disk, is_missing): (&Member, bool)| match disk.standing {
                Standing::Current if is_missing => {
                    works::open_disk(&site, &config, disk, Missing::Made, waited_from).map(Some)
                }
                _ => Ok(None),
            };
            next.iter().zip(missing).map(open).collect()
        })
        .await
    }

    async fn change(
        &self,
        slot: &mut Slot,
        next: &Roster,
        mut opened: Vec<Option<Opened>>,
        open: &OpenGroup,
    ) -> Result<Arc<GroupJournal>, WorksError> {
        let names: Vec<&str> = open.disks.iter().map(|disk| disk.name.as_str()).collect();
        tracing::info!(group = self.name(), disks = names.join(", "), "the disks of the group change");
        if let Some(works) = slot.works.take() {
            let before = blocking(move || works.stop()).await;
            opened.iter_mut().zip(before).for_each(|(now, before)| *now = now.take().or(before));
        }
        self.set_journal(None);
        let journal = self.open_journal(slot).await?;
        let (site, config, number) = (self.site().clone(), self.config().clone(), slot.journal_number);
        let (roster, changing, wanted) = (next.clone(), journal.clone(), open.disks.clone());
        let opened = blocking(move || {
            works::stamp(&site, &config, number, &roster, &mut opened)?;
            changing.change_disks(&wanted)?;
            // What never had a point is let go at once.
            let is_gone = changing.disks().into_iter().map(|disk| disk.standing == Standing::Gone);
            opened.iter_mut().zip(is_gone).filter(|(_, is_gone)| *is_gone).for_each(|(opened, _)| *opened = None);
            Ok::<_, WorksError>(opened)
        })
        .await?;
        drop(journal);
        self.set_journal(None);
        slot.taken_back = Some(opened);
        self.ready(slot).await
    }

    /// Where the disks of the source stand in the journal.
    pub(super) fn places(&self, journal: &GroupJournal, open: &OpenGroup) -> Places {
        Places::of(&open.disks, &journal.disks())
    }

    /// Lets go of disks that were removed and that no point has any more.
    pub(super) async fn let_unneeded_go(&self) {
        if self.board().roster().iter().all(|disk| disk.standing != Standing::Kept) {
            return;
        }
        for index in self.unneeded().await {
            let mut slot = self.slot().await;
            let Ok(journal) = self.journal() else { return };
            if slot.door != Door::Open || slot.works.is_none() {
                return;
            }
            if let Err(error) = self.let_one_go(&mut slot, &journal, index).await {
                self.board().fail(error.to_string());
                return;
            }
        }
    }

    /// Looks while nobody opens the journal anew; holds nothing afterwards.
    async fn unneeded(&self) -> Vec<u32> {
        let Ok(shared) = self.restores().try_read_owned() else { return Vec::new() };
        let Ok(journal) = self.journal() else { return Vec::new() };
        blocking(move || {
            let unneeded = journal.unneeded_disks();
            drop((journal, shared));
            unneeded
        })
        .await
    }

    async fn let_one_go(&self, slot: &mut Slot, journal: &Arc<GroupJournal>, index: u32) -> Result<(), WorksError> {
        let forgetting = journal.clone();
        // A mount may have been made meanwhile: it pins its point.
        let is_forgotten = blocking(move || {
            let is_unneeded = forgetting.unneeded_disks().contains(&index);
            if is_unneeded { forgetting.forget_disk(index).map(|()| true) } else { Ok(false) }
        })
        .await?;
        if !is_forgotten {
            return Ok(());
        }
        let Some(disk) = slot.roster.get(index as usize).cloned() else { return Ok(()) };
        let opened = slot.works.as_mut().and_then(|works| works.opened.get_mut(index as usize)?.take());
        if let Some(works) = &slot.works {
            let work = move |applier: &mut GroupApplier| applier.disks().let_go(index);
            let _ = works.to_apply.send(ToApply::Work(Box::new(work))).await;
        }
        if let Some(opened) = opened {
            blocking(move || opened.release()).await.map_err(works::target_error(&disk))?;
        }
        self.refresh_roster(slot, journal).await?;
        if let Some(works) = &mut slot.works {
            works.roster = slot.roster.clone();
        }
        tracing::info!(
            group = self.name(),
            disk = disk.spec.name,
            target = disk.target_text(),
            "no recovery point has the removed disk any more: its target is unlocked"
        );
        Ok(())
    }
}

/// Refuses a removed disk that comes back while its target can't be opened: whether it is what its points need is looked at
/// when all is opened.
fn returns_unseen(before: &[Member], next: &[Member], slot: &Slot) -> Option<String> {
    let is_open =
        |at: usize| slot.works.as_ref().is_some_and(|works| works.opened.get(at).is_some_and(Option::is_some));
    let comes_back = |(at, (was, now)): &(usize, (&Member, &Member))| {
        was.standing == Standing::Kept && now.standing == Standing::Current && !is_open(*at)
    };
    let (_, (disk, _)) = before.iter().zip(next).enumerate().find(comes_back)?;
    Some(format!(
        "disk \"{}\" was removed, and its target {}, which older points need, can't be opened: bring it back and restart the \
         agent, or add the disk under another name and with another target",
        disk.spec.name,
        disk.target_text()
    ))
}
