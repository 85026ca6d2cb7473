//! Application-consistent points: what was frozen is thawed, whatever fails in between.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use process_server::control::{GroupHandle, GroupState, PointOrder, Snapshot, VerifyNews};
use process_server::quiesce::{Hook, QuiesceError, Quiescer};
use proto::ids::GroupName;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

const GUARD: &str = env!("CARGO_BIN_EXE_process-server");

/// A folder with a log of what the hook did, in its order.
struct Site {
    folder: TempDir,
    group: GroupName,
}

impl Site {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), group: "web".parse().unwrap() }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn note(&self) -> PathBuf {
        self.folder.path().join("web.frozen")
    }

    fn logged(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default().replace('\n', " ")
    }

    fn say(&self, word: &str) -> String {
        format!("echo {word} >> {}", self.log().display())
    }

    fn hook(&self) -> Hook {
        Hook { freeze: self.say("freeze"), thaw: self.say("thaw"), timeout: Duration::from_secs(20) }
    }

    fn quiescer(&self, hook: Hook) -> Arc<Quiescer> {
        Arc::new(Quiescer::new(&self.group, hook, GUARD.into(), self.folder.path()))
    }

    fn take(&self, hook: Hook, group: &Group) -> Result<String, QuiesceError> {
        self.quiescer(hook).take(group, Some("nightly".to_owned()))
    }
}

/// What a group does with an order.
#[derive(Clone, Copy)]
enum Does {
    Cuts,
    CutsLate(Duration),
    Refuses,
}

/// A group that logs its cuts beside the hook's commands.
struct Group {
    name: GroupName,
    state: GroupState,
    does: Does,
    log: PathBuf,
}

fn group(site: &Site, state: GroupState, does: Does) -> Group {
    Group { name: site.group.clone(), state, does, log: site.log() }
}

fn append(log: &Path, line: &str) {
    let text = fs::read_to_string(log).unwrap_or_default();
    fs::write(log, format!("{text}{line}\n")).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "any moment will do")]
fn now() -> Instant {
    Instant::now()
}

impl GroupHandle for Group {
    fn name(&self) -> &GroupName {
        &self.name
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::starting(now());
        snapshot.state = self.state;
        snapshot
    }

    fn verify(&self, _disk: Option<u32>, _repair: bool) -> mpsc::Receiver<VerifyNews> {
        unreachable!("nothing is verified here")
    }

    fn point(&self, order: PointOrder) -> oneshot::Receiver<Result<String, String>> {
        let (reply, answer) = oneshot::channel();
        let frozen = order.frozen.expect("the machines are frozen");
        assert_eq!(order.label.as_deref(), Some("nightly"));
        if let Does::CutsLate(by) = self.does {
            std::thread::sleep(by);
        }
        if matches!(self.does, Does::Refuses) || now() >= frozen.until {
            reply.send(Err("its set was merged".to_owned())).unwrap();
        } else {
            append(&self.log, "cut");
            frozen.cut.send(()).unwrap();
            reply.send(Ok("17".to_owned())).unwrap();
        }
        answer
    }
}

#[test]
fn the_point_is_cut_while_the_machines_are_frozen() {
    let site = Site::new();
    let streaming = group(&site, GroupState::Streaming, Does::Cuts);
    let freeze = format!("test -f {} && {}", site.note().display(), site.say("freeze"));
    assert_eq!(site.take(Hook { freeze, ..site.hook() }, &streaming).unwrap(), "17");
    assert_eq!(site.logged(), "freeze cut thaw ", "and the note was there before the freeze");
    assert!(!site.note().exists());
}

#[test]
fn without_an_ordered_moment_the_hook_is_not_run() {
    let site = Site::new();
    for state in [GroupState::CatchingUp, GroupState::Connecting, GroupState::Fenced] {
        let error = site.take(site.hook(), &group(&site, state, Does::Cuts)).unwrap_err();
        assert!(matches!(error, QuiesceError::NotStreaming { .. }), "{error}");
    }
    assert_eq!(site.logged(), "");
}

