//! How sessions of the simulated target open and end, in the order in which the agent's `group::sessions` has it.
//!
//! The real admission, passes and answers; the waiting for the end of a session is a step that comes again.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

use master_target::group::session::{About, Link, Session};
use master_target::group::{answer_of, enter};
use master_target::receive::admission::{Refusal, busy, check_open, may_replace};
use proto::endpoint::CloseCode;
use proto::replication::{OpenGroup, TargetMessage};
use proto::time::Timestamp;

use super::Target;
use crate::sim::link::Connection;
use crate::sim::trace;

/// Done when nothing works for a session any more.
pub(super) type Ended = Pin<Box<dyn Future<Output = ()>>>;

/// An opening that waits for the end of the session before it.
pub(super) struct Opening {
    pub(super) open: OpenGroup,
    key: u64,
    ended: Option<Ended>,
}

impl Target {
    pub(super) fn asked_to_open(&mut self, connection: &mut Connection, open: OpenGroup) {
        if connection.is_opening {
            let _ = connection.link.outbox.try_send(busy(&open).into());
            return connection.gather();
        }
        connection.is_opening = true;
        connection.pass = None;
        self.openings.push_back(Opening { open, key: connection.key, ended: None });
    }

    /// Goes on with the oldest opening: ends the session before it, then opens the next.
    pub fn open_step(&mut self, connections: &mut [Connection], now: Timestamp) {
        if !ends(&mut self.ending) {
            return;
        }
        let Some(mut opening) = self.openings.pop_front() else { return };
        if let Some(ended) = &mut opening.ended {
            if ended.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                return self.openings.push_front(opening);
            }
            return self.opened(opening, connections, now);
        }
        if let Err(refusal) = self.admits(&opening, connections) {
            return answer(connections, opening.key, refusal.to_message(&opening.open).into());
        }
        match self.end_session(connections, Some(opening.key)) {
            Some(ended) => {
                opening.ended = Some(ended);
                self.openings.push_front(opening);
            }
            None => self.opened(opening, connections, now),
        }
    }

    fn admits(&self, opening: &Opening, connections: &[Connection]) -> Result<(), Refusal> {
        let is_there = connections.iter().any(|connection| connection.key == opening.key && !connection.target_gone);
        if !is_there {
            return Err(Refusal::Failed { group: "web".to_owned(), what: "the connection is closed".to_owned() });
        }
        let names = ["ps-1".to_owned()];
        let life = check_open(&opening.open, &names, Some(&self.rules), Some(&self.specs), self.door)?;
        match &self.session {
            Some(session) => may_replace("web", &session.about().life, &life),
            None => Ok(()),
        }
    }

    fn opened(&mut self, opening: Opening, connections: &mut [Connection], now: Timestamp) {
        let Opening { open, key, .. } = opening;
        let opened = self.open_session(&open, key, connections, now);
        match opened {
            Ok(message) => answer(connections, key, message),
            Err(refusal) => answer(connections, key, refusal.to_message(&open).into()),
        }
        if let Some(session) = self.session.as_ref().filter(|_| !self.board.has_failed()) {
            let about = session.about();
            self.board.session_opened(about.key, about.phase, about.link.clone());
        }
    }

    fn open_session(
        &mut self,
        open: &OpenGroup,
        key: u64,
        connections: &mut [Connection],
        now: Timestamp,
    ) -> Result<TargetMessage, Refusal> {
        let group = || "web".to_owned();
        let names = ["ps-1".to_owned()];
        let life = check_open(open, &names, Some(&self.rules), Some(&self.specs), self.door)?;
        if let Some(what) = self.board.failure() {
            return Err(Refusal::Failed { group: group(), what });
        }
        if let Some((what, _)) = self.board.shortage() {
            return Err(Refusal::Full { group: group(), what });
        }
        if let Err(what) = self.ready(now) {
            self.board.fail(what.clone());
            return Err(Refusal::Failed { group: group(), what });
        }
        let journal = self.journal.clone().expect("it is ready");
        let (opened, counter) = enter(&journal, open, &life).map_err(|error| Refusal::of_phase("web", error))?;
        let closed = || Refusal::Failed { group: group(), what: "the connection is closed".to_owned() };
        let connection = connections.iter_mut().find(|connection| connection.key == key && !connection.target_gone);
        let connection = connection.ok_or_else(closed)?;
        self.keys += 1;
        let link = Link { ..connection.link.clone() };
        let about =
            About { key: self.keys, group: group(), phase: open.phase, life, disks: self.specs.clone().into(), link };
        let session = Session::new(about);
        connection.pass = Some(session.pass());
        self.session = Some(session);
        self.board.set_history(journal.has_history(), journal.bulk_open());
        self.board.set_durable(journal.last_durable_set().into());
        trace::step("target opens (last set, counter)", opened.last_set.into(), counter.into());
        Ok(answer_of(open, &journal, (&opened, counter), self.existed).into())
    }

    /// Ends the session, if there is one; the future is done when nothing works for it any more.
    fn end_session(&mut self, connections: &mut [Connection], kept: Option<u64>) -> Option<Ended> {
        let session = self.session.take()?;
        let wire = &session.about().link.wire;
        if Some(wire.key()) != kept {
            wire.close(CloseCode::Replaced, "the group was taken by another connection");
        }
        self.board.session_ended();
        for connection in connections {
            connection.pass.take_if(|pass| pass.about().key == session.about().key);
        }
        // Its passes turn invalid at once; the rest is waited for.
        let mut ended: Option<Ended> = Some(Box::pin(session.end()));
        ends(&mut ended);
        Some(ended.unwrap_or_else(|| Box::pin(std::future::ready(()))))
    }

    /// Ends the session, its connection too unless it is `kept`; a later step finds it ended.
    pub fn leave(&mut self, connections: &mut [Connection], keep: bool) {
        let kept = self.session.as_ref().map(|session| session.about().link.wire.key()).filter(|_| keep);
        if let Some(ended) = self.end_session(connections, kept) {
            self.ending = Some(ended);
        }
    }

    /// Whether a session that was left has ended; its queues must be worked off for that.
    pub fn has_left(&mut self) -> bool {
        ends(&mut self.ending)
    }

    /// The session's connection and phase.
    #[must_use]
    pub fn session(&self) -> Option<(u64, &Link)> {
        self.session.as_ref().map(|session| (session.about().key, &session.about().link))
    }

    /// A connection has ended: so does its session.
    pub fn closed(&mut self, key: u64, connections: &mut [Connection]) {
        self.openings.retain(|opening| opening.key != key || opening.ended.is_some());
        if self.session.as_ref().is_some_and(|session| session.about().link.wire.key() == key) {
            self.leave(connections, true);
        }
    }
}

fn ends(ending: &mut Option<Ended>) -> bool {
    let Some(future) = ending else { return true };
    let is_done = future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    if is_done {
        *ending = None;
    }
    is_done
}

fn answer(connections: &mut [Connection], key: u64, message: TargetMessage) {
    let Some(connection) = connections.iter_mut().find(|connection| connection.key == key) else { return };
    connection.is_opening = false;
    let _ = connection.link.outbox.try_send(message);
    connection.gather();
}
