//! The disks that a point is read from: those that the group has open or, once they were handed over, the same files, looked
//! at beside the machine that has them.
//!
//! A point needs what is not in the journal from the disks, as they were when they were handed over. So each MiB that is
//! read there is digested and compared with what was kept then: what was compared is what is served, so it does not matter
//! what the machine writes meanwhile. What it has overwritten is gone, and reading it fails.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::error::FailbackError;
use super::put_point::{chosen, is_held};
use super::ranges::{Range, Ranges};
use super::reader::{PointReader, ReadError};
use super::record::RecoveryState;
use super::released::{Released, ReleasedError};
use super::report::Report;
use super::steps::Choice;
use crate::group::{Group, GroupJournal, Member, TargetDisks, blocking, by_index};
use crate::journal::limits::SECTOR_BYTES;
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
    /// A disk that the point needs can't be read.
    #[error(transparent)]
    Closed(#[from] ClosedDisk),
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

/// A disk that can't be read, though points have it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("disk \"{disk}\", which the point needs, can't be opened: {why}")]
pub struct ClosedDisk {
    disk: String,
    why: String,
}

impl ClosedDisk {
    /// One that was removed from the group, and was not there when the others were opened.
    pub fn removed(disk: &Member) -> Self {
        let why = format!(
            "it was removed from the group, and its target {} was not there when the group was opened: bring it back and \
             restart the agent, or choose another point",
            disk.target_text()
        );
        Self { disk: disk.spec.name.clone(), why }
    }

    fn beside(disk: &str, error: &TargetError) -> Self {
        Self { disk: disk.to_owned(), why: format!("it was handed over, and {error}") }
    }
}

/// Refuses a point of which something has to be put on a disk that is none of `open`; blocks.
pub(super) fn check_open(
    journal: &GroupJournal,
    choice: Choice,
    roster: &[Member],
    open: &[u32],
) -> Result<(), FailbackError> {
    let point = chosen(journal, choice)?;
    let has = journal.disks_of(point.set.0).into_iter().map(|(index, _)| index);
    let closed: Vec<u32> = has.filter(|index| !open.contains(index)).collect();
    if closed.is_empty() || is_held(journal, &point) {
        return Ok(());
    }
    let ranges = journal.ranges_of_rollback(point.set)?;
    let needed = ranges.iter().map(|range| range.disk).find(|disk| closed.contains(disk));
    match needed.and_then(|disk| roster.get(disk as usize)) {
        Some(disk) => Err(ClosedDisk::removed(disk).into()),
        None => Ok(()),
    }
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
    /// Why there are not all of them, by index.
    closed: BTreeMap<usize, ClosedDisk>,
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
            let mut closed = closed_of(&roster, |_| false);
            released.resize_with(sizes.len(), || None);
            for (index, handed) in report.indexed() {
                let index = index as usize;
                let Some(target) = roster.get(index).and_then(|disk| disk.target.as_ref()) else { continue };
                released[index] = Some(Released::load(&site.folder(&config), index, report.request, handed.size)?);
                match open_beside(target, &site.datastores) {
                    Ok(disk) => {
                        disks[index] = Some(disk);
                        closed.remove(&index);
                    }
                    Err(error) => _ = closed.insert(index, ClosedDisk::beside(&handed.name, &error)),
                }
            }
            Ok(Self { disks, closed, sizes, released: Some(released.into()), spoilt: report.spoilt })
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
        let closed = closed_of(&group.board().roster(), |index| disks.get(index).is_some_and(Option::is_some));
        Ok(Self { disks, closed, sizes, released: None, spoilt: Ranges::default() })
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

    /// Refuses a point that needs one of these disks, which can't be read, or what was overwritten there between two choices;
    /// blocks.
    pub fn check(
        &self,
        reader: &mut PointReader<DirVolume, TargetDisks>,
        disks: &[usize],
    ) -> Result<(), PointDisksError> {
        for (index, closed) in disks.iter().filter_map(|index| Some((*index, self.closed.get(index)?))) {
            if !reader.holds(index as u32, 0, self.sizes[index] / SECTOR_BYTES)? {
                return Err(closed.clone().into());
            }
        }
        for Range(disk, sector, sectors) in self.spoilt.iter().filter(|range| disks.contains(&(range.0 as usize))) {
            if !reader.holds(disk, sector, sectors)? {
                return Err(PointDisksError::Overwritten { disk, sector });
            }
        }
        Ok(())
    }
}

/// Those that are held and not open.
fn closed_of(roster: &[Member], is_open: impl Fn(usize) -> bool) -> BTreeMap<usize, ClosedDisk> {
    let disks = roster.iter().enumerate().filter(|(index, disk)| disk.is_held() && !is_open(*index));
    disks.map(|(index, disk)| (index, ClosedDisk::removed(disk))).collect()
}

fn sizes_of(journal: &GroupJournal) -> Vec<u64> {
    journal.disks().into_iter().map(|disk| disk.size).collect()
}
