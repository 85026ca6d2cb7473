//! The file of a table: `{"version":1,"next":8,"jobs":[...]}`, oldest first.
//!
//! A file that can't be read is moved aside: the history of jobs is worth no failed start.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::record::Record;

/// Version of the file.
const VERSION: u32 = 1;
/// Largest file that is read: [`JOBS_MAX`] rows of a few hundred bytes, and more.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Jobs that are kept; the oldest that have ended go.
pub(crate) const JOBS_MAX: usize = 256;
/// Bytes of a text in a row.
pub(crate) const TEXT_BYTES_MAX: usize = 4096;

const _: () = assert!(JOBS_MAX as u64 * (3 * TEXT_BYTES_MAX as u64 + 1024) < FILE_BYTES_MAX);

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    version: u32,
    /// Id of the next job.
    pub next: u64,
    /// Oldest first.
    pub jobs: Vec<Record>,
}

impl Kept {
    pub fn new(next: u64, jobs: Vec<Record>) -> Self {
        Self { version: VERSION, next, jobs }
    }
}

/// Where it is.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
}

impl Store {
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Reads the file; empty where there is none, or none that can be read.
    pub fn load(&self) -> Kept {
        match self.read() {
            Ok(Some(kept)) => kept,
            Ok(None) => Kept::new(1, Vec::new()),
            Err(what) => {
                let aside = self.path.with_extension("damaged");
                tracing::warn!(
                    file = %self.path.display(), moved_to = %aside.display(),
                    "the history of jobs can't be read ({what}): it begins anew"
                );
                self.move_aside(&aside);
                Kept::new(1, Vec::new())
            }
        }
    }

    fn read(&self) -> Result<Option<Kept>, String> {
        match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
            Ok(found) if found.len() > FILE_BYTES_MAX => return Err(format!("{} bytes are too many", found.len())),
            Ok(_) => {}
        }
        let bytes = std::fs::read(&self.path).map_err(|error| error.to_string())?;
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        if kept.version != VERSION {
            return Err(format!("its version is {}, this agent knows {VERSION}", kept.version));
        }
        if kept.jobs.iter().any(|job| job.id == 0 || job.id >= kept.next) {
            return Err("a job has a number that was not given out".to_owned());
        }
        Ok(Some(kept))
    }

    /// A copy is enough: the file itself is replaced with the next job.
    fn move_aside(&self, aside: &Path) {
        if let Err(error) = std::fs::copy(&self.path, aside) {
            tracing::warn!(file = %aside.display(), %error, "it could not be kept");
        }
    }

    /// Replaces the file durably; the text says why it could not be.
    pub fn save(&self, kept: &Kept) -> Result<(), String> {
        let bytes = serde_json::to_vec_pretty(kept).map_err(|error| error.to_string())?;
        blockio::durable::replace(&self.path, &bytes).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Kind, State};

    fn record(id: u64) -> Record {
        Record {
            id,
            group: Some("web".into()),
            kind: Kind::Failback,
            state: State::Done,
            began_us: 1,
            ended_us: Some(2),
            error: None,
            result: Some("point 7".into()),
            step: String::new(),
            done_bytes: 0,
            total_bytes: 0,
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(&folder.path().join("jobs.json"));
        assert_eq!(store.load(), Kept::new(1, vec![]));
        let kept = Kept::new(9, vec![record(3), record(8)]);
        store.save(&kept).unwrap();
        assert_eq!(store.load(), kept);
    }

    #[test]
    fn a_file_that_can_not_be_read_is_kept_aside_and_hinders_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.json");
        let whole = String::from_utf8(serde_json::to_vec(&Kept::new(9, vec![record(3)])).unwrap()).unwrap();
        let damaged = [
            String::new(),
            "{}".to_owned(),
            whole.replace("\"version\":1", "\"version\":2"),
            whole.replace("\"next\":9", "\"next\":3"),
            whole.replace("failback", "fallback"),
            whole.replace("\"id\":3", "\"id\":-3"),
            " ".repeat(FILE_BYTES_MAX as usize + 1),
        ];
        for content in damaged {
            std::fs::write(&path, &content).unwrap();
            assert_eq!(Store::at(&path).load(), Kept::new(1, vec![]), "{content:.80}");
            assert_eq!(std::fs::read_to_string(folder.path().join("jobs.damaged")).unwrap(), content);
        }
    }
}
