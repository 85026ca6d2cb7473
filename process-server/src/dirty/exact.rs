//! What a clean stop leaves: exactly which blocks the target lacks, so that the next start need not compare regions.
//!
//! One small file per group, made last of all at a stop and durably removed before the next start takes its first write
//! (rule S10): a file that is there was true when the agent ended. It counts only together with the marks of the same
//! commit and with disks that nobody has touched since.
//!
//! Text of two lines: the CRC-32 of the second in hexadecimal, and JSON.

use std::io;
use std::path::{Path, PathBuf};

use blockio::{IoError, durable};
use proto::ids::{Counter, GroupName, Lineage};
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::intent::Key;

/// Runs of blocks that are worth writing down; beyond that, comparing the marked regions costs less than reading this.
const RUNS_MAX: usize = 1 << 18;
const VERSION: u32 = 1;

/// Why the record can't be written or removed.
#[derive(Debug, thiserror::Error)]
#[error(
    "can't use the record of a clean stop of group {group}: {source}; check that state_dir is writable and has room"
)]
pub struct ExactError {
    /// The group.
    pub group: GroupName,
    /// What failed.
    pub source: IoError,
}

/// A run of blocks: disk, first block, count.
pub type Run = (u32, u64, u64);

/// The record of a clean stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exact {
    version: u32,
    /// Number of the last commit of the marks.
    pub commit: u64,
    /// Lineage and counter of the newest acknowledgement, on which everything relies that is not listed (rule L1).
    target: Option<(Vec<u8>, u64)>,
    /// The disks, as they were left.
    pub disks: Vec<Identity>,
    /// Blocks whose content the target lacks.
    pub dirty: Vec<Run>,
    /// Blocks of which it is not known whether the target has their content.
    pub suspect: Vec<Run>,
}

impl Exact {
    /// A record; none where it would be too long to be of use.
    #[must_use]
    pub fn new(
        commit: u64,
        key: Option<Key>,
        disks: Vec<Identity>,
        dirty: Vec<Run>,
        suspect: Vec<Run>,
    ) -> Option<Self> {
        let fits = dirty.len() + suspect.len() <= RUNS_MAX;
        let target = key.map(|key| (key.lineage.0.to_vec(), key.counter.0));
        fits.then_some(Self { version: VERSION, commit, target, disks, dirty, suspect })
    }

    /// What was known of the target.
    #[must_use]
    pub fn key(&self) -> Option<Key> {
        let (lineage, counter) = self.target.as_ref()?;
        Some(Key { lineage: Lineage(lineage.as_slice().try_into().ok()?), counter: Counter(*counter) })
    }

    /// Writes the record, durably.
    ///
    /// # Errors
    /// `ExactError` when it is not durable.
    pub fn save(&self, state_dir: &Path, group: &GroupName) -> Result<(), ExactError> {
        let json = serde_json::to_string(self).expect("numbers and texts can be written as JSON");
        let text = format!("{:08x}\n{json}\n", blockio::crc32(json.as_bytes()));
        durable::replace(&path(state_dir, group), text.as_bytes())
            .map_err(|source| ExactError { group: group.clone(), source })
    }

    /// Takes the record of the last stop, if there is a good one: afterwards it is durably gone.
    ///
    /// # Errors
    /// `ExactError` when it is there and can't be removed: the next crash must not find it.
    pub fn take(state_dir: &Path, group: &GroupName) -> Result<Option<Self>, ExactError> {
        let path = path(state_dir, group);
        let failed = |op, source| ExactError { group: group.clone(), source: IoError::new(op, &path, source) };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // What can't be read is as good as damaged; it must go all the same.
            Err(_) => None,
        };
        std::fs::remove_file(&path).map_err(|source| failed("remove", source))?;
        durable::sync_dir(state_dir).map_err(|source| ExactError { group: group.clone(), source })?;
        Ok(text.and_then(|text| parse(&text)))
    }
}

fn path(state_dir: &Path, group: &GroupName) -> PathBuf {
    state_dir.join(format!("{group}.clean"))
}

fn parse(text: &str) -> Option<Exact> {
    let (crc, json) = text.split_once('\n')?;
    let json = json.strip_suffix('\n')?;
    let is_whole = u32::from_str_radix(crc, 16).ok()? == blockio::crc32(json.as_bytes());
    let exact: Exact = is_whole.then(|| serde_json::from_str(json).ok())??;
    (exact.version == VERSION).then_some(exact)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact() -> Exact {
        let key = Key { lineage: Lineage([3; 16]), counter: Counter(12) };
        Exact::new(9, Some(key), Vec::new(), vec![(0, 3, 5)], vec![(1, 0, 256)]).unwrap()
    }

    #[test]
    fn a_record_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let group = "web".parse().unwrap();
        assert_eq!(Exact::take(folder.path(), &group).unwrap(), None);
        exact().save(folder.path(), &group).unwrap();
        let taken = Exact::take(folder.path(), &group).unwrap().unwrap();
        assert_eq!((&taken, taken.key()), (&exact(), exact().key()));
        assert!(taken.key().is_some());
        assert_eq!(Exact::take(folder.path(), &group).unwrap(), None);
    }

    #[test]
    fn a_damaged_record_is_none_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let group: GroupName = "web".parse().unwrap();
        exact().save(folder.path(), &group).unwrap();
        let path = folder.path().join("web.clean");
        let good = std::fs::read_to_string(&path).unwrap();
        for bad in [good.replace("256", "257"), good[9..].to_owned(), String::new(), good.replace('\n', "")] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(Exact::take(folder.path(), &group).unwrap(), None);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_record_that_would_be_too_long_is_not_made() {
        let many = vec![(0, 0, 1); RUNS_MAX + 1];
        assert_eq!(Exact::new(1, None, Vec::new(), many, Vec::new()), None);
    }
}
