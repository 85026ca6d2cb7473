//! What a group shows to the outside: counters and facts that its threads and sessions post and `status` reads.
//!
//! Nothing is decided from it except that a failed group, or one without room, takes nothing more. The source is told so
//! at once; `upkeep` is woken and does the rest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::endpoint::CloseCode;
use proto::limits::TEXT_BYTES_MAX;
use proto::replication::{BlocksMissing, GroupLost, MissingRun};
use proto::time::Timestamp;
use tokio::sync::{Notify, watch};

use super::roster::{Places, Roster};
use super::session::Link;
use super::state::{Facts, Recovery, Session, State, StateClock, derive};
use crate::journal::MissingRange;
use crate::receive::admission::FULL;
use crate::recover::steps::{FenceAnswer, View};

/// Silence of a source after which it is said, milliseconds. Heartbeats come every second.
pub const SILENT_MS: u64 = 10_000;

/// The board of one group.
pub struct Board {
    group: String,
    facts: Mutex<Posted>,
    view: watch::Sender<View>,
    trouble: Notify,
    received_bytes: AtomicU64,
    applied_bytes: AtomicU64,
    /// A delta was laid over something else than its source meant: no more are taken.
    refuses_deltas: AtomicBool,
    /// The newest reading of the source's clock, microseconds since 1970; 0 before there is one.
    source_time_us: AtomicU64,
}

struct Posted {
    facts: Facts,
    clock: StateClock,
    link: Option<OpenLink>,
    /// Bytes that must be free before a group without room goes on.
    needed_bytes: u64,
    roster: Roster,
    places: Places,
}

/// The way to the source of an open session.
struct OpenLink {
    link: Link,
    phase: u64,
}

/// The state as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// The state.
    pub state: State,
    /// Why, in words.
    pub reason: Option<String>,
    /// For how long.
    pub elapsed: Duration,
}

impl Board {
    /// An empty board of a group whose source is `process_server`.
    pub fn new(group: &str, process_server: &str, now: Duration) -> Self {
        let facts = Facts {
            failure: None,
            shortage: None,
            recovery: Recovery::None,
            session: Session::Never,
            bulk_open: false,
            has_history: false,
            process_server: process_server.to_owned(),
        };
        let clock = StateClock::new(now);
        Self {
            group: group.to_owned(),
            facts: Mutex::new(Posted {
                facts,
                clock,
                link: None,
                needed_bytes: 0,
                roster: Roster::default(),
                places: Places::default(),
            }),
            view: watch::Sender::new(View::default()),
            trouble: Notify::new(),
            received_bytes: AtomicU64::new(0),
            applied_bytes: AtomicU64::new(0),
            refuses_deltas: AtomicBool::new(false),
            source_time_us: AtomicU64::new(0),
        }
    }

    fn posted(&self) -> MutexGuard<'_, Posted> {
        // Every change is one assignment: a panic elsewhere leaves nothing half done.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Content comes whole from now on: the disks are not what the source takes them for.
    pub fn refuse_deltas(&self) {
        self.refuses_deltas.store(true, Ordering::Relaxed);
    }

    /// Whether content was never laid over something else than its source meant.
    pub fn takes_deltas(&self) -> bool {
        !self.refuses_deltas.load(Ordering::Relaxed)
    }

    /// The group can't be written any more: its source is told so. The first reason stays until it is tried again.
    pub fn fail(&self, reason: String) {
        let mut posted = self.posted();
        if posted.facts.failure.is_some() {
            return;
        }
        tracing::error!(group = self.group, reason, "the group failed; it is tried again");
        self.tell_lost(&mut posted, "failed", &reason);
        posted.facts.failure = Some(reason);
        drop(posted);
        self.view.send_modify(|_| ());
        self.trouble.notify_one();
    }

    /// The group still can't be written, for this reason now. Not logged.
    pub fn still_failed(&self, reason: String) {
        self.posted().facts.failure = Some(reason);
    }

    /// The group was opened again.
    pub fn clear_failure(&self) {
        self.posted().facts.failure = None;
    }

    /// There is no room for what was to be written: the group takes no more until so many bytes are free. Not logged.
    pub fn run_short(&self, reason: String, needed_bytes: u64) {
        let mut posted = self.posted();
        posted.needed_bytes = needed_bytes;
        self.tell_lost(&mut posted, FULL, &reason);
        posted.facts.shortage = Some(reason);
        drop(posted);
        self.trouble.notify_one();
    }

    /// There is room again.
    pub fn clear_shortage(&self) {
        self.posted().facts.shortage = None;
    }

    /// What room is missing, and how many bytes must be free; none where there is room.
    pub fn shortage(&self) -> Option<(String, u64)> {
        let posted = self.posted();
        posted.facts.shortage.clone().map(|reason| (reason, posted.needed_bytes))
    }

    /// True while nothing is taken from a session: the group has failed, or has no room.
    pub fn is_shut(&self) -> bool {
        let posted = self.posted();
        posted.facts.failure.is_some() || posted.facts.shortage.is_some()
    }

    /// Returns when the group has failed or run short of room since the last call.
    pub async fn trouble(&self) {
        self.trouble.notified().await;
    }

