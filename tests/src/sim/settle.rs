//! How a simulated world ends: without faults it must come to rest, streaming with identical disks or failed back.

use process_server::control::GroupState;

use super::link::Connection;
use super::world::World;
use super::{Played, trace};

/// Rounds in which it must come to rest; a catching-up of these disks takes some hundred.
const ROUNDS_MAX: u32 = 30_000;

impl World {
    /// No faults any more: goes on until `done`, or for too long.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for round in 0..ROUNDS_MAX {
            self.source.disk_progress(&mut self.random);
            self.deliver_to_target();
            self.target.journal_step(&mut self.random);
            // Points are seen before anything can change below them.
            self.turn();
            let now = self.wall();
            self.target.open_step(&mut self.connections, now);
            self.turn();
            self.target.apply_step(now);
            if self.job.is_running() {
                self.job.step(&mut self.target, &mut self.connections, now);
            }
            self.deliver_to_source();
            self.raise_link();
            self.start_target();
            if round % 16 == 0 {
                self.target.upkeep_step(&mut self.connections, now);
            }
            self.time_us += 10_000;
            self.turn();
            if done(self) {
                return;
            }
        }
        let group = &self.source.group;
        panic!(
            "{what} is never reached: source {:?} {:?} idle {} backlog {}, target {:?} {:?} idle {}, links {:?}, {} asked, {} answered",
            group.state(),
            group.reason(),
            self.source.is_idle(),
            group.snapshot().backlog_bytes,
            self.target.board.failure(),
            self.target.board.shortage(),
            self.target.is_idle(),
            self.connections.iter().map(Connection::is_idle).collect::<Vec<_>>(),
            self.asked,
            self.answered
        );
    }

    /// Everything must reach the target, and the copy be identical.
    pub fn settle(&mut self) {
        self.end_faults();
        if self.is_failing_back() {
            // One that stopped before it was durable has not begun: an operator would repeat the command.
            self.until("failed back", |world| {
                let is_known = world.target.journal.is_some() && !world.target.board.has_failed();
                let is_done = world.job.is_done && world.target.works.is_none();
                is_done || (is_known && world.target_down.is_none() && !world.is_failing_back())
            });
        }
        if self.is_failing_back() {
            return self.settle_failback();
        }
        self.until("streaming", |world| {
            let is_idle = world.source.is_idle() && world.target.is_idle();
            let is_sent = world.connections.iter().all(Connection::is_idle) && world.connections.len() == 1;
            let is_done = world.source.group.snapshot().backlog_bytes == 0 && world.answered == world.asked;
            // A disk that could not be flushed may have lost what is not read again yet.
            let is_done = is_done && world.source.group.unflushable().is_none();
            let is_up = !world.target.board.is_shut() && world.target_down.is_none();
            let state = world.source.group.state();
            let is_over = is_idle && is_sent && is_done && is_up && state == GroupState::Streaming;
            is_over || state == GroupState::Fenced
        });
        if self.source.group.state() == GroupState::Fenced {
            // The target came back from an image of before its failback: an operator has to decide.
            return (0..self.judge.listed()).for_each(|which| self.judge.look_again(&self.target, which));
        }
        assert_eq!(self.weather.unexpected(), &[] as &[String], "nothing is amiss any more");
        self.mark_check();
        if self.weather.verifies || self.weather.rots {
            self.mend_all();
        }
        self.judge.check_same(&self.target, &self.source);
        for which in 0..self.judge.listed() {
            self.judge.look_again(&self.target, which);
        }
    }

    fn is_failing_back(&self) -> bool {
        self.job.is_running() || self.job.is_done || self.target.found_failback()
    }

    /// The failback has ended: the disks hold its point and are never written again, the source is fenced.
    fn settle_failback(&mut self) {
        let held = self.job.point.clone();
        if let Some(point) = &held {
            self.judge.disks_hold(&self.target, point);
        }
        let before = self.target.disks.image();
        let used = self.target.volume.used_bytes();
        for _ in 0..300 {
            self.source.guest_writes(&mut self.random);
            self.source.disk_progress(&mut self.random);
            self.deliver_to_target();
            let now = self.wall();
            self.target.open_step(&mut self.connections, now);
            self.target.upkeep_step(&mut self.connections, now);
            self.deliver_to_source();
            self.raise_link();
            self.time_us += 30_000;
            self.turn();
        }
        assert_eq!(self.source.group.state(), GroupState::Fenced, "a source that comes back is fenced");
        assert!(!self.source.guest_writes(&mut self.random), "a fenced source takes no writes");
        assert!(self.target.disks.image() == before, "the disks were written after they were handed over");
        assert_eq!(self.target.volume.used_bytes(), used, "the journal was written after the failback");
    }

    /// What the run came to.
    #[must_use]
    pub fn played(&self) -> Played {
        Played {
            points: self.judge.points,
            lives: self.source.starts,
            verified: self.verified,
            failbacks: self.job.is_done.into(),
            rotted: self.judge.rotted,
            refused: self.judge.refused.get(),
            trace: trace::sum(),
        }
    }
}
