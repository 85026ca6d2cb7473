//! Drives the group core: its actions, the link's messages, operators' commands, and what status shows.

use std::time::Duration;

use proto::ids::DiskIndex;
use tracing::{error, info, warn};

use super::thread::Tap;
use crate::capture::tap::connection::Connection;
use crate::control::{Command, GroupState, PointOrder, PointReplier, Snapshot, VerifyNews, VerifyReplier};
use crate::group::{Action, PointAsked, PointOutcome, RoundReport, VerifiedDisk};
use crate::send::FromLink;

/// What status shows is at most this old.
pub(super) const PUBLISH_INTERVAL: Duration = Duration::from_millis(200);

impl Tap {
    /// Something has arrived from another thread.
    pub(super) fn woken(&mut self) {
        while let Some(message) = self.port.try_recv() {
            let now = self.clock.now();
            match message {
                FromLink::Up => self.group.link_up(now),
                FromLink::Down { reason } => self.group.link_down(reason, now),
                FromLink::Message(message) => self.group.message(message, now),
                FromLink::PartSent { wire_bytes, compresses, .. } => {
                    self.group.bytes_sent(wire_bytes);
                    self.group.link_compresses(compresses);
                }
                FromLink::Parcels { begin, parcels } => self.group.parcels_made(&begin, parcels),
                FromLink::PartDamaged { .. } => {
                    error!(group = %self.name, "captured data was damaged in memory; it is read again from the disk");
                    self.group.part_damaged(now);
                }
            }
        }
        self.take_spool();
        while let Some(command) = self.inbox.try_recv() {
            match command {
                Command::Point { order, reply } => self.take_point(order, reply),
                Command::Verify { disk, repair, reply } => self.verify(disk, repair, reply),
                Command::Connection { disk, connected } => self.add_connection(disk, connected),
                Command::Stop => self.stopping = true,
            }
        }
    }

    fn take_point(&mut self, order: PointOrder, reply: PointReplier) {
        self.points_asked += 1;
        self.points.insert(self.points_asked, reply);
        let asked = match &order.frozen {
            None => PointAsked::Crash,
            Some(frozen) => PointAsked::App { frozen_until: self.clock.mono(frozen.until) },
        };
        let is_cut = self.group.request_point(self.points_asked, order.label, asked, self.clock.now());
        if let (true, Some(frozen)) = (is_cut, order.frozen) {
            // Whoever froze the machines has its own time-out.
            let _ = frozen.cut.send(());
        }
    }

    fn add_connection(&mut self, disk: usize, connected: nbd::Connected) {
        let state = &self.disks[disk];
        let mut connection = Connection::new(connected, disk, &state.export, state.alignment, self.pool.clone());
        connection.flush_failures = self.group.flush_failures(DiskIndex(disk as u32));
        self.connections_seen += 1;
        let name = self.connections_seen;
        self.connections.insert(name, connection);
        self.to_send.push(name);
    }

    /// Carries out what the core wants, until it wants nothing more.
    pub(super) fn carry_out(&mut self) {
        while let Some(action) = self.group.poll() {
            match action {
                Action::Submit(id) => self.submit(id),
                Action::Read { id, disk, offset, len, may_be_hole } => {
                    self.start_core_read(id, disk, offset, len, may_be_hole);
                }
                Action::CommitMarks(commit) => self.commit_marks(&commit),
                Action::FlushDisks { id, disks } => self.flush_for_core(id, &disks),
                Action::OpenSpool => self.open_spool(),
                Action::WriteSpool { id, offset, len, pieces } => self.write_spool(id, offset, len, &pieces),
                Action::ReadSpool { id, offset, len } => self.read_spool(id, offset, len),
                Action::EmptySpool => self.empty_spool(),
                Action::RoundEnded(report) => self.tell_round(&report),
                Action::Link(message) => self.outbox.push(message),
                Action::PersistFence => self.persist_fence(true),
                Action::LiftFence => self.persist_fence(false),
                Action::VerifyDone(found) => {
                    if let Some(reply) = self.verifying.take() {
                        tell_end(&self.name, &reply, found);
                    }
                }
                Action::PointDone { token, outcome } => self.answer_point(token, outcome),
            }
        }
        self.outbox.flush(&mut self.port);
    }

    fn verify(&mut self, disk: Option<u32>, repair: bool, reply: VerifyReplier) {
        let all = 0..self.disks.len() as u32;
        let disks: Vec<DiskIndex> = all.filter(|index| disk.is_none_or(|only| only == *index)).map(DiskIndex).collect();
        match self.group.verify(&disks, repair) {
            Ok(()) => {
                info!(group = %self.name, disks = disks.len(), repair, "the group is being verified");
                self.verifying = Some(reply);
            }
            Err(why) => tell_end(&self.name, &reply, Err(why)),
        }
    }