    /// Tells the source of an open session that it is over. False where it was never told that it is open.
    pub fn session_over(&self, code: &str, reason: &str) -> bool {
        self.tell_lost(&mut self.posted(), code, reason)
    }

    /// Tells the source that the session is over, once. The connection and its other groups go on.
    fn tell_lost(&self, posted: &mut Posted, code: &str, reason: &str) -> bool {
        let Some(OpenLink { link, phase }) = posted.link.take() else { return false };
        let message = bounded(reason);
        let lost = GroupLost { group: self.group.clone(), phase, reason: code.to_owned(), message };
        // Never waits: a source that reads nothing is cut off, which tells it as well.
        if link.outbox.try_send(lost.into()).is_err() {
            link.wire.close(CloseCode::Refused, &format!("group \"{}\": {reason}", self.group));
        }
        true
    }

    /// Tells the source of an open session what was lost of what it had sent, if `take` has something.
    pub fn tell_missing(&self, take: impl FnOnce() -> Option<Vec<MissingRange>>) {
        let posted = self.posted();
        let Some(OpenLink { link, phase }) = &posted.link else { return };
        let Some(missing) = take() else { return };
        let run = |range: MissingRange| MissingRun { disk: range.disk, sector: range.sector, sectors: range.sectors };
        let runs: Vec<MissingRun> = posted.places.outward(missing).into_iter().map(run).collect();
        if runs.is_empty() {
            return;
        }
        let missing = BlocksMissing { group: self.group.clone(), phase: *phase, runs };
        // Never waits, as above: its next session is told.
        if link.outbox.try_send(missing.into()).is_err() {
            link.wire.close(CloseCode::Refused, "the source takes no messages");
        }
    }

    /// Why the group can't be written, if so.
    pub fn failure(&self) -> Option<String> {
        self.posted().facts.failure.clone()
    }

    /// True while the group can't be written.
    pub fn has_failed(&self) -> bool {
        self.posted().facts.failure.is_some()
    }

    /// Where a failback stands.
    pub fn set_recovery(&self, recovery: Recovery) {
        self.posted().facts.recovery = recovery;
    }

    /// A session was opened.
    pub fn session_opened(&self, key: u64, phase: u64, link: Link) {
        let mut posted = self.posted();
        posted.facts.session = Session::Open;
        posted.link = Some(OpenLink { link, phase });
        // A thread may have failed while the session was being opened.
        let Facts { failure, shortage, .. } = &posted.facts;
        let told = failure.clone().map(|why| ("failed", why)).or(shortage.clone().map(|why| (FULL, why)));
        if let Some((code, reason)) = told {
            self.tell_lost(&mut posted, code, &reason);
        }
        drop(posted);
        self.view.send_modify(|view| view.session = Some(key));
    }

    /// The session ended.
    pub fn session_ended(&self) {
        let mut posted = self.posted();
        posted.facts.session = Session::Lost;
        posted.link = None;
        drop(posted);
        self.view.send_modify(|view| view.session = None);
    }

    /// What the journal holds.
    pub fn set_history(&self, has_history: bool, bulk_open: bool) {
        let mut posted = self.posted();
        posted.facts.has_history = has_history;
        posted.facts.bulk_open = bulk_open;
    }

    /// The last durable set.
    pub fn set_durable(&self, set: u64) {
        self.view.send_modify(|view| view.durable_set = set);
    }

    /// The source answered a fence.
    pub fn fenced(&self, answer: FenceAnswer) {
        self.view.send_modify(|view| view.fenced = Some(answer));
    }

    /// What a failback looks at, and when it changes.
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// The source has said what time it is there.
    pub fn heard_time(&self, time_us: u64) {
        self.source_time_us.store(time_us, Ordering::Relaxed);
    }

    /// What time it was at the source when it last said so, in this start of the agent.
    pub fn source_time(&self) -> Option<Timestamp> {
        let time_us = self.source_time_us.load(Ordering::Relaxed);
        (time_us > 0).then_some(Timestamp(time_us))
    }

