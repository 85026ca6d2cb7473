//! Carries out what the core asks for the sake of the next start: commits of marks, the record of a clean stop.

use std::path::PathBuf;
use std::sync::Arc;

use blockio::{Access, BlockFile, IoError, LockRole, Op};
use tracing::{info, warn};

use super::thread::{DiskState, Tap, Token};
use crate::dirty::{Commit, Exact, Identity, PAGE_BYTES};

/// A commit whose pages are being written, or synced.
#[derive(Debug, Default)]
pub(super) struct Committing {
    writes_left: usize,
    failed: bool,
    /// Failures in a row: the first is logged, and then one in a while.
    failures: u32,
}

/// One failed commit in this many is logged. They are tried every 30 s after the first few: one line an hour.
const LOG_EVERY: u32 = 120;

/// The file of the marks: closed while its volume fails.
#[derive(Debug)]
pub(super) struct MarksFile {
    file: Option<Arc<BlockFile>>,
    path: PathBuf,
    size: u64,
}

impl MarksFile {
    pub(super) fn new(file: Arc<BlockFile>) -> Self {
        Self { path: file.path().to_owned(), size: file.size(), file: Some(file) }
    }

    /// The file, opened and locked again where it was closed. The next commit writes all of it.
    fn open(&mut self) -> Result<Arc<BlockFile>, String> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let file = BlockFile::open(&self.path, Access::ReadWrite).map_err(|error| error.to_string())?;
        file.lock(LockRole::State).map_err(|error| error.to_string())?;
        if file.size() != self.size {
            return Err(format!("{} has another size than before", self.path.display()));
        }
        Ok(self.file.insert(Arc::new(file)).clone())
    }
}

impl Tap {
    /// Writes the pages of a commit in place; the sync follows the last of them.
    pub(super) fn commit_marks(&mut self, commit: &Commit) {
        self.committing.writes_left = commit.pages.len();
        self.committing.failed = false;
        let file = match self.marks.open() {
            Ok(file) => file,
            Err(why) => {
                self.note_mark_failure(Err(why));
                return self.end_commit();
            }
        };
        for (page, bytes) in &commit.pages {
            let mut buf = self.pool.take(PAGE_BYTES);
            buf.copy_from_slice(bytes);
            let offset = u64::from(*page) * PAGE_BYTES as u64;
            let op = Op::Write { file: file.clone(), offset, data: buf.freeze() };
            self.engine.submit(Token::MarkWrite.encode(), op);
        }
    }

    /// A page has been written.
    pub(super) fn mark_written(&mut self, result: Result<(), IoError>) {
        self.committing.writes_left -= 1;
        self.note_mark_failure(result.map_err(|error| error.to_string()));
        if self.committing.writes_left > 0 {
            return;
        }
        if self.committing.failed {
            return self.end_commit();
        }
        if let Some(file) = self.marks.file.clone() {
            self.engine.submit(Token::MarkSync.encode(), Op::Sync { file });
        }
    }

    /// The pages have been synced.
    pub(super) fn marks_synced(&mut self, result: Result<(), IoError>) {
        self.note_mark_failure(result.map_err(|error| error.to_string()));
        self.end_commit();
    }

    fn note_mark_failure(&mut self, result: Result<(), String>) {
        let Err(error) = result else { return };
        if !self.committing.failed && self.committing.failures.is_multiple_of(LOG_EVERY) {
            warn!(
                group = %self.name, error,
                "the write-intent marks can't be written; guest writes go on once the target has noted that, and a restart of the \
                 agent compares everything until they can: check that state_dir is writable and has room"
            );
        }
        self.committing.failed = true;
    }

    fn end_commit(&mut self) {
        if self.committing.failed {
            self.committing.failures += 1;
            // A descriptor that is kept would keep a volume from being unmounted, checked and mounted again.
            self.marks.file = None;
        } else if std::mem::take(&mut self.committing.failures) > 0 {
            info!(group = %self.name, "the write-intent marks can be written again");
        }
        self.group.marks_committed(!self.committing.failed);
    }

    /// Whether a stop should wait for the marks: not where they can't be written.
    pub(super) fn waits_for_marks(&self) -> bool {
        self.group.marks_settled().is_none() && self.committing.failures == 0
    }

    /// Leaves the record of a clean stop: everything has ended, and the disks are flushed.
    pub(super) fn save_exact(&self) {
        let Some(commit) = self.group.marks_settled() else {
            warn!(group = %self.name, "the write-intent marks are not settled: the next start compares what is marked");
            return;
        };
        let (dirty, suspect) = self.group.exact();
        let look = |disk: &DiskState| Identity::of(disk.name(), disk.file.path(), disk.file.size());
        let identities = match self.disks.iter().map(look).collect::<Result<_, _>>() {
            Ok(identities) => identities,
            Err(error) => {
                warn!(group = %self.name, %error, "a protected disk can't be looked at: the next start compares what is marked");
                return;
            }
        };
        let Some(exact) = Exact::new(commit, self.group.key(), identities, dirty, suspect) else { return };
        if let Err(error) = exact.save(self.state.folder(), self.state.group()) {
            warn!(group = %self.name, %error, "the record of the clean stop can't be kept: the next start compares what is marked");
        }
    }
}
