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
use crate::group::{Group, GroupJournal, TargetDisks, blocking};
use crate::journal::DirVolume;
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

/// The disks, by index.
pub struct PointDisks {
    disks: Vec<Arc<dyn Disk>>,
    sizes: Vec<u64>,
    released: Option<Arc<[Released]>>,
    spoilt: Ranges,
}

impl PointDisks {
    /// Those of a group that is not failing back; the caller sees to it that it doesn't begin to.
    pub async fn of(group: &Group, journal: &GroupJournal) -> Result<Self, PointDisksError> {
        let report = match RecoveryState::of(journal) {
            RecoveryState::FailedBack { report } | RecoveryState::Committed { report } => report,
            RecoveryState::Normal | RecoveryState::FailingBack { .. } => return Self::open_in(group).await,
        };
        let name = group.name().to_owned();
        let report: Report = serde_json::from_str(&report)
            .map_err(|error| PointDisksError::Report { group: name, what: error.to_string() })?;
        let (site, config) = (group.site().clone(), group.config().clone());
        let beside = move || {
            let (mut disks, mut sizes, mut released) = (Vec::new(), Vec::new(), Vec::new());
            for (index, (disk, handed)) in config.disks.iter().zip(&report.disks).enumerate() {
                let failed = |source| PointDisksError::Beside { disk: disk.name.to_string(), source: Box::new(source) };
                released.push(Released::load(&site.folder(&config), index, report.request, handed.size)?);
                disks.push(open_beside(&disk.target, &site.datastores).map_err(failed)?);
                sizes.push(handed.size);
            }
            Ok(Self { disks, sizes, released: Some(released.into()), spoilt: report.spoilt })
        };
        blocking(beside).await
    }

    async fn open_in(group: &Group) -> Result<Self, PointDisksError> {
        let handed = group.handed_disks().await;
        if handed.is_empty() {
            let why = group.board().failure().unwrap_or_else(|| "the group is being opened; try again".to_owned());
            return Err(PointDisksError::NotOpen { group: group.name().to_owned(), why });
        }
        let sizes = handed.iter().map(|disk| disk.size).collect();
        let disks = handed.into_iter().map(|disk| disk.disk).collect();
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