#[test]
fn a_freeze_that_fails_or_hangs_is_undone_and_gives_no_point() {
    for freeze in ["exit 3", "sleep 60"] {
        let site = Site::new();
        let streaming = group(&site, GroupState::Streaming, Does::Cuts);
        let hook = Hook { freeze: freeze.to_owned(), timeout: Duration::from_secs(1), ..site.hook() };
        let error = site.take(hook, &streaming).unwrap_err();
        assert!(matches!(error, QuiesceError::NotFrozen(_)), "{error}");
        assert_eq!(site.logged(), "thaw ");
        assert!(!site.note().exists());
    }
}

#[test]
fn a_point_that_is_refused_or_comes_too_late_leaves_nothing_frozen() {
    for does in [Does::Refuses, Does::CutsLate(Duration::from_millis(2500))] {
        let site = Site::new();
        let streaming = group(&site, GroupState::Streaming, does);
        let hook = Hook { timeout: Duration::from_secs(2), ..site.hook() };
        let error = site.take(hook, &streaming).unwrap_err();
        assert!(error.to_string().contains("merged"), "{error}");
        assert_eq!(site.logged(), "freeze thaw ");
    }
}

#[test]
fn a_thaw_that_fails_is_tried_again_then_reported_and_done_by_the_next_start() {
    let site = Site::new();
    let streaming = group(&site, GroupState::Streaming, Does::Cuts);
    let ready = site.folder.path().join("ready");
    let thaw = format!("{}; test -e {}", site.say("try"), ready.display());
    let error = site.take(Hook { thaw, ..site.hook() }, &streaming).unwrap_err();
    assert!(error.to_string().contains("by hand"), "{error}");
    assert_eq!(site.logged(), "freeze cut try try try ");
    fs::write(&ready, "").unwrap();
    assert!(site.note().exists());
    // The configuration may have another hook by then: what was frozen is thawed as it was frozen.
    let next = site.quiescer(site.hook());
    next.thaw_leftovers();
    assert_eq!(site.logged(), "freeze cut try try try try ");
    assert!(!site.note().exists());
    next.thaw_leftovers();
    assert_eq!(site.logged(), "freeze cut try try try try ");
}

/// A guard as the agent starts it, frozen.
fn frozen_guard(site: &Site, timeout_ms: u32) -> Child {
    let mut child = Command::new(GUARD)
        .args(["freeze-guard", "--group", "web", "--freeze", &site.say("freeze"), "--thaw", &site.say("thaw")])
        .args(["--timeout-ms", &timeout_ms.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "frozen\n");
    child
}

#[test]
fn the_guard_thaws_when_the_agent_is_gone_also_if_it_is_told_to_end_itself() {
    let site = Site::new();
    let mut guard = frozen_guard(&site, 60_000);
    let pid = rustix::process::Pid::from_child(&guard);
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(site.logged(), "freeze ", "it holds until its agent is gone or done");
    // What the kernel does when the agent is killed.
    drop(guard.stdin.take());
    assert!(guard.wait().unwrap().success());
    assert_eq!(site.logged(), "freeze thaw ");
}

#[test]
fn the_guard_thaws_after_the_time_out() {
    let site = Site::new();
    let mut guard = frozen_guard(&site, 300);
    assert!(guard.wait().unwrap().success());
    assert_eq!(site.logged(), "freeze thaw ");
}

#[test]
fn the_agent_thaws_where_its_guard_was_killed() {
    let site = Site::new();
    let streaming = group(&site, GroupState::Streaming, Does::Cuts);
    // The shell's parent is the guard.
    let freeze = format!("{}; kill -9 $PPID", site.say("freeze"));
    let error = site.take(Hook { freeze, ..site.hook() }, &streaming).unwrap_err();
    assert!(matches!(error, QuiesceError::NotFrozen(_)), "{error}");
    assert_eq!(site.logged(), "freeze thaw ");
}
