//! The disks that a point is read from: those that the group has open or, once they were handed over, the same files, looked
//! at beside the machine that has them.
//!
//! A point needs what is not in the journal from the disks, as they were when they were handed over. So each MiB that is
//! read there is digested and compared with what was kept then: what was compared is what is served, so it does not matter
//! what the machine writes meanwhile. What it has overwritten is gone, and reading it fails.

use std::io;
use std::sync::Arc;

use super::ranges::{Range, Ranges};
use super::reader::{PointReader, ReadError};
use super::record::RecoveryState;
use super::released::{Released, ReleasedError};
use super::report::Report;
use crate::group::{Group, GroupJournal, TargetDisks, blocking, by_index};
use crate::journal::{DirVolume, Standing};
use crate::retention::PointInfo;
use crate::target::{Disk, TargetError, open_beside};

/// Why a point can't be read from the disks.
#[derive(Debug, thiserror::Error)]
pub enum PointDisksError {
    /// They are not open.
    #[error("the disks of group \"{group}\" are not open: {why}")]
    NotOpen {
        /// The group.
        group: String,
        /// Why not.
        why: String,
    },
    /// A disk that was handed over can't be looked at.
    #[error("disk \"{disk}\", which was handed over: {source}")]
    Beside {
        /// The disk.
        disk: String,
        /// What happened, with the remedy.
        source: Box<TargetError>,
    },
    /// What is kept of it.
    #[error(transparent)]
    Released(#[from] ReleasedError),
    /// The report of the failback.
    #[error("the report of the failback of group \"{group}\" can't be read: {what}; restore the retention volume")]
    Report {
        /// The group.
        group: String,
        /// What is wrong.
        what: String,
    },
    /// A machine wrote what the point needs, before another choice.
    #[error(
        "disk {disk} at sector {sector}: what the point holds there stood on the disk only, and was overwritten after it was \
         handed over: choose another point"
    )]
    Overwritten {
        /// Index of the disk.
        disk: u32,
        /// Where.
        sector: u64,
    },
    /// Looking the point up.
    #[error("reading the point: {0}")]
    Read(#[from] ReadError),
}

/// A disk that a point doesn't have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// Nobody knows it.
    #[error("group \"{group}\" has no disk \"{disk}\": its disks are {known}")]
    NoDisk {
        /// The group.
        group: String,
        /// What was asked for.
        disk: String,
        /// What there is.
        known: String,
    },
    /// It was added later, or had been removed.
    #[error(
        "disk \"{disk}\" was not in group \"{group}\" at point {point}, which has {known}: choose one of these, or another point"
    )]
    NotAtPoint {
        /// The group.
        group: String,
        /// What was asked for.
        disk: String,
        /// The point.
        point: String,
        /// What it has.
        known: String,
    },
}

/// Indexes and names of the disks of a point that are meant: one by its name, or all.
pub fn chosen_disks(
    group: &Group,
    journal: &GroupJournal,
    point: &PointInfo,
    only: Option<&str>,
) -> Result<Vec<(usize, String)>, ChooseError> {
    let names = |names: &mut dyn Iterator<Item = &str>| names.collect::<Vec<_>>().join(", ");
    let has = journal.disks_of(point.set.0);
    let chosen = has.iter().filter(|(_, name)| only.is_none_or(|only| only == name));
    let chosen: Vec<_> = chosen.map(|(index, name)| (*index as usize, name.clone())).collect();
    let Some(disk) = only.filter(|_| chosen.is_empty()).map(ToOwned::to_owned) else { return Ok(chosen) };
    let (all, group) = (journal.disks(), group.name().to_owned());
    let mut held = all.iter().filter(|known| known.standing != Standing::Gone).map(|known| known.name.as_str());
    if held.clone().all(|known| known != disk) {
        return Err(ChooseError::NoDisk { group, disk, known: names(&mut held) });
    }
    let known = names(&mut has.iter().map(|(_, name)| name.as_str()));
    Err(ChooseError::NotAtPoint { group, disk, point: point.id.clone(), known })
}

/// The disks, by index.
pub struct PointDisks {
    disks: Vec<Option<Arc<dyn Disk>>>,
    sizes: Vec<u64>,
    released: Option<Arc<[Option<Released>]>>,
    spoilt: Ranges,
}

impl PointDisks {
    /// Those of a group that is not failing back; the caller sees to it that it doesn't begin to.
    pub async fn of(group: &Group, journal: &GroupJournal) -> Result<Self, PointDisksError> {
        let report = match RecoveryState::of(journal) {
            RecoveryState::FailedBack { report } | RecoveryState::Committed { report } => report,
            RecoveryState::Normal | RecoveryState::FailingBack { .. } => return Self::open_in(group, journal).await,
        };
        let name = group.name().to_owned();
        let report: Report = serde_json::from_str(&report)
            .map_err(|error| PointDisksError::Report { group: name, what: error.to_string() })?;
        let (site, config) = (group.site().clone(), group.config().clone());
        let (roster, sizes) = (group.board().roster(), sizes_of(journal));
        let beside = move || {
            let (mut disks, mut released) = (vec![None; sizes.len()], Vec::new());
            released.resize_with(sizes.len(), || None);
            for (place, handed) in report.disks.iter().enumerate() {
                let index = handed.index.map_or(place, |index| index as usize);
                let failed = |source| PointDisksError::Beside { disk: handed.name.clone(), source: Box::new(source) };
                let Some(target) = roster.get(index).and_then(|disk| disk.target.as_ref()) else { continue };
                released[index] = Some(Released::load(&site.folder(&config), index, report.request, handed.size)?);
                disks[index] = Some(open_beside(target, &site.datastores).map_err(failed)?);
            }
            Ok(Self { disks, sizes, released: Some(released.into()), spoilt: report.spoilt })
        };
        blocking(beside).await
    }

    async fn open_in(group: &Group, journal: &GroupJournal) -> Result<Self, PointDisksError> {
        let handed = group.handed_disks().await;
        if handed.is_empty() {
            let why = group.board().failure().unwrap_or_else(|| "the group is being opened; try again".to_owned());
            return Err(PointDisksError::NotOpen { group: group.name().to_owned(), why });
        }
        let (disks, sizes) = (by_index(&handed), sizes_of(journal));
        Ok(Self { disks, sizes, released: None, spoilt: Ranges::default() })
    }

    /// Bytes of each disk.
    pub fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// The disks with an I/O engine of their own.
    pub fn make(&self) -> io::Result<TargetDisks> {
        let disks = TargetDisks::new(self.disks.clone())?;
        Ok(match &self.released {
            Some(released) => disks.having_released(released.clone()),
            None => disks,
        })
    }

    /// Refuses a point that needs of one of these disks what was overwritten between two choices; blocks.
    pub fn check(
        &self,
        reader: &mut PointReader<DirVolume, TargetDisks>,
        disks: &[usize],
    ) -> Result<(), PointDisksError> {
        for Range(disk, sector, sectors) in self.spoilt.iter().filter(|range| disks.contains(&(range.0 as usize))) {
            if !reader.holds(disk, sector, sectors)? {
                return Err(PointDisksError::Overwritten { disk, sector });
            }
        }
        Ok(())
    }
}

fn sizes_of(journal: &GroupJournal) -> Vec<u64> {
    journal.disks().into_iter().map(|disk| disk.size).collect()
}
