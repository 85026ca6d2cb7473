//! Which disks a journal has, and from which set to which: they are added and removed while their group is protected.
//!
//! The list only grows, since records of redo and undo name disks by their places in it. Each entry says of which sets the
//! disk is a part (*spans*), so a point knows the disks that it has. A disk that was removed is *kept* while a point needs what
//! stands on it only, and comes back to the same entry if it is added again meanwhile: what is written to it then is saved
//! first, as for any other. Once no point has it, it is let go for good; a disk of that name is a new one then.
//!
//! A change is one durable replacement of the manifest, between two sessions. The set after the durable ones is the first with
//! the new disks: the source sends it only when it has compared or sent all of what it did not have in the session before.
//! Whoever changed the disks opens the journal anew, since much that is in memory is as long as the list.

use proto::limits::DISKS_PER_GROUP_MAX;
use proto::replication::DiskSpec;

use super::core::{Journal, lock};
use super::error::{JournalError, JournalResult};
use super::manifest::{DiskSpan, Manifest, ManifestDisk};
use super::volume::Volume;

/// What a disk is to its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is replicated.
    Current,
    /// It was removed, and is kept for the points that have it.
    Kept,
    /// It was let go.
    Gone,
}

/// A disk as a journal knows it. Its index is its place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownDisk {
    /// Its name in the group.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What it is to the group.
    pub standing: Standing,
    /// The last set that it is a part of, once it was removed.
    pub last: Option<u64>,
}

impl ManifestDisk {
    /// What it is to its group.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.spans.last() {
            _ if self.is_gone => Standing::Gone,
            Some(DiskSpan { last: Some(_), .. }) => Standing::Kept,
            _ => Standing::Current,
        }
    }

    /// Whether the point after a set has it.
    #[must_use]
    pub fn is_of(&self, set: u64) -> bool {
        let spans = |span: &DiskSpan| span.first <= set && span.last.is_none_or(|last| set <= last);
        !self.is_gone && (self.spans.is_empty() || self.spans.iter().any(spans))
    }

    fn known(&self) -> KnownDisk {
        let last = self.spans.last().and_then(|span| span.last);
        KnownDisk { name: self.name.clone(), size: self.size, standing: self.standing(), last }
    }

    /// What has no spans was there from the beginning.
    fn spell_out(&mut self) {
        if self.spans.is_empty() {
            self.spans.push(DiskSpan { first: 0, last: None });
        }
    }
}

impl Manifest {
    /// Whether the point after a set has a disk.
    #[must_use]
    pub fn has_disk(&self, disk: u32, set: u64) -> bool {
        self.disks.get(disk as usize).is_some_and(|disk| disk.is_of(set))
    }

    /// Whether a disk was let go.
    #[must_use]
    pub fn is_gone(&self, disk: u32) -> bool {
        self.disks.get(disk as usize).is_some_and(|disk| disk.is_gone)
    }

    /// Whether no point of before a bulk generation can have had a disk: what it overwrites there need not be saved.
    #[must_use]
    pub fn is_new_in(&self, disk: u32, generation: u64) -> bool {
        let bulk = self.generations.iter().find(|bulk| bulk.is_bulk() && bulk.id == generation);
        let spans = self.disks.get(disk as usize).map(|disk| &disk.spans[..]);
        match (bulk, spans) {
            (Some(bulk), Some([only])) => only.first >= bulk.first,
            _ => false,
        }
    }

    /// What the disks are when a group has these from the set after `durable` on; the text says why it can't have them.
    fn disks_changed(&self, wanted: &[DiskSpec], durable: u64) -> Result<Vec<ManifestDisk>, String> {
        let mut disks = self.disks.clone();
        disks.iter_mut().filter(|disk| !disk.is_gone).for_each(ManifestDisk::spell_out);
        for disk in disks.iter_mut().filter(|disk| disk.standing() == Standing::Current) {
            if wanted.iter().any(|other| other.name == disk.name) {
                continue;
            }
            match disk.spans.last_mut() {
                Some(span) if span.first <= durable => span.last = Some(durable),
                // No point ever had it in this span.
                _ => drop(disk.spans.pop()),
            }
            disk.is_gone = disk.spans.is_empty();
        }
        for spec in wanted {
            let first = DiskSpan { first: durable + 1, last: None };
            let known = disks.iter_mut().find(|disk| disk.name == spec.name && !disk.is_gone);
            match known {
                Some(disk) if disk.size != spec.size => {
                    return Err(format!(
                        "disk {} has {} bytes, the journal knows it with {}: resize it back, or give it another name",
                        spec.name, spec.size, disk.size
                    ));
                }
                Some(disk) if disk.standing() == Standing::Kept => disk.spans.push(first),
                Some(_) => {}
                None => disks.push(ManifestDisk {
                    name: spec.name.clone(),
                    size: spec.size,
                    spans: vec![first],
                    is_gone: false,
                }),
            }
        }
        if disks.len() > DISKS_PER_GROUP_MAX {
            return Err(format!(
                "the group has had {} disks with those that were removed, and a journal takes {DISKS_PER_GROUP_MAX}: put the \
                 configuration back, or remove the group's folder on the retention volume to begin anew, without its points",
                disks.len()
            ));
        }
        Ok(disks)
    }
}

