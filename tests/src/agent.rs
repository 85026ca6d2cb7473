//! One agent as a real process: started, asked, stopped, killed; its log is kept and judged.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::tool::{self, Output};
use crate::wait;

/// From start to the first answer. Covers a journal replay in a debug build.
const START_MAX: Duration = Duration::from_secs(30);
/// From SIGTERM to the end: a clean stop syncs what it holds.
const STOP_MAX: Duration = Duration::from_secs(30);

/// Which agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// process-server
    Source,
    /// master-target
    Target,
}

impl Role {
    /// The name of its binary.
    #[must_use]
    pub fn binary(self) -> &'static str {
        match self {
            Self::Source => "process-server",
            Self::Target => "master-target",
        }
    }
}

/// An agent with its configuration file and its log, running or not.
#[derive(Debug)]
pub struct Agent {
    role: Role,
    config: PathBuf,
    log: PathBuf,
    namespace: Option<String>,
    child: Option<Child>,
}

impl Agent {
    /// An agent that is not running yet. Its log goes beside its configuration.
    #[must_use]
    pub fn new(role: Role, config: &Path) -> Self {
        Self { role, config: config.to_owned(), log: config.with_extension("log"), namespace: None, child: None }
    }

    /// Runs it in a network namespace from the next start on. Its sockets in the file system are reached as before.
    pub fn set_namespace(&mut self, name: &str) {
        self.namespace = Some(name.to_owned());
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// If it ends instead, or stays silent.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        wait::until(&format!("{} to answer", self.role.binary()), START_MAX, || {
            if let Some(status) = self.ended() {
                panic!("{} ended with {status}:\n{}", self.role.binary(), self.log());
            }
            let status = self.ask(&["status", "--json"]);
            if status.code == Some(0) { Ok(()) } else { Err(status) }
        });
    }

    /// Starts it without waiting.
    ///
    /// # Panics
    /// If it runs already or can't be started.
    #[track_caller]
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.role.binary());
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("a log can be opened");
        let child = self
            .command()
            .args(["run", "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("an agent can be started"));
    }

    /// `ip netns exec` becomes the agent itself: the process that is killed later is the agent's.
    fn command(&self) -> Command {
        let binary = tool::binary(self.role.binary());
        let Some(namespace) = &self.namespace else { return Command::new(binary) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(binary);
        command
    }

    /// The id of the running process.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{} is not running", self.role.binary())).id()
    }

    /// Bytes that it has read from disks since its start.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} is not running", self.role.binary()));
        let io = fs::read_to_string(format!("/proc/{}/io", child.id())).expect("a process has counts");
        let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).expect("a count");
        line.parse().expect("a number")
    }

    /// The most memory that the running process has had resident, bytes.
    ///
    /// # Panics
    /// If it is not running.
    #[track_caller]
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} is not running", self.role.binary()));
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("a process has a status");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("VmHWM in kB") * 1024
    }

    /// Whether it was started and neither stopped nor waited for since.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end and returns its exit code.
    ///
    /// # Panics
    /// If it goes on running.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        let what = format!("{} to end", self.role.binary());
        let status = wait::until(&what, STOP_MAX, || self.ended().ok_or("it still runs"));
        self.child = None;
        status.code()
    }

    /// SIGTERM; it must end by itself, with code 0.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let code = self.wait();
        assert_eq!(code, Some(0), "{} after SIGTERM:\n{}", self.role.binary(), self.log());
    }

    /// kill -9.
    ///
    /// # Panics
    /// If it was not running.
    #[track_caller]
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} is not running", self.role.binary()));
        let pid = Pid::from_child(child);
        kill_process(pid, signal).expect("a child can be signalled");
    }

    /// Runs a subcommand of its binary with its configuration.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> Output {
        self.ask_within(tool::LIMIT, arguments)
    }

    /// Like [`Self::ask`], interrupted after `limit`.
    #[track_caller]
    pub fn ask_within(&self, limit: Duration, arguments: &[&str]) -> Output {
        let config = self.config.to_string_lossy().into_owned();
        let (command, rest) = arguments.split_first().expect("a subcommand");
        let mut words = vec![*command, "--config", &config];
        words.extend(rest);
        tool::run_within(limit, tool::binary(self.role.binary()), words)
    }

    /// `status --json`.
    ///
    /// # Panics
    /// If the agent does not answer.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> Value {
        self.ask(&["status", "--json"]).ok().json()
    }

    /// One group of `status --json`.
    ///
    /// # Panics
    /// If the agent does not know it.
    #[track_caller]
    #[must_use]
    pub fn group(&self, name: &str) -> Value {
        let status = self.status();
        let groups = status["groups"].as_array().expect("groups is a list");
        let group = groups.iter().find(|group| group["name"] == name);
        group.unwrap_or_else(|| panic!("no group {name} in {status}")).clone()
    }

    /// Everything that it has logged, over all its runs, without colours.
    #[must_use]
    pub fn log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        without_colours(&String::from_utf8_lossy(&text))
    }

    /// Forgets the log so far.
    pub fn clear_log(&self) {
        // It appends, so a running agent goes on at the new end.
        if let Ok(file) = File::options().write(true).open(&self.log) {
            file.set_len(0).expect("a log can be emptied");
        }
    }

    /// Lines of the log at WARN or ERROR, or of a panic, that hold none of `expected`.
    #[must_use]
    pub fn alarms(&self, expected: &[&str]) -> Vec<String> {
        let alarming = |line: &&str| {
            let start: String = line.chars().take(60).collect();
            [" WARN ", " ERROR "].iter().any(|level| start.contains(level)) || line.contains("panicked at")
        };
        let lines = self.log();
        let unexpected = lines.lines().filter(alarming).filter(|line| !expected.iter().any(|text| line.contains(text)));
        unexpected.map(str::to_owned).collect()
    }
}

/// Text without the escape sequences that colour it: the judges of a log look for words.
fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut pieces = text.split("\u{1b}[");
    plain.extend(pieces.next());
    for piece in pieces {
        plain.push_str(piece.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = self.child.as_mut() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- last lines of {}'s log", self.role.binary());
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_judged_without_its_colours() {
        let folder = tempfile::tempdir().expect("a folder");
        let agent = Agent::new(Role::Source, &folder.path().join("agent.toml"));
        let time = "\u{1b}[2m2026-11-23T18:56:11Z\u{1b}[0m";
        let lines = [
            format!("{time} \u{1b}[32m INFO\u{1b}[0m fine"),
            format!("{time} \u{1b}[33m WARN\u{1b}[0m odd"),
            format!("{time} \u{1b}[31mERROR\u{1b}[0m bad"),
            "2026-11-23T18:56:11Z ERROR plain".to_owned(),
            "thread 'main' panicked at src/main.rs:1:1".to_owned(),
        ];
        fs::write(folder.path().join("agent.log"), lines.join("\n")).expect("a log");
        assert_eq!(agent.alarms(&[]).len(), 4);
        assert_eq!(agent.alarms(&["odd", "plain", "panicked"]), ["2026-11-23T18:56:11Z ERROR bad"]);
    }
}
