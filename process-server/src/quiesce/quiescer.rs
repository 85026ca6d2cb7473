//! Takes an application-consistent point of one group: note, freeze, cut, thaw, and only then wait for the target.
//!
//! The machines are frozen for the time of a cut, which waits for nothing: not for the link, not for the target. It all
//! blocks; callers run it on a thread that may.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

use blockio::IoError;
use proto::ids::GroupName;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::guard::{self, Word};
use super::record::Record;
use crate::control::{Frozen, GroupHandle, GroupState, PointOrder};

/// The commands of `[group.hook]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Quiesces the machines.
    pub freeze: String,
    /// Lets them go on; harmless where nothing is frozen.
    pub thaw: String,
    /// Longest time from the begin of the freeze to the begin of the thaw.
    pub timeout: Duration,
}

/// Why there is no point, or why the machines may still be frozen.
#[derive(Debug, thiserror::Error)]
pub enum QuiesceError {
    /// Refused before the hook was run.
    #[error("the group is {state} and has no ordered moment now: try again when it streams")]
    NotStreaming {
        /// What it is.
        state: GroupState,
    },
    /// One freeze at a time.
    #[error("another application-consistent point of the group is being taken: try again when it is done")]
    Busy,
    /// Without the note a crash could leave machines frozen.
    #[error("the hook was not run: {0}; check that state_dir is writable and has room")]
    Record(IoError),
    /// The guard.
    #[error("the hook was not run: its guard can't be started: {0}")]
    Guard(io::Error),
    /// The freeze.
    #[error("the hook could not freeze the machines: {0}; what it printed is in the agent's log")]
    NotFrozen(String),
    /// The point.
    #[error("{0}")]
    Lost(String),
    /// The group's thread.
    #[error("the group ended before the point was durable")]
    Ended,
    /// The thaw.
    #[error("the hook could not thaw the machines: {why}; they may be frozen: run \"{thaw}\" by hand")]
    Stuck {
        /// What went wrong.
        why: String,
        /// The command.
        thaw: String,
    },
}

/// Takes the application-consistent points of one group.
#[derive(Debug)]
pub struct Quiescer {
    group: GroupName,
    hook: Hook,
    program: PathBuf,
    record: Record,
    turn: Mutex<()>,
}

impl Quiescer {
    /// For `group`, whose durable state lies in `state_dir`. `program` is the process-server's own binary: it has the guard.
    #[must_use]
    pub fn new(group: &GroupName, hook: Hook, program: PathBuf, state_dir: &Path) -> Self {
        let record = Record::new(state_dir, group);
        Self { group: group.clone(), hook, program, record, turn: Mutex::new(()) }
    }

    /// Thaws what an earlier life of the agent may have left frozen. Blocks.
    pub fn thaw_leftovers(&self) {
        let left = match self.record.read() {
            Ok(None) => return,
            Ok(Some(thaw)) => thaw,
            // What to run is then what the hook says today.
            Err(_) => self.hook.thaw.clone(),
        };
        // A point that is asked for meanwhile waits for its turn in vain, and says so.
        let _turn = self.turn.lock();
        match guard::thaw(&left, self.group.as_str(), self.hook.timeout) {
            Ok(()) => {
                info!(group = %self.group, "an earlier life of the agent had left its machines frozen, perhaps: they were thawed");
                self.forget();
            }
            Err(why) => {
                error!(group = %self.group, why, thaw = left, "machines may be frozen since an earlier life of the agent: thaw them by hand");
            }
        }
    }