impl<V: Volume> Journal<V> {
    /// All disks that the journal has known, in the order of their indexes.
    pub fn disks(&self) -> Vec<KnownDisk> {
        self.state().manifest.disks.iter().map(ManifestDisk::known).collect()
    }

    /// Indexes and names of the disks that the point after a set has.
    pub fn disks_of(&self, set: u64) -> Vec<(u32, String)> {
        let state = self.state();
        let disks = (0..).zip(&state.manifest.disks).filter(|(_, disk)| disk.is_of(set));
        disks.map(|(index, disk)| (index, disk.name.clone())).collect()
    }

    /// All disks as they would be after [`Journal::change_disks`].
    ///
    /// # Errors
    /// `WrongDisks` where the group can't have them.
    pub fn disks_after(&self, wanted: &[DiskSpec]) -> JournalResult<Vec<KnownDisk>> {
        let state = self.state();
        let disks = state.manifest.disks_changed(wanted, state.durable);
        let disks = disks.map_err(|what| JournalError::WrongDisks { what })?;
        Ok(disks.iter().map(ManifestDisk::known).collect())
    }

    /// Whether these are the disks of the group as it is, in any order; the sizes are not looked at.
    pub fn has_disks(&self, wanted: &[DiskSpec]) -> bool {
        let state = self.state();
        let mut current =
            state.manifest.disks.iter().filter(|disk| disk.standing() == Standing::Current).map(|disk| &disk.name);
        current.clone().count() == wanted.len() && current.all(|name| wanted.iter().any(|spec| spec.name == *name))
    }

    /// Has the group these disks from the next set on. No session may be open, and no failback be under way. True where they
    /// are others than before: then the journal takes nothing more and has to be opened anew.
    ///
    /// # Errors
    /// `WrongDisks` where the group can't have them: nothing was changed.
    pub fn change_disks(&self, wanted: &[DiskSpec]) -> JournalResult<bool> {
        let mut redo = lock(&self.redo);
        let mut undo = lock(&self.undo);
        self.check_running()?;
        if self.has_disks(wanted) {
            return Ok(false);
        }
        let (disks, durable) = {
            let state = self.state();
            let manifest = &state.manifest;
            let is_rolled = manifest.open_bulk().is_some_and(|bulk| bulk.rollback_to.is_some());
            if state.phase.is_some() || redo.is_dirty || manifest.recovery.is_some() || is_rolled {
                return Err(JournalError::State { what: "disks can't be changed in a session or a failback" });
            }
            let disks = manifest.disks_changed(wanted, state.durable);
            (disks.map_err(|what| JournalError::WrongDisks { what })?, state.durable)
        };
        if let Some(segment) = redo.segment.take() {
            self.close_segment(segment)?;
        }
        self.sync_undo(&mut undo)?;
        self.update_manifest(|manifest| {
            manifest.disks = disks;
            // Of the phase that was, nothing counts any more that was not complete (rule L3).
            if let Some(range) = manifest.phases.last_mut() {
                range.last.get_or_insert(durable);
            }
            let is_kept = |disk: u32| manifest.disks.get(disk as usize).map(ManifestDisk::standing);
            // Nobody has it to send it again; that it is not right its sum says.
            let orphans = manifest.damages.iter_mut().filter(|range| is_kept(range.disk) != Some(Standing::Current));
            orphans.for_each(|range| range.until = range.until.or(Some(range.from.max(durable) + 1)));
        })?;
        self.state().stopped.get_or_insert_with(|| "its disks were changed: it has to be opened anew".to_owned());
        Ok(true)
    }

    /// Disks that were removed and that no point has any more, nor a reader, nor a set that is not on the disks yet.
    pub fn unneeded_disks(&self) -> Vec<u32> {
        let state = self.state();
        let manifest = &state.manifest;
        let is_busy = manifest.recovery.is_some() || manifest.open_bulk().is_some_and(|b| b.rollback_to.is_some());
        let kept = (0..).zip(&manifest.disks).filter(|(_, disk)| disk.standing() == Standing::Kept && !is_busy);
        let is_unneeded = |disk: &ManifestDisk| {
            let last = disk.spans.last().and_then(|span| span.last).unwrap_or(0);
            state.applied_durable >= last
                && !state.pins.iter().any(|pin| disk.is_of(pin.set))
                && !state.point_times().any(|(point, _)| disk.is_of(point))
        };
        kept.filter(|(_, disk)| is_unneeded(disk)).map(|(index, _)| index).collect()
    }

    /// Forgets a removed disk, durably: no point has it from now on.
    pub fn forget_disk(&self, disk: u32) -> JournalResult<()> {
        self.update_manifest(|manifest| {
            if let Some(known) = manifest.disks.get_mut(disk as usize) {
                known.is_gone = known.standing() != Standing::Current;
            }
            manifest.damages.retain(|range| range.disk != disk);
        })
    }
}