    /// Bytes of frames that arrived.
    pub fn add_received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that were written to the disks.
    pub fn add_applied(&self, bytes: u64) {
        self.applied_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of frames that arrived since the agent started.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that were written to the disks since the agent started.
    pub fn applied_bytes(&self) -> u64 {
        self.applied_bytes.load(Ordering::Relaxed)
    }

    /// The disks by index.
    pub fn set_roster(&self, roster: Roster) {
        self.posted().roster = roster;
    }

    /// The disks by index; none before they are known.
    pub fn roster(&self) -> Roster {
        self.posted().roster.clone()
    }

    /// Where the disks of the source stand whose session is about to open.
    pub fn set_places(&self, places: Places) {
        self.posted().places = places;
    }

    /// The state now (monotonic time since the agent started).
    pub fn show(&self, now: Duration) -> Shown {
        let mut posted = self.posted();
        let mut facts = posted.facts.clone();
        if let Some(OpenLink { link, .. }) = posted.link.as_ref().filter(|_| facts.session == Session::Open) {
            let silent_ms = (now.as_millis() as u64).saturating_sub(link.heard_ms.load(Ordering::Relaxed));
            if silent_ms > SILENT_MS {
                facts.session = Session::Silent(silent_ms / 1000);
            }
        }
        let (state, reason) = derive(&facts);
        if let Some(before) = posted.clock.observe(state, now) {
            let reason = reason.as_deref().unwrap_or("");
            tracing::info!(group = self.group, from = before.as_str(), to = state.as_str(), reason, "state");
        }
        Shown { state, reason, elapsed: posted.clock.elapsed(now) }
    }
}

/// A reason, cut to what a message may hold.
fn bounded(reason: &str) -> String {
    reason.chars().take(TEXT_BYTES_MAX / 4).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::replication::target_message::Body;

    use super::super::session::Wire;
    use super::*;

    /// A connection that remembers how it was closed.
    #[derive(Default)]
    struct FakeWire(Mutex<Option<(CloseCode, String)>>);

    impl Wire for FakeWire {
        fn key(&self) -> u64 {
            1
        }
        fn close(&self, code: CloseCode, reason: &str) {
            *self.0.lock().unwrap() = Some((code, reason.to_owned()));
        }
        fn is_open(&self) -> bool {
            self.0.lock().unwrap().is_none()
        }
    }

    /// A link that was heard when the agent started.
    fn link(wire: Arc<FakeWire>) -> Link {
        Link { outbox: tokio::sync::mpsc::channel(1).0, wire, heard_ms: Arc::default() }
    }

    const T0: Duration = Duration::ZERO;

    fn board() -> Board {
        Board::new("web", "ps-1", T0)
    }

    #[test]
    fn the_first_failure_stays_until_it_is_cleared() {
        let board = board();
        board.fail("first".into());
        board.fail("second".into());
        assert_eq!(board.failure().as_deref(), Some("first"));
        assert_eq!(board.show(T0).state, State::Failed);
        board.clear_failure();
        assert!(!board.has_failed());
    }

    #[test]
    fn a_failure_tells_the_source_once_and_leaves_the_connection_to_other_groups() {
        let board = board();
        let wire = Arc::new(FakeWire::default());
        let (outbox, mut messages) = tokio::sync::mpsc::channel(2);
        board.session_opened(1, 7, Link { outbox, ..link(wire.clone()) });
        board.fail("a disk is gone".into());
        board.run_short("no room".into(), 1);
        let Some(Body::GroupLost(lost)) = messages.try_recv().unwrap().body else { panic!("another message") };
        assert_eq!((lost.group.as_str(), lost.phase, lost.reason.as_str()), ("web", 7, "failed"));
        assert_eq!(lost.message, "a disk is gone");
        assert!(messages.try_recv().is_err() && wire.is_open());
    }

    #[test]
    fn a_source_that_reads_nothing_is_cut_off_when_its_group_fails() {
        let board = board();
        let wire = Arc::new(FakeWire::default());
        let (outbox, _messages) = tokio::sync::mpsc::channel(1);
        outbox.try_send(GroupLost::default().into()).unwrap();
        board.session_opened(1, 7, Link { outbox, ..link(wire.clone()) });
        board.fail("a disk is gone".into());
        let (code, reason) = wire.0.lock().unwrap().clone().unwrap();
        assert_eq!(code, CloseCode::Refused);
        assert!(reason.contains("\"web\"") && reason.contains("a disk is gone"));
    }

    #[test]
    fn a_group_without_room_waits_with_what_to_do_and_is_no_failure() {
        let board = board();
        board.run_short("make room".into(), 100);
        board.run_short("make more room".into(), 200);
        assert_eq!(board.shortage(), Some(("make more room".into(), 200)));
        let shown = board.show(T0);
        assert_eq!(shown.state, State::Waiting);
        assert_eq!(shown.reason.as_deref(), Some("retention-full: make more room"));
        board.clear_shortage();
        assert!(!board.is_shut());
    }

    #[test]
    fn silence_shows_only_beyond_its_limit_and_only_in_a_session() {
        let board = board();
        board.set_history(true, false);
        assert_eq!(board.show(Duration::from_secs(60)).state, State::Waiting);
        board.session_opened(1, 1, link(Arc::new(FakeWire::default())));
        assert_eq!(board.show(Duration::from_millis(SILENT_MS)).reason, None);
        assert!(board.show(Duration::from_millis(SILENT_MS + 1000)).reason.unwrap().contains("11 s"));
    }

    #[test]
    fn a_watcher_sees_sessions_sets_and_fences() {
        let board = board();
        let mut view = board.view();
        board.session_opened(4, 1, link(Arc::new(FakeWire::default())));
        board.set_durable(9);
        let answer = FenceAnswer { request: 1, last_set: 9, fenced_at_us: 2 };
        board.fenced(answer);
        assert!(view.has_changed().unwrap());
        let seen = View { session: Some(4), fenced: Some(answer), durable_set: 9 };
        assert_eq!(*view.borrow_and_update(), seen);
        board.session_ended();
        assert_eq!(view.borrow().session, None);
    }
}
