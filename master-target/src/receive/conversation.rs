//! What the messages of a connected process-server do: open groups, begin bulk, compare, seal sets, answer fences.
//!
//! A message about a group or phase that this connection does not have open is dropped: it belongs to a session that
//! is over (rule L2).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use proto::replication::source_message::Body as SourceBody;
use proto::replication::target_message::Body;
use proto::replication::{BeginBulk, CompareBlocks, Fenced, MarksVoid, OpenGroup, RepairBlock, SealSet, TargetMessage};

use super::admission::{Door, Refusal, busy, check_open};
use super::part::reserve;
use super::ports::Ports;
use crate::agent::Agent;
use crate::group::session::{Link, Pass};
use crate::group::{ToApply, ToJournal};
use crate::recover::steps::FenceAnswer;

/// The conversation on one connection.
pub(super) struct Conversation {
    agent: Arc<Agent>,
    names: Vec<String>,
    link: Link,
    ports: Arc<Ports>,
    opening: Arc<Mutex<HashSet<String>>>,
}

impl Conversation {
    pub(super) fn new(agent: Arc<Agent>, names: Vec<String>, link: Link) -> Self {
        Self { agent, names, link, ports: Arc::default(), opening: Arc::default() }
    }

    pub(super) fn ports(&self) -> &Arc<Ports> {
        &self.ports
    }

    /// Takes one message.
    pub(super) async fn take(&self, body: SourceBody) {
        match body {
            SourceBody::OpenGroup(open) => self.open(open).await,
            SourceBody::BeginBulk(begin) => self.begin_bulk(&begin).await,
            SourceBody::SealSet(seal) => self.seal(seal).await,
            SourceBody::CompareBlocks(compare) => self.compare(compare).await,
            SourceBody::RepairBlock(repair) => self.repair(repair).await,
            SourceBody::MarksVoid(void) => self.note_marks(void).await,
            SourceBody::Fenced(fenced) => self.fenced(&fenced),
            SourceBody::Heartbeat(beat) => self.ports.each_open(|port| port.board.heard_time(beat.time_us)),
            SourceBody::Hello(_) => {}
        }
    }

    async fn open(&self, open: OpenGroup) {
        let Some(group) = self.agent.group(&open.group) else {
            let refusal = check_open(&open, &self.names, None, None, Door::Open).err();
            let refusal = refusal.unwrap_or_else(|| Refusal::UnknownGroup(open.group.clone()));
            return self.refuse(&open, &refusal).await;
        };
        if !self.begin_opening(&open.group) {
            return self.send(Body::GroupRefused(busy(&open))).await;
        }
        // The old session of this connection can't end while its port is here.
        self.ports.remove(&open.group);
        let (names, link) = (self.names.clone(), self.link.clone());
        let (ports, opening) = (self.ports.clone(), self.opening.clone());
        tokio::spawn(async move {
            let opened = group.open(&open, &names, &link).await;
            opening.lock().unwrap_or_else(PoisonError::into_inner).remove(&open.group);
            let send = async |body| drop(link.outbox.send(TargetMessage { body: Some(body) }).await);
            match opened {
                Ok((answer, port)) => {
                    let key = port.pass.about().key;
                    let pass = port.pass.clone();
                    if ports.insert(port).is_err() {
                        drop(pass);
                        return group.closed(key).await;
                    }
                    tokio::spawn(let_go(ports, pass));
                    tracing::info!(group = open.group, phase = open.phase, last_set = answer.last_set, "opened");
                    send(Body::GroupOpened(answer)).await;
                    group.announced(key).await;
                }
                Err(refusal) => {
                    if refusal.is_for_now() {
                        // The trouble itself is in the log; the source asks every few seconds while it lasts.
                        tracing::debug!(group = open.group, reason = refusal.code(), "{refusal}");
                    } else {
                        tracing::info!(group = open.group, reason = refusal.code(), "{refusal}");
                    }
                    send(Body::GroupRefused(refusal.to_message(&open))).await;
                }
            }
        });
    }

    fn begin_opening(&self, group: &str) -> bool {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner).insert(group.to_owned())
    }

    async fn refuse(&self, open: &OpenGroup, refusal: &Refusal) {
        tracing::info!(reason = refusal.code(), "{refusal}");
        self.send(Body::GroupRefused(refusal.to_message(open))).await;
    }

    async fn send(&self, body: Body) {
        // An answer that nobody reads any more is dropped with its connection.
        let _ = self.link.outbox.send(TargetMessage { body: Some(body) }).await;
    }

    async fn begin_bulk(&self, begin: &BeginBulk) {
        if let Some(port) = self.ports.find(&begin.group, begin.phase) {
            let _ = port.to_apply.send(ToApply::BeginBulk { pass: port.pass.clone() }).await;
        }
    }

    async fn compare(&self, mut compare: CompareBlocks) {
        let Some(port) = self.ports.find(&compare.group, compare.phase) else { return };
        compare.runs.iter_mut().for_each(|run| run.disk = port.places.inward(run.disk));
        let Ok(permit) = reserve(&port.compare_budget, compare.encoded_len()).await else { return };
        let _ = port.to_apply.send(ToApply::Compare { pass: port.pass.clone(), compare, permit }).await;
    }

    async fn repair(&self, mut repair: RepairBlock) {
        let Some(port) = self.ports.find(&repair.group, repair.phase) else { return };
        repair.disk = port.places.inward(repair.disk);
        let Ok(permit) = reserve(&port.compare_budget, repair.encoded_len()).await else { return };
        let _ = port.to_apply.send(ToApply::Repair { pass: port.pass.clone(), repair, permit }).await;
    }

    async fn seal(&self, seal: SealSet) {
        let Some(port) = self.ports.find(&seal.group, seal.phase) else { return };
        let _ = port.to_journal.send(ToJournal::Seal { pass: port.pass.clone(), seal }).await;
    }

    async fn note_marks(&self, void: MarksVoid) {
        let Some(port) = self.ports.find(&void.group, void.phase) else { return };
        let _ = port.to_journal.send(ToJournal::NoteMarks { pass: port.pass.clone(), void }).await;
    }

    fn fenced(&self, fenced: &Fenced) {
        let Some(port) = self.ports.find_any(&fenced.group) else { return };
        tracing::info!(group = fenced.group, last_set = fenced.last_set, "the source is fenced");
        port.board.fenced(FenceAnswer {
            request: fenced.request,
            last_set: fenced.last_set,
            fenced_at_us: fenced.fenced_at_us,
        });
    }

    /// The connection has ended: so do its sessions.
    pub(super) async fn end(&self) {
        for (name, key) in self.ports.close() {
            if let Some(group) = self.agent.group(&name) {
                group.closed(key).await;
            }
        }
    }
}

/// Takes the port of a session away when it ends while its connection goes on. Whoever ends it waits for this.
async fn let_go(ports: Arc<Ports>, mut pass: Pass) {
    pass.ended().await;
    let about = pass.about();
    ports.remove_session(&about.group, about.key);
}