    /// Takes a point; returns its id once it is durable on the target. Blocks.
    ///
    /// # Errors
    /// `QuiesceError`: there is no point, or the machines could not be thawed.
    pub fn take(&self, group: &dyn GroupHandle, label: Option<String>) -> Result<String, QuiesceError> {
        let turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::WouldBlock) => return Err(QuiesceError::Busy),
            // Nothing is kept in it that a panic could spoil.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        let state = group.snapshot().state;
        if !matches!(state, GroupState::Streaming | GroupState::Spooling) {
            return Err(QuiesceError::NotStreaming { state });
        }
        self.record.make(&self.hook.thaw).map_err(QuiesceError::Record)?;
        let asked = self.freeze().and_then(|(guard, until)| {
            let answer = self.cut(group, label, until);
            let thawed = guard.release();
            self.judge_thaw(thawed).map(|()| answer)
        });
        if !matches!(asked, Err(QuiesceError::Stuck { .. })) {
            self.forget();
        }
        // The target may take its time: the machines are free for the next point.
        drop(turn);
        match asked?.blocking_recv() {
            Ok(Ok(id)) => Ok(id),
            Ok(Err(why)) => Err(QuiesceError::Lost(why)),
            Err(_) => Err(QuiesceError::Ended),
        }
    }

    /// Starts the guard and waits until the machines are frozen.
    #[expect(
        clippy::disallowed_methods,
        reason = "the hook's time-out runs on the machine's clock, here and in the guard"
    )]
    fn freeze(&self) -> Result<(Guard, Instant), QuiesceError> {
        // Before the guard begins to count: a cut before this moment is a cut while the guard holds the machines.
        let until = Instant::now() + self.hook.timeout;
        let mut guard = Guard::start(&self.program, &self.group, &self.hook).map_err(QuiesceError::Guard)?;
        match guard.next_word() {
            Some(Word::Frozen) => Ok((guard, until)),
            Some(Word::NotFrozen(why)) => Err(QuiesceError::NotFrozen(why)),
            Some(Word::Stuck(why)) => self.judge_thaw(Some(Word::Stuck(why))).and(Err(QuiesceError::Ended)),
            _ => {
                self.judge_thaw(None)?;
                Err(QuiesceError::NotFrozen("its guard was ended".to_owned()))
            }
        }
    }

    /// Has the point cut, and waits for that alone.
    fn cut(
        &self,
        group: &dyn GroupHandle,
        label: Option<String>,
        until: Instant,
    ) -> oneshot::Receiver<Result<String, String>> {
        let (cut, is_cut) = oneshot::channel();
        let answer = group.point(PointOrder { label, frozen: Some(Frozen { until, cut }) });
        // An error says that there will be no point, and the answer why.
        let _ = is_cut.blocking_recv();
        answer
    }

    /// What the guard says at its end; without a word it was ended, and the machines are thawed from here.
    fn judge_thaw(&self, word: Option<Word>) -> Result<(), QuiesceError> {
        let why = match word {
            Some(Word::Thawed) => return Ok(()),
            Some(Word::ThawedLate) => {
                warn!(group = %self.group, timeout = ?self.hook.timeout, "the hook's timeout passed while a point was cut");
                return Ok(());
            }
            Some(Word::Stuck(why)) => why,
            _ => match guard::thaw(&self.hook.thaw, self.group.as_str(), self.hook.timeout) {
                Ok(()) => return Ok(()),
                Err(why) => why,
            },
        };
        error!(group = %self.group, why, thaw = self.hook.thaw, "the machines could not be thawed: thaw them by hand");
        Err(QuiesceError::Stuck { why, thaw: self.hook.thaw.clone() })
    }

    fn forget(&self) {
        if let Err(error) = self.record.remove() {
            warn!(group = %self.group, %error, "the note that machines are frozen stays; the next start thaws them once more");
        }
    }
}

/// A guard that runs.
struct Guard {
    child: Child,
    words: BufReader<ChildStdout>,
}

impl Guard {
    fn start(program: &Path, group: &GroupName, hook: &Hook) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg("freeze-guard")
            .args(["--group", group.as_str(), "--freeze", &hook.freeze, "--thaw", &hook.thaw])
            .args(["--timeout-ms", &hook.timeout.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let output = child.stdout.take().ok_or_else(|| io::Error::other("its output is not to be had"))?;
        Ok(Self { child, words: BufReader::new(output) })
    }

    fn next_word(&mut self) -> Option<Word> {
        let mut line = String::new();
        self.words.read_line(&mut line).ok()?;
        Word::from_line(&line)
    }

    /// Lets the machines go; returns the guard's last word.
    fn release(mut self) -> Option<Word> {
        drop(self.child.stdin.take());
        self.next_word()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends by itself, soon after its last word; without this wait it would stay as a dead process.
        let _ = self.child.wait();
    }
}
