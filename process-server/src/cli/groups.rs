//! The groups of a running agent: who ends when, and how they are told to.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::{error, info};

use super::error::RunError;
use super::shutdown::Signals;
use super::thread::GroupThread;
use crate::control::{GroupHandle, GroupState, Mailbox};

/// How long groups may take to save what they must, after the signal to stop.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Threads that run, and the ways to reach them.
#[derive(Default)]
pub(super) struct RunningGroups {
    mailboxes: Vec<Mailbox>,
    ends: JoinSet<(Mailbox, Result<(), String>)>,
}

impl RunningGroups {
    /// Takes charge of a started group.
    pub(super) fn add(&mut self, mailbox: Mailbox, mut thread: GroupThread) {
        self.mailboxes.push(mailbox.clone());
        self.ends.spawn(async move {
            let end = thread.ended().await;
            (mailbox, end)
        });
    }

    /// Until a signal arrives. A group that ends before is shown as failed; the others go on.
    pub(super) async fn watch(&mut self, signals: &mut Signals) {
        loop {
            tokio::select! {
                name = signals.next() => {
                    info!("{name}: stopping");
                    return;
                }
                Some(Ok((mailbox, end))) = self.ends.join_next() => {
                    let reason = end.err().unwrap_or_else(|| "its thread ended without being told to".to_owned());
                    error!(group = %mailbox.name(), reason, "a group has failed; its disks are no longer served");
                    show_failed(&mailbox, reason);
                }
            }
        }
    }

    /// Tells all to stop, and waits until they have, for a while, or until a second signal.
    pub(super) async fn stop(mut self, signals: &mut Signals) -> Result<(), RunError> {
        let deadline = Instant::now() + STOP_WITHIN;
        let mut unclean = Vec::new();
        for mailbox in &self.mailboxes {
            mailbox.stop().await;
        }
        while !self.ends.is_empty() {
            let ended = tokio::select! {
                ended = timeout_at(deadline, self.ends.join_next()) => ended.ok().flatten(),
                name = signals.next() => {
                    unclean.push(format!("{} groups were still saving at a second {name}", self.ends.len()));
                    break;
                }
            };
            match ended {
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((mailbox, Err(reason)))) => unclean.push(format!("group {}: {reason}", mailbox.name())),
                Some(Err(failed)) => unclean.push(failed.to_string()),
                None => {
                    let left = self.ends.len();
                    unclean.push(format!("{left} groups did not stop within {} s", STOP_WITHIN.as_secs()));
                    break;
                }
            }
        }
        if unclean.is_empty() { Ok(()) } else { Err(RunError::Unclean(unclean.join("; "))) }
    }
}

#[expect(clippy::disallowed_methods, reason = "the shell says when the group failed")]
fn show_failed(mailbox: &Mailbox, reason: String) {
    let mut snapshot = mailbox.snapshot();
    snapshot.state = GroupState::Failed;
    snapshot.reason = Some(reason);
    snapshot.state_since = std::time::Instant::now();
    mailbox.publish(snapshot);
}