    /// Says how far a verification is. Ends it when nobody listens any more.
    fn tell_verify(&mut self) {
        let Some(reply) = &self.verifying else { return };
        if reply.is_closed() {
            info!(group = %self.name, "nobody waits for the verification any more: it ends");
            self.group.cancel_verify();
            self.verifying = None;
        } else if let Some((done, total)) = self.group.verify_progress()
            && reply.capacity() > 1
        {
            // One place is left for the end; news that are not read are not missed.
            let _ = reply.try_send(VerifyNews::Progress(done, total));
        }
    }

    /// A round that does not shrink says so, and why (S18).
    fn tell_round(&self, report: &RoundReport) {
        let RoundReport { round, began_bytes, left_bytes, written_bytes, sent_bytes, took } = *report;
        let bytes_per_second = report.rate(sent_bytes);
        let seconds = took.as_secs_f64();
        let text = if report.shrinks() {
            "a round of the catching-up has ended"
        } else {
            "a round of the catching-up did not shrink: guests write faster than the link takes"
        };
        info!(
            group = %self.name, round, began_bytes, left_bytes, written_bytes, sent_bytes, bytes_per_second, seconds,
            "{text}"
        );
    }

    fn persist_fence(&mut self, fenced: bool) {
        let result = self.state.set_fenced(fenced, self.group.fence_request());
        match &result {
            Ok(()) if fenced => info!(group = %self.name, "fenced: guest writes are refused from now on"),
            Ok(()) => info!(group = %self.name, "the fence is lifted: guest writes are taken again"),
            Err(error) => warn!(group = %self.name, %error, "the fence could not be changed; it will be tried again"),
        }
        if fenced {
            self.group.fence_persisted(result.is_ok());
        } else {
            self.group.fence_lifted(result.is_ok());
        }
    }

    fn answer_point(&mut self, token: u64, outcome: PointOutcome) {
        let Some(reply) = self.points.remove(&token) else { return };
        let answer = match outcome {
            PointOutcome::Durable(id) => Ok(id),
            PointOutcome::Lost(why) => Err(why),
        };
        // Whoever asked may have gone away; the point stays.
        let _ = reply.send(answer);
    }

    /// Refreshes what status shows, when it is due or the state has changed.
    pub(super) fn publish(&mut self) {
        let now = self.clock.now().mono;
        if self.target_changes != self.group.target_changes() {
            self.target_changes = self.group.target_changes();
            warn!(group = %self.name, "the target no longer has what it had acknowledged: everything is sent again");
        }
        self.tell_spool_trouble();
        let state = self.group.state();
        let changed = self.shown_state != Some(state);
        if !changed && now < self.published + PUBLISH_INTERVAL {
            return;
        }
        if changed {
            self.syncs += u64::from(state == GroupState::CatchingUp);
            let reason = self.group.reason();
            info!(group = %self.name, state = %state, reason = reason.as_deref().unwrap_or("none"), "the group's state changed");
        }
        self.published = now;
        self.tell_verify();
        self.shown_state = Some(state);
        let shown = self.group.snapshot();
        self.inbox.publish(Snapshot {
            state: shown.state,
            reason: shown.reason,
            state_since: self.clock.instant(shown.state_since),
            acked_set: shown.acked_set,
            acked_time: shown.acked_time,
            covered_until: shown.covered_until.map(|mono| self.clock.instant(mono)),
            backlog_bytes: shown.backlog_bytes,
            captured_bytes: shown.captured_bytes,
            sent_bytes: shown.sent_bytes,
            syncs: self.syncs,
            is_initial: shown.is_initial,
            app_consistent_every: shown.app_consistent_every,
            memory: shown.memory,
            spool: shown.spool,
            totals: shown.totals,
            disks: shown.disks,
        });
    }
}

/// Says how a verification ended; differences are in the log as well, in case nobody reads the answer.
fn tell_end(group: &str, reply: &VerifyReplier, found: Result<Vec<VerifiedDisk>, String>) {
    match &found {
        Ok(disks) => {
            let places = disks.iter().map(|disk| disk.differences().count()).sum::<usize>();
            info!(group, places, "the group was verified");
        }
        Err(why) => info!(group, why, "the group was not verified"),
    }
    let _ = reply.try_send(VerifyNews::Done(found));
}
