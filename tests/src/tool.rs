//! Running other programs: the agents' command lines and the outside judges (qemu-img, nbdinfo, fio, ...).
//!
//! Every run has a time limit: a tool that hangs on a broken server must fail its test, not the whole run.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a tool may run. The longest, a fio verification in a debug build, takes about 20 s.
pub const LIMIT: Duration = Duration::from_secs(120);

/// What a finished program left behind.
#[derive(Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Its exit code; `None` when a signal or the time limit ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ended with {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.code, self.stdout, self.stderr
        )
    }
}

impl Output {
    /// Itself, if the program succeeded.
    ///
    /// # Panics
    /// If it failed, with everything that it printed.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.code == Some(0), "{self:?}");
        self
    }

    /// Itself, if the program ended with `code`.
    ///
    /// # Panics
    /// If it ended otherwise.
    #[track_caller]
    pub fn fails_with(self, code: i32) -> Self {
        assert!(self.code == Some(code), "expected exit code {code}: {self:?}");
        self
    }

    /// Itself, if standard error holds `needle`.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn says(self, needle: &str) -> Self {
        assert!(self.stderr.contains(needle), "standard error does not say {needle:?}: {self:?}");
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }
}

/// Runs `program` with `arguments` to its end, at most [`LIMIT`].
///
/// # Panics
/// If it can't be started: `make test` installs or names what is missing.
#[track_caller]
pub fn run<I, A>(program: impl AsRef<OsStr>, arguments: I) -> Output
where
    I: IntoIterator<Item = A>,
    A: AsRef<OsStr>,
{
    run_within(LIMIT, program, arguments)
}

/// Like [`run`], with a limit of its own.
///
/// # Panics
/// As [`run`].
#[track_caller]
pub fn run_within<I, A>(limit: Duration, program: impl AsRef<OsStr>, arguments: I) -> Output
where
    I: IntoIterator<Item = A>,
    A: AsRef<OsStr>,
{
    let mut command = Command::new(program.as_ref());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = shown(&command);
    let mut child = command.spawn().unwrap_or_else(|error| {
        panic!("can't start `{shown}`: {error} (scripts/require-tools.sh names what to install)")
    });
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let started = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status.code();
        }
        if started.elapsed() > limit {
            // It may end between the two calls; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let join = |reader: std::thread::JoinHandle<String>| reader.join().expect("a reader does not panic");
    Output { command: shown, code, stdout: join(stdout), stderr: join(stderr) }
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    let mut pipe = pipe.expect("the pipe was asked for");
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks has given all it had.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The agent binary `name`, built beside this test.
///
/// # Panics
/// If it is not there.
#[track_caller]
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its executable");
    let folder = test.parent().expect("an executable lies in a folder");
    // A test lies in target/PROFILE/deps, a program beside the agents.
    let profile = if folder.ends_with("deps") { folder.parent().expect("deps lies in a folder") } else { folder };
    let path = profile.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace --bins` first", path.display());
    path
}

/// Asks a program that was left running to end (SIGTERM), and waits until it has.
pub fn end(child: &mut Child) {
    if let Err(error) = kill_process(Pid::from_child(child), Signal::TERM) {
        eprintln!("process {} could not be ended: {error}", child.id());
    }
    let _ = child.wait();
}
