//! The guard: a process of its own that freezes the machines, holds them, and thaws them, whatever becomes of the agent.
//!
//! The agent starts it (`process-server freeze-guard`, not for people) and holds the other end of its standard input. It
//! thaws when that end closes, which the kernel sees to also when the agent is killed, and when the time-out has passed. It ignores
//! the signals that end the agent. On standard output it says, a line each, how it is going: see [`Word`].

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::command;

/// How often the thaw is tried.
const THAW_TRIES: u32 = 3;
/// Time between two tries.
const THAW_PAUSE: Duration = Duration::from_secs(1);

/// What the guard is started with.
#[derive(Debug, clap::Args)]
pub struct GuardArgs {
    /// Name of the group, for the commands
    #[arg(long)]
    pub group: String,
    /// Command that freezes
    #[arg(long)]
    pub freeze: String,
    /// Command that thaws
    #[arg(long)]
    pub thaw: String,
    /// Longest time from the begin of the freeze to the thaw, milliseconds
    #[arg(long)]
    pub timeout_ms: u64,
}

/// What the guard says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The machines are frozen.
    Frozen,
    /// They could not be frozen, and have been thawed to be sure. With the reason.
    NotFrozen(String),
    /// They were thawed when the agent said so.
    Thawed,
    /// They were thawed because the time-out had passed.
    ThawedLate,
    /// They could not be thawed. With the reason.
    Stuck(String),
}

impl Word {
    fn to_line(&self) -> String {
        match self {
            Self::Frozen => "frozen\n".to_owned(),
            Self::NotFrozen(why) => format!("not-frozen {}\n", why.replace('\n', " ")),
            Self::Thawed => "thawed\n".to_owned(),
            Self::ThawedLate => "thawed-late\n".to_owned(),
            Self::Stuck(why) => format!("stuck {}\n", why.replace('\n', " ")),
        }
    }

    /// None: the guard has ended, or somebody else speaks.
    pub(super) fn from_line(line: &str) -> Option<Self> {
        let line = line.strip_suffix('\n')?;
        match line.split_once(' ').unwrap_or((line, "")) {
            ("frozen", "") => Some(Self::Frozen),
            ("not-frozen", why) => Some(Self::NotFrozen(why.to_owned())),
            ("thawed", "") => Some(Self::Thawed),
            ("thawed-late", "") => Some(Self::ThawedLate),
            ("stuck", why) => Some(Self::Stuck(why.to_owned())),
            _ => None,
        }
    }
}

/// Runs the guard to its end.
#[expect(clippy::disallowed_methods, reason = "the guard is a driver: its time-out runs on the machine's clock")]
pub fn run(args: &GuardArgs) -> ExitCode {
    let timeout = Duration::from_millis(args.timeout_ms);
    let deadline = Instant::now() + timeout;
    let Ok(_signals) = ignore_signals() else {
        say(&Word::NotFrozen("the guard can't ignore signals".to_owned()));
        return ExitCode::FAILURE;
    };
    let closed = watch_input();
    let frozen = command::run(&args.freeze, &args.group, "freeze", timeout);
    let word = match frozen {
        Ok(()) => {
            say(&Word::Frozen);
            let held = closed.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            match thaw(&args.thaw, &args.group, timeout) {
                Ok(()) if held == Err(mpsc::RecvTimeoutError::Timeout) => Word::ThawedLate,
                Ok(()) => Word::Thawed,
                Err(why) => Word::Stuck(why),
            }
        }
        // Some of them may be frozen: a freeze that failed or was ended half-way is undone as well.
        Err(error) => match thaw(&args.thaw, &args.group, timeout) {
            Ok(()) => Word::NotFrozen(error.to_string()),
            Err(why) => Word::Stuck(format!("the freeze failed ({error}), then the thaw: {why}")),
        },
    };
    say(&word);
    if matches!(word, Word::Stuck(_)) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Thaws, trying again where it fails.
pub(super) fn thaw(command: &str, group: &str, within: Duration) -> Result<(), String> {
    let mut tries = 1;
    loop {
        match command::run(command, group, "thaw", within) {
            Ok(()) => return Ok(()),
            Err(error) if tries == THAW_TRIES => return Err(error.to_string()),
            Err(_) => tries += 1,
        }
        thread::sleep(THAW_PAUSE);
    }
}

/// Handlers that do nothing, for as long as what is returned lives.
fn ignore_signals() -> io::Result<impl Sized> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::pipe()];
    let signals = kinds.map(signal).into_iter().collect::<io::Result<Vec<_>>>()?;
    drop(guard);
    Ok((signals, runtime))
}

/// Tells when standard input has ended.
fn watch_input() -> mpsc::Receiver<()> {
    let (sender, closed) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut rest = [0; 64];
        // An error is an end as well: there is nobody at the other side.
        while io::stdin().read(&mut rest).is_ok_and(|bytes| bytes > 0) {}
        let _ = sender.send(());
    });
    closed
}

/// The agent may be gone: what is to be done is done all the same.
fn say(word: &Word) {
    let mut output = io::stdout();
    let _ = output.write_all(word.to_line().as_bytes()).and_then(|()| output.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_as_they_were() {
        for word in [
            Word::Frozen,
            Word::NotFrozen("it ended with exit status: 1".to_owned()),
            Word::Thawed,
            Word::ThawedLate,
            Word::Stuck("no".to_owned()),
        ] {
            assert_eq!(Word::from_line(&word.to_line()), Some(word));
        }
    }

    #[test]
    fn what_is_no_word_is_the_end_of_the_guard() {
        for line in ["", "frozen", "thawed by itself\n", "melted\n"] {
            assert_eq!(Word::from_line(line), None, "{line:?}");
        }
    }
}
