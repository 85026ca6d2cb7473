//! What a group must remember across restarts: how often the agent has started, whether the group is fenced, and which
//! disks it protected.
//!
//! One small file per group in the state folder, replaced as a whole. It is JSON so that an operator can read it:
//! `{"version":3,"starts":7,"fenced":false,"fence_request":0,"disks":[{"name":"os",...}]}`. Version 1 knew no disks,
//! version 2 no requests.

use std::path::{Path, PathBuf};

use blockio::{IoError, durable};
use proto::ids::GroupName;
use serde::{Deserialize, Serialize};

use crate::dirty::Identity;

/// Version of the file.
const VERSION: u32 = 3;
/// The oldest version that can be read.
const VERSION_MIN: u32 = 1;

/// Why the state can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("can't use the state of group {group}: {source}; check that state_dir is writable and has room")]
    Io {
        /// The group.
        group: GroupName,
        /// What failed.
        source: IoError,
    },
    /// The file is not what this agent writes.
    #[error("{} is damaged or of another version ({what}); move it away to start over with a full comparison", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    starts: u64,
    fenced: bool,
    #[serde(default)]
    fence_request: u64,
    #[serde(default)]
    disks: Vec<Identity>,
}

/// The durable state of one group.
#[derive(Debug)]
pub struct StateFile {
    group: GroupName,
    folder: PathBuf,
    path: PathBuf,
    state: State,
}

impl StateFile {
    /// Reads the state and counts this start, durably.
    ///
    /// # Errors
    /// `StateError` when the file can't be read, understood or written.
    pub fn open(state_dir: &Path, group: &GroupName) -> Result<Self, StateError> {
        let path = state_dir.join(format!("{group}.json"));
        let mut state = match std::fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                State { version: VERSION, starts: 0, fenced: false, fence_request: 0, disks: Vec::new() }
            }
            Err(error) => {
                let source = IoError::new("read", &path, error);
                return Err(StateError::Io { group: group.clone(), source });
            }
        };
        state.starts += 1;
        state.version = VERSION;
        let mut file = Self { group: group.clone(), folder: state_dir.to_owned(), path, state: state.clone() };
        file.save(state)?;
        Ok(file)
    }

    /// Counts on after start `past`, with nothing known of the disks, so that the next start compares everything. The group of
    /// a state that was lost or restored goes on so, where the target knows a later start (rule L6). A fence stays.
    ///
    /// # Errors
    /// `StateError` when the file can't be read, understood or written.
    pub fn claim(state_dir: &Path, group: &GroupName, past: u64) -> Result<(), StateError> {
        let mut file = Self::open(state_dir, group)?;
        file.save(State { starts: file.starts().max(past), disks: Vec::new(), ..file.state.clone() })
    }

    /// How often the agent has started with this group, this start included.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.state.starts
    }

    /// Whether the group is fenced.
    #[must_use]
    pub fn fenced(&self) -> bool {
        self.state.fenced
    }

    /// The newest failback that asked for a fence; 0 where none is known.
    #[must_use]
    pub fn fence_request(&self) -> u64 {
        self.state.fence_request
    }

    /// Sets or lifts the fence durably; `request` is the newest failback that asked for one.
    ///
    /// # Errors
    /// `StateError::Io` when it is not durable; then the next start may find the one or the other.
    pub fn set_fenced(&mut self, fenced: bool, request: u64) -> Result<(), StateError> {
        self.save(State { fenced, fence_request: request, ..self.state.clone() })
    }

    /// The disks of the last start, as they were then.
    #[must_use]
    pub fn disks(&self) -> &[Identity] {
        &self.state.disks
    }

    /// Remembers durably which disks are protected.
    ///
    /// # Errors
    /// `StateError::Io` when it is not durable.
    pub fn set_disks(&mut self, disks: Vec<Identity>) -> Result<(), StateError> {
        self.save(State { disks, ..self.state.clone() })
    }

    /// The state folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &GroupName {
        &self.group
    }

    fn save(&mut self, state: State) -> Result<(), StateError> {
        let mut text = serde_json::to_vec(&state).expect("numbers and booleans can be written as JSON");
        text.push(b'\n');
        durable::replace(&self.path, &text).map_err(|source| StateError::Io { group: self.group.clone(), source })?;
        self.state = state;
        Ok(())
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<State, StateError> {
    let damaged = |what: String| StateError::Damaged { path: path.to_owned(), what };
    let state: State = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    if !(VERSION_MIN..=VERSION).contains(&state.version) {
        return Err(damaged(format!("version {}", state.version)));
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_and_the_fence_survives() {
        let dir = tempfile::tempdir().unwrap();
        let group: GroupName = "web".parse().unwrap();
        let mut first = StateFile::open(dir.path(), &group).unwrap();
        assert_eq!((first.starts(), first.fenced()), (1, false));
        first.set_fenced(true, 9).unwrap();
        let second = StateFile::open(dir.path(), &group).unwrap();
        assert_eq!((second.starts(), second.fenced(), second.fence_request()), (2, true, 9));
    }

    #[test]
    fn a_state_of_version_1_knows_no_disks() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("web.json"), r#"{"version":1,"starts":4,"fenced":true}"#).unwrap();
        let state = StateFile::open(dir.path(), &"web".parse().unwrap()).unwrap();
        assert_eq!((state.starts(), state.fenced(), state.disks().len()), (5, true, 0));
        assert_eq!(state.fence_request(), 0);
    }

    #[test]
    fn a_damaged_state_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let group: GroupName = "web".parse().unwrap();
        for content in
            ["", "{}", r#"{"version":4,"starts":1,"fenced":false}"#, r#"{"version":1,"starts":-1,"fenced":false}"#]
        {
            std::fs::write(dir.path().join("web.json"), content).unwrap();
            let error = StateFile::open(dir.path(), &group).unwrap_err().to_string();
            assert!(error.contains("web.json"), "{error}");
        }
    }
}
