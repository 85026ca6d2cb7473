//! What only a failback does with a group: stamps its disks, shows them for their checksums, lets them go; and takes them
//! back, when another point is chosen or the group is to be protected again.

use std::sync::Arc;

use proto::replication::target_message::Body;
use proto::replication::{DiskSpec, FailbackCancelled, TargetMessage};

use super::runtime::{Group, GroupError, blocking};
use super::state::Recovery;
use super::works::{self, stamp, target_error};
use crate::receive::admission::Door;
use crate::target::{Disk, Opened};

/// A disk about to be handed over.
pub struct HandedDisk {
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
    opened: Vec<Opened>,
}

impl Group {
    /// The disks; none while the group has none open.
    pub async fn handed_disks(&self) -> Vec<HandedDisk> {
        let slot = self.slot().await;
        let Some(works) = &slot.works else { return Vec::new() };
        self.rows(&works.specs, &works.opened)
    }

    fn rows(&self, specs: &[DiskSpec], opened: &[Opened]) -> Vec<HandedDisk> {
        let rows = self.config().disks.iter().zip(specs).zip(opened);
        rows.map(|((config, spec), opened)| HandedDisk {
            name: spec.name.clone(),
            target: config.target.to_string(),
            size: spec.size,
            disk: opened.disk.clone(),
            cid: opened.cid().map(|cid| cid.value()),
            written_us: opened.written_us(),
        })
        .collect()
    }

    /// Locks disks that were handed over, and writes nothing to them. They are let go when this is dropped, unless the
    /// group takes them back.
    pub async fn lock_handed(&self) -> Result<LockedDisks, GroupError> {
        let specs = self.slot().await.specs.clone().unwrap_or_default();
        let (site, config, known) = (self.site().clone(), self.config().clone(), specs.clone());
        let opening = move || works::open_targets(&site, &config, &known, works::Missing::Refused);
        let (opened, _) = blocking(opening).await?;
        Ok(LockedDisks { rows: self.rows(&specs, &opened), opened })
    }

    /// The disks are as they should be, whoever wrote them: from now on they are the group's again. What is done with
    /// them has to be made durable after this: until then they may be let go once more.
    pub async fn take_back(&self, disks: LockedDisks) -> Result<(), GroupError> {
        let mut slot = self.slot().await;
        let (site, config, number) = (self.site().clone(), self.config().clone(), slot.journal_number);
        let specs = slot.specs.clone().unwrap_or_default();
        let opened = blocking(move || {
            works::remember(&site, &config, number, &specs, &disks.opened, &[])?;
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
            let specs = works.specs.clone();
            let stamped = stamp(&site, &config, number, &specs, &mut works.opened);
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
        let opened = blocking(move || works.stop()).await;
        for (disk, opened) in self.config().disks.iter().zip(opened) {
            blocking(move || Opened::release(opened)).await.map_err(target_error(disk))?;
        }
        Ok(())
    }
}
