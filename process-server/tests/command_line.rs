//! The binary as scripts use it: exit codes, and one clear line on standard error.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn process_server(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_process-server")).args(args).output().unwrap()
}

fn example(folder: &Path) -> PathBuf {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("process-server.toml.example");
    let control = format!("{}/control.sock", folder.display());
    let text = std::fs::read_to_string(example).unwrap().replace("/run/process-server/control.sock", &control);
    let path = folder.join("process-server.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn assert_failed(output: &Output, expected: &[&str]) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty(), "standard output is for results");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for part in expected {
        assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in [&[][..], &["stop"], &["run"], &["status", "--config"], &["point", "--config", "f"]] {
        assert_eq!(process_server(args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(process_server(&["--help"]).status.code(), Some(0));
}

#[test]
fn questions_to_an_agent_that_does_not_run_fail_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let config = example(folder.path());
    let config = config.to_str().unwrap();
    assert_failed(&process_server(&["status", "--config", config]), &["control.sock", "is the agent running?"]);
    assert_failed(&process_server(&["status", "--config", config, "--json"]), &["is the agent running?"]);
    let point = ["point", "--config", config, "--group", "web"];
    assert_failed(&process_server(&point), &["is the agent running?"]);
}

#[test]
fn a_configuration_that_is_refused_fails_with_file_line_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let config = example(folder.path());
    let text = std::fs::read_to_string(&config).unwrap().replacen("name =", "nmae =", 1);
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    for command in ["run", "status"] {
        let expected = ["process-server.toml:3: unknown field `nmae`", "correct the spelling"];
        assert_failed(&process_server(&[command, "--config", config]), &expected);
    }
    assert_failed(&process_server(&["run", "--config", "/nonexistent.toml"]), &["/nonexistent.toml", "--config"]);
}
