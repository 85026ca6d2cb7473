//! Runs one command of a hook: through the shell, with a time-out, in a process group that is ended as a whole.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

/// Why a command of a hook counts as failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// No shell, no process, no thread.
    #[error("it could not be started: {0}")]
    Start(io::Error),
    /// It said no.
    #[error("it ended with {0}")]
    Failed(ExitStatus),
    /// It took too long and was ended.
    #[error("it had not ended after {} s", .0.as_secs_f64())]
    TimedOut(Duration),
}

/// Runs `command` with the names of the group and of the phase in its environment. What it prints goes to standard error:
/// the agent's log.
pub(super) fn run(command: &str, group: &str, phase: &str, within: Duration) -> Result<(), CommandError> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .env("BACKHAUL_GROUP", group)
        .env("BACKHAUL_PHASE", phase)
        .stdin(Stdio::null())
        .stdout(io::stderr())
        // Signals meant for the agent's terminal or service must not end what freezes and thaws.
        .process_group(0)
        .spawn()
        .map_err(CommandError::Start)?;
    // The numbers of processes are positive and fit.
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (sender, ended) = mpsc::sync_channel(1);
    let waiter = thread::Builder::new().name("hook".to_owned()).spawn(move || {
        // Nobody listens any more after a time-out; the wait still takes the dead process away.
        let _ = sender.send(child.wait());
    });
    if let Err(error) = waiter {
        end(group);
        return Err(CommandError::Start(error));
    }
    match ended.recv_timeout(within) {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(CommandError::Failed(status)),
        Ok(Err(error)) => Err(CommandError::Start(error)),
        Err(_) => {
            end(group);
            Err(CommandError::TimedOut(within))
        }
    }
}

fn end(group: Option<Pid>) {
    if let Some(group) = group {
        // It may have ended in this moment.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_command_is_told_group_and_phase() {
        let command = r#"test "$BACKHAUL_GROUP/$BACKHAUL_PHASE" = web/freeze"#;
        run(command, "web", "freeze", LONG).unwrap();
        assert!(matches!(run(command, "db", "freeze", LONG), Err(CommandError::Failed(_))));
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_all_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let late = folder.path().join("late");
        let command = format!("(sleep 1; touch {}) & wait", late.display());
        let error = run(&command, "web", "freeze", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("0.05 s"), "{error}");
        thread::sleep(Duration::from_millis(1300));
        assert!(!late.exists());
    }
}
