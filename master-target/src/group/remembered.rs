//! What the agent must know of a group before its source connects again: its disks, and the identity that each target
//! had when this agent last wrote it.
//!
//! One small JSON file beside the group's journal, replaced durably. It lies there and not in the state folder because
//! it belongs to the journal's content: sizes can't change under it, and a target that somebody else wrote meanwhile
//! makes it worthless (rule J14).

use std::io;
use std::path::{Path, PathBuf};

use proto::replication::DiskSpec;
use serde::{Deserialize, Serialize};

/// Largest file that is read: 64 disks take less than 16 KiB.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What is remembered of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// Number of the journal's folder: a new one begins when the targets are no longer what the journal tells of.
    pub journal: u32,
    /// The disks, in the order both agents use.
    pub disks: Vec<RememberedDisk>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RememberedDisk {
    /// Its name.
    pub name: String,
    /// Bytes it has on the source.
    pub size: u64,
    /// Bytes of its logical block on the source.
    pub logical_block: u32,
    /// Its target as configured.
    pub target: String,
    /// What the target may be found as: as it was left, and as it was about to be stamped.
    pub identities: Vec<String>,
}

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RememberedError {
    /// It can't be read.
    #[error("{path}: {source}; check the retention volume", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what this agent writes.
    #[error("{path}: {what}; restore the retention volume, or remove the group's folder on it to begin anew", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It can't be written.
    #[error(transparent)]
    Write(#[from] blockio::IoError),
}

impl Remembered {
    /// Reads the file; `None` if the group was never replicated.
    pub fn load(path: &Path) -> Result<Option<Self>, RememberedError> {
        let unreadable = |source| RememberedError::Read { path: path.to_owned(), source };
        let damaged = |what: String| RememberedError::Damaged { path: path.to_owned(), what };
        let length = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(unreadable)?.len(),
        };
        if length > FILE_BYTES_MAX {
            return Err(damaged(format!("{length} bytes are too many")));
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(error.to_string()))
    }

    /// Replaces the file durably.
    pub fn save(&self, path: &Path) -> Result<(), RememberedError> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| RememberedError::Damaged { path: path.to_owned(), what: error.to_string() })?;
        Ok(blockio::durable::replace(path, &bytes)?)
    }

    /// The disks as the wire says them.
    pub fn specs(&self) -> Vec<DiskSpec> {
        let spec = |disk: &RememberedDisk| DiskSpec {
            name: disk.name.clone(),
            size: disk.size,
            logical_block: disk.logical_block,
        };
        self.disks.iter().map(spec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Remembered {
        let disk = RememberedDisk {
            name: "os".into(),
            size: 1 << 30,
            logical_block: 512,
            target: "[ds1] web/os.vmdk".into(),
            identities: vec!["0badcafe".into()],
        };
        Remembered { journal: 1, disks: vec![disk] }
    }

    #[test]
    fn what_was_saved_is_loaded_and_replaced_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disks.json");
        assert_eq!(Remembered::load(&path).unwrap(), None);
        sample().save(&path).unwrap();
        let mut second = sample();
        second.disks[0].identities.clear();
        second.save(&path).unwrap();
        assert_eq!(Remembered::load(&path).unwrap(), Some(second.clone()));
        assert_eq!(second.specs()[0].size, 1 << 30);
    }

    #[test]
    fn a_damaged_file_is_refused_with_its_name_and_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disks.json");
        for content in [
            "",
            "{}",
            "{\"journal\": 1, \"disks\": [], \"more\": 1}",
            "{\"journal\": 1, \"disks\": [{\"name\": \"os\"}]}",
        ] {
            std::fs::write(&path, content).unwrap();
            let text = Remembered::load(&path).unwrap_err().to_string();
            assert!(text.contains("disks.json") && text.contains("restore the retention volume"), "{content}: {text}");
        }
        std::fs::write(&path, vec![b' '; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(Remembered::load(&path).unwrap_err().to_string().contains("too many"));
    }
}
