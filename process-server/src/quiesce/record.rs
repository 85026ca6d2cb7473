//! A durable note that machines may be frozen: made before they are, removed once they are thawed.
//!
//! It holds the command that thaws them. A start that finds it runs that command: both the agent and its guard are gone, by a
//! loss of power, or the guard could not thaw.

use std::io;
use std::path::{Path, PathBuf};

use blockio::{IoError, durable};
use proto::ids::GroupName;

/// The note of one group.
#[derive(Debug)]
pub(super) struct Record {
    folder: PathBuf,
    path: PathBuf,
}

impl Record {
    pub(super) fn new(state_dir: &Path, group: &GroupName) -> Self {
        Self { folder: state_dir.to_owned(), path: state_dir.join(format!("{group}.frozen")) }
    }

    /// Notes that `thaw` is what to run.
    pub(super) fn make(&self, thaw: &str) -> Result<(), IoError> {
        durable::replace(&self.path, thaw.as_bytes())
    }

    /// The command to run, if machines may be frozen.
    pub(super) fn read(&self) -> Result<Option<String>, IoError> {
        match std::fs::read_to_string(&self.path) {
            Ok(thaw) => Ok(Some(thaw)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(IoError::new("read", &self.path, error)),
        }
    }

    /// Nothing is frozen.
    pub(super) fn remove(&self) -> Result<(), IoError> {
        std::fs::remove_file(&self.path).map_err(|source| IoError::new("remove", &self.path, source))?;
        durable::sync_dir(&self.folder)
    }
}
