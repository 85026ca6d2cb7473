//! The file of a group's write-intent marks: read at start, written in place by the group's thread.
//!
//! The descriptor that writes it holds its lock, so a starting agent waits for the last write of a killed one (rule
//! S14). A file that is missing or that can't be trusted is replaced as a whole by one that marks everything.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockio::{Access, BlockFile, IoError, LockError, LockRole, durable};
use proto::ids::GroupName;

use super::intent::{Intent, Layout};

/// Time to wait for a lock: a write of a killed agent can hold it for seconds after its process is gone (S14).
pub const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Why the marks can't be used.
#[derive(Debug, thiserror::Error)]
pub enum MarksError {
    /// Reading or writing failed.
    #[error(
        "can't use the write-intent marks of group {group}: {source}; check that state_dir is writable and has room"
    )]
    Io {
        /// The group.
        group: GroupName,
        /// What failed.
        source: IoError,
    },
    /// Another agent uses the same state.
    #[error("can't use the write-intent marks of group {group}: {source}")]
    Lock {
        /// The group.
        group: GroupName,
        /// Who, and what to do.
        source: LockError,
    },
}

/// The marks of a group and the file that they are in.
#[derive(Debug)]
pub struct Marks {
    /// Locked, open for writing.
    pub file: Arc<BlockFile>,
    /// What it says.
    pub intent: Intent,
    /// Why everything is marked, where nothing could be trusted.
    pub doubt: Option<String>,
}

impl Marks {
    /// Opens the marks of a group. `doubt` says why what an earlier agent left does not count.
    ///
    /// # Errors
    /// `MarksError` when the file can't be locked, read or made.
    pub fn open(
        state_dir: &Path,
        group: &GroupName,
        layout: Layout,
        doubt: Option<String>,
    ) -> Result<Self, MarksError> {
        let path = path_of(state_dir, group);
        let failed = |source| MarksError::Io { group: group.clone(), source };
        let doubt = match doubt {
            Some(doubt) => doubt,
            None if !path.exists() => "there are no marks of an earlier start".to_owned(),
            None => {
                let file = open_locked(&path, group, LOCK_PATIENCE)?;
                let mut pages = vec![0; usize::try_from(file.size()).unwrap_or(0)];
                file.read_exact_at(&mut pages, 0).map_err(failed)?;
                match Intent::read(layout.clone(), &pages) {
                    Some(intent) => return Ok(Self { file: Arc::new(file), intent, doubt: None }),
                    None => format!("{} does not fit the disks or is damaged", path.display()),
                }
            }
        };
        let mut intent = Intent::unknown(layout);
        durable::replace(&path, &intent.whole()).map_err(failed)?;
        intent.whole_is_durable();
        Ok(Self { file: Arc::new(open_locked(&path, group, LOCK_PATIENCE)?), intent, doubt: Some(doubt) })
    }

    /// Locks the marks of a group, where it has any, so that no agent runs with them meanwhile.
    ///
    /// # Errors
    /// `MarksError` when an agent has them.
    pub fn lock(state_dir: &Path, group: &GroupName) -> Result<Option<BlockFile>, MarksError> {
        let path = path_of(state_dir, group);
        if path.exists() { open_locked(&path, group, Duration::ZERO).map(Some) } else { Ok(None) }
    }
}

fn path_of(state_dir: &Path, group: &GroupName) -> PathBuf {
    state_dir.join(format!("{group}.marks"))
}

fn open_locked(path: &Path, group: &GroupName, patience: Duration) -> Result<BlockFile, MarksError> {
    let file =
        BlockFile::open(path, Access::ReadWrite).map_err(|source| MarksError::Io { group: group.clone(), source })?;
    file.lock_within(LockRole::State, patience).map_err(|source| MarksError::Lock { group: group.clone(), source })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use proto::ids::DiskIndex;

    use super::*;

    const DISK: DiskIndex = DiskIndex(0);

    fn open(folder: &Path, doubt: Option<&str>) -> Marks {
        let layout = Layout::of([8 << 20]);
        Marks::open(folder, &"web".parse().unwrap(), layout, doubt.map(str::to_owned)).unwrap()
    }

    #[test]
    fn marks_survive_and_doubt_marks_everything_durably_first() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = open(folder.path(), None);
        assert!(first.doubt.is_some(), "nothing was known");
        assert!(first.intent.covers(DISK, 0, 2048), "marked durably before anything is written");
        for region in 1..8 {
            first.intent.unmark(DISK, region);
        }
        let commit = first.intent.begin_commit().unwrap();
        first.file.write_all_at(&commit.pages[0].1, 0).unwrap();
        first.file.sync().unwrap();
        drop(first);
        let second = open(folder.path(), None);
        assert_eq!((second.doubt, second.intent.marked(DISK)), (None, vec![(0, 1)]));
        drop(second.file);
        assert_eq!(open(folder.path(), Some("another disk")).intent.marked(DISK), [(0, 8)]);
        assert_eq!(open(folder.path(), None).intent.marked(DISK), [(0, 8)], "it stays so");
    }

    #[test]
    fn a_damaged_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("web.marks"), [0; 4096]).unwrap();
        let marks = open(folder.path(), None);
        assert!(marks.doubt.unwrap().contains("web.marks"));
        assert_eq!(marks.intent.marked(DISK), [(0, 8)]);
    }
}
