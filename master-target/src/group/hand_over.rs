//! What only a failback does with a group: stamps its disks, shows them for their checksums, lets them go for good.

use std::sync::Arc;

use super::runtime::{Group, GroupError, blocking};
use super::works::{stamp, target_error};
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
}

impl Group {
    /// The disks; none while the group has none open.
    pub async fn handed_disks(&self) -> Vec<HandedDisk> {
        let slot = self.slot().await;
        let Some(works) = &slot.works else { return Vec::new() };
        let rows = self.config().disks.iter().zip(works.specs.iter()).zip(&works.opened);
        rows.map(|((config, spec), opened)| HandedDisk {
            name: spec.name.clone(),
            target: config.target.to_string(),
            size: spec.size,
            disk: opened.disk.clone(),
        })
        .collect()
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

    /// Ends the threads, syncs and unlocks the disks. After this the agent never touches them again.
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
