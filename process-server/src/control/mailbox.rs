//! Commands to a group's thread, and the snapshot it shows.
//!
//! The thread polls [`Inbox::try_recv`] when it was woken; it never waits for a command. A command
//! carries its own way to answer; when the thread ends without answering, the asker is told so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use proto::ids::GroupName;
use tokio::sync::{mpsc, oneshot};

use super::snapshot::Snapshot;
use super::wake::WakeCell;
use crate::group::VerifiedDisk;
use nbd::Connected;

/// Commands that may wait for one group.
pub const COMMANDS_MAX: usize = 256;

/// The answer to a point: its id, or why there is none.
pub type PointReplier = oneshot::Sender<Result<String, String>>;

/// A point that is asked for.
#[derive(Debug, Default)]
pub struct PointOrder {
    /// For people, and for `--point`.
    pub label: Option<String>,
    /// Of machines that are quiesced until then: cut at once, or not at all.
    pub frozen: Option<Frozen>,
}

/// Machines that are quiesced for a point.
#[derive(Debug)]
pub struct Frozen {
    /// When they go on by themselves.
    pub until: Instant,
    /// Told as soon as the point is cut: they may go on. Dropped when it is not cut.
    pub cut: oneshot::Sender<()>,
}

/// What is said while a group is verified.
#[derive(Debug)]
pub enum VerifyNews {
    /// Bytes done, and in all.
    Progress(u64, u64),
    /// The end: what was found of each disk, or why it could not go on.
    Done(Result<Vec<VerifiedDisk>, String>),
}

/// News of a verification. The last place is kept for the end.
pub type VerifyReplier = mpsc::Sender<VerifyNews>;

/// News of a verification that wait to be read.
const VERIFY_NEWS_MAX: usize = 4;

/// What others ask of a group's thread.
#[derive(Debug)]
pub enum Command {
    /// Cut now; answer once the set is durable on the target, or can no longer become a point.
    Point {
        /// Which point.
        order: PointOrder,
        /// Where the answer goes.
        reply: PointReplier,
    },
    /// Compare with the target; tell how far it is, and what was found.
    Verify {
        /// Index of the only disk to verify; none: all.
        disk: Option<u32>,
        /// Whether differences are repaired.
        repair: bool,
        /// Where progress and the result go. Whoever drops the other end ends the verification.
        reply: VerifyReplier,
    },
    /// A client finished the NBD handshake for the disk with this index.
    Connection {
        /// Index into the group's disks.
        disk: usize,
        /// Its socket, and what was agreed.
        connected: Connected,
    },
    /// Save what must be saved, and end.
    Stop,
}

/// How the control server sees a group.
pub trait GroupHandle: Send + Sync {
    /// As configured.
    fn name(&self) -> &GroupName;
    /// What the group showed last.
    fn snapshot(&self) -> Snapshot;
    /// Begins a verification of one disk or all. The receiver ends without `Done` when the group ends.
    fn verify(&self, disk: Option<u32>, repair: bool) -> mpsc::Receiver<VerifyNews>;
    /// Asks for a point. The receiver fails when the group ends before it answers.
    fn point(&self, order: PointOrder) -> oneshot::Receiver<Result<String, String>>;
}

/// The sending side. Clones reach the same group.
#[derive(Debug, Clone)]
pub struct Mailbox {
    group: GroupName,
    commands: mpsc::Sender<Command>,
    shown: Arc<Mutex<Snapshot>>,
    wake: WakeCell,
}

/// The group's side.
#[derive(Debug)]
pub struct Inbox {
    commands: mpsc::Receiver<Command>,
    shown: Arc<Mutex<Snapshot>>,
}

/// Makes both sides; `wake` is called after each command.
pub fn mailbox(group: GroupName, first: Snapshot, wake: WakeCell) -> (Mailbox, Inbox) {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let shown = Arc::new(Mutex::new(first));
    (Mailbox { group, commands: sender, shown: Arc::clone(&shown), wake }, Inbox { commands, shown })
}

