//! What only a failback does with a group: stamps its disks, shows them for their checksums, lets them go; and takes them
//! back, when another point is chosen or the group is to be protected again.

use std::sync::Arc;

use proto::replication::target_message::Body;
use proto::replication::{FailbackCancelled, TargetMessage};

use super::roster::Member;
use super::runtime::{Group, GroupError, blocking};
use super::state::Recovery;
use super::works::{self, stamp, target_error};
use crate::journal::Standing;
use crate::receive::admission::Door;
use crate::target::{Disk, Opened};

/// A disk about to be handed over.
pub struct HandedDisk {
    /// Its index in the journal.
    pub index: u32,
    /// Its name in the group.
    pub name: String,
    /// Its target as configured.
    pub target: String,
    /// Bytes it has on the source; a target may be larger.
    pub size: u64,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Its content id, of a VMDK.
    pub cid: Option<u32>,
    /// When it was last written, microseconds since 1970; 0 where nobody knows.
    pub written_us: u64,
}

/// Disks that were handed over, locked to be looked at.
pub struct LockedDisks {
    /// The disks.
    pub rows: Vec<HandedDisk>,
    opened: Vec<Option<Opened>>,
}

impl Group {
    /// The disks; none while the group has none open.
    pub async fn handed_disks(&self) -> Vec<HandedDisk> {
        let slot = self.slot().await;
        let Some(works) = &slot.works else { return Vec::new() };
        rows(&works.roster, &works.opened)
    }

    /// Locks disks that were handed over, and writes nothing to them. They are let go when this is dropped, unless the
    /// group takes them back. Of those that were removed only the ones in `handed` are locked: nothing is kept of what others
    /// held, so they stay closed until the group is opened anew.
    pub async fn lock_handed(&self, handed: &[u32]) -> Result<LockedDisks, GroupError> {
        let roster = self.slot().await.roster.clone();
        let (site, config, mut known) = (self.site().clone(), self.config().clone(), roster.to_vec());
        for (index, disk) in (0..).zip(&mut known) {
            if disk.standing == Standing::Kept && !handed.contains(&index) {
                disk.standing = Standing::Gone;
            }
        }
        let opening = move || works::open_targets(&site, &config, &known, works::Missing::Refused);
        let works::Targets { opened, absent, .. } = blocking(opening).await?;
        if let Some((_, error)) = absent.into_iter().next() {
            return Err(error.into());
        }
        Ok(LockedDisks { rows: rows(&roster, &opened), opened })
    }

    /// The disks are as they should be, whoever wrote them: from now on they are the group's again. What is done with
    /// them has to be made durable after this: until then they may be let go once more.
    pub async fn take_back(&self, disks: LockedDisks) -> Result<(), GroupError> {
        let mut slot = self.slot().await;
        let (site, config, number) = (self.site().clone(), self.config().clone(), slot.journal_number);
        let roster = slot.roster.clone();
        let opened = blocking(move || {
            works::remember(&site, &config, number, &roster, &disks.opened, &[])?;
            Ok::<_, works::WorksError>(disks.opened)
        })
        .await?;
        slot.taken_back = Some(opened);
        Ok(())
    }

    /// Lets disks go that were taken back and not opened.
    pub async fn let_go_taken(&self) {
        self.slot().await.taken_back = None;
    }

    /// Lets sessions in again: the group replicates. Its source is told that it may lift its fence.
    pub async fn replicate_again(&self) -> Result<(), GroupError> {
        let outbox = {
            let mut slot = self.slot().await;
            // Durably it replicates: what can't be opened now is opened again by the upkeep, as after any fault.
            slot.door = Door::Open;
            self.board().set_recovery(Recovery::None);
            if let Err(error) = self.ready(&mut slot).await {
                self.board().fail(error.to_string());
                return Err(error.into());
            }
            slot.session.as_ref().map(|session| session.about().link.outbox.clone())
        };
        if let Some((outbox, message)) = outbox.zip(self.cancellation()) {
            let _ = outbox.send(message).await;
        }
        Ok(())
    }

    /// What a source is told whose fence may be lifted; durable before it is said (rule S20).
    pub(super) fn cancellation(&self) -> Option<TargetMessage> {
        let request = self.journal().ok()?.cancelled_fence()?;
        let body = Body::FailbackCancelled(FailbackCancelled { group: self.name().to_owned(), request });
        Some(TargetMessage { body: Some(body) })
    }

    /// Gives every disk a new content id, durably.
    pub async fn stamp_disks(&self) -> Result<(), GroupError> {
        let mut slot = self.slot().await;
        let Some(mut works) = slot.works.take() else { return Err(GroupError::Closing(self.name().to_owned())) };
        let (site, config, number) = (self.site().clone(), self.config().clone(), slot.journal_number);
        let (works, stamped) = blocking(move || {
            let roster = works.roster.clone();
            let stamped = stamp(&site, &config, number, &roster, &mut works.opened);
            (works, stamped)
        })
        .await;
        slot.works = Some(works);
        Ok(stamped?)
    }

    /// Ends the threads, syncs and unlocks the disks. After this the agent does not touch them, unless it takes them back.
    pub async fn release_disks(&self) -> Result<(), GroupError> {
        let mut slot = self.slot().await;
        let Some(works) = slot.works.take() else { return Ok(()) };
        let roster = works.roster.clone();
        let opened = blocking(move || works.stop()).await;
        for (disk, opened) in roster.iter().zip(opened).filter_map(|(disk, opened)| Some((disk, opened?))) {
            blocking(move || Opened::release(opened)).await.map_err(target_error(disk))?;
        }
        Ok(())
    }
}

/// Those that are open.
fn rows(roster: &[Member], opened: &[Option<Opened>]) -> Vec<HandedDisk> {
    let open = (0..)
        .zip(roster.iter().zip(opened))
        .filter_map(|(index, (disk, opened))| Some((index, disk, opened.as_ref()?)));
    open.map(|(index, disk, opened)| HandedDisk {
        index,
        name: disk.spec.name.clone(),
        target: disk.target_text(),
        size: disk.spec.size,
        disk: opened.disk.clone(),
        cid: opened.cid().map(|cid| cid.value()),
        written_us: opened.written_us(),
    })
    .collect()
}

/// Disks by their indexes.
pub fn by_index(rows: &[HandedDisk]) -> Vec<Option<Arc<dyn Disk>>> {
    let count = rows.iter().map(|row| row.index as usize + 1).max().unwrap_or(0);
    let mut disks = vec![None; count];
    rows.iter().for_each(|row| disks[row.index as usize] = Some(row.disk.clone()));
    disks
}