impl Mailbox {
    /// Hands over a command; gives it back when the group has ended or has too many waiting.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.commands.try_send(command).map_err(mpsc::error::TrySendError::into_inner)?;
        self.wake.wake();
        Ok(())
    }

    /// Asks the group to stop, waiting for room if its mailbox is full.
    pub async fn stop(&self) {
        // A group that has ended already needs no telling.
        if self.commands.send(Command::Stop).await.is_ok() {
            self.wake.wake();
        }
    }

    /// Shows something in place of the group's thread, when that thread can no longer do it.
    pub fn publish(&self, snapshot: Snapshot) {
        *lock(&self.shown) = snapshot;
    }
}

impl GroupHandle for Mailbox {
    fn name(&self) -> &GroupName {
        &self.group
    }

    fn snapshot(&self) -> Snapshot {
        lock(&self.shown).clone()
    }

    fn verify(&self, disk: Option<u32>, repair: bool) -> mpsc::Receiver<VerifyNews> {
        let (reply, news) = mpsc::channel(VERIFY_NEWS_MAX);
        if let Err(Command::Verify { reply, .. }) = self.send(Command::Verify { disk, repair, reply }) {
            let why = "the group has stopped or is busy: see `process-server status`";
            // The receiver is in our hands and alive.
            let _ = reply.try_send(VerifyNews::Done(Err(why.to_owned())));
        }
        news
    }

    fn point(&self, order: PointOrder) -> oneshot::Receiver<Result<String, String>> {
        let (reply, answer) = oneshot::channel();
        if let Err(Command::Point { reply, .. }) = self.send(Command::Point { order, reply }) {
            let reason = if self.commands.is_closed() {
                "the group has stopped: see its reason in `process-server status`"
            } else {
                "too many points are being taken at once: try again later"
            };
            // The receiver is in our hands and alive.
            let _ = reply.send(Err(reason.to_owned()));
        }
        answer
    }
}

impl Inbox {
    /// The next command, if there is one. Never waits.
    pub fn try_recv(&mut self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    /// Shows `snapshot` from now on.
    pub fn publish(&self, snapshot: Snapshot) {
        *lock(&self.shown) = snapshot;
    }
}

/// A snapshot is replaced as a whole: one left by a thread that panicked is still whole.
fn lock(shown: &Mutex<Snapshot>) -> MutexGuard<'_, Snapshot> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::GroupState;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    fn made(wake: WakeCell) -> (Mailbox, Inbox) {
        mailbox("web".parse().unwrap(), Snapshot::starting(Instant::now()), wake)
    }

    #[test]
    fn a_command_arrives_and_wakes_the_thread() {
        let wake = WakeCell::default();
        let (mailbox, mut inbox) = made(wake.clone());
        let mut early = mailbox.point(PointOrder { label: Some("early".to_owned()), frozen: None });
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&wakes);
        wake.set(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        assert!(
            matches!(inbox.try_recv(), Some(Command::Point { order, .. }) if order.label.as_deref() == Some("early"))
        );
        assert!(early.try_recv().is_err(), "a dropped command is not an answer");

        let mut answer = mailbox.point(PointOrder::default());
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        let Some(Command::Point { reply, .. }) = inbox.try_recv() else { panic!("no command") };
        reply.send(Ok("17".to_owned())).unwrap();
        assert_eq!(answer.try_recv().unwrap(), Ok("17".to_owned()));
        assert!(inbox.try_recv().is_none());
    }

    #[test]
    fn a_point_of_a_stopped_group_is_answered_at_once() {
        let (mailbox, inbox) = made(WakeCell::default());
        drop(inbox);
        let answer = mailbox.point(PointOrder::default()).try_recv().unwrap();
        assert!(answer.unwrap_err().contains("stopped"));
    }

    #[test]
    fn a_flood_of_points_is_refused_and_not_queued_without_bound() {
        let (mailbox, _inbox) = made(WakeCell::default());
        let waiting: Vec<_> = (0..COMMANDS_MAX).map(|_| mailbox.point(PointOrder::default())).collect();
        assert!(mailbox.point(PointOrder::default()).try_recv().unwrap().unwrap_err().contains("too many"));
        drop(waiting);
    }

    #[test]
    fn what_the_thread_publishes_is_what_others_see() {
        let (mailbox, inbox) = made(WakeCell::default());
        let mut snapshot = mailbox.snapshot();
        snapshot.state = GroupState::Streaming;
        inbox.publish(snapshot.clone());
        assert_eq!(mailbox.snapshot(), snapshot);
    }
}
