//! How sessions of a group open and end: one at a time, the next only when every pass of the last is back (rule L6).

use std::sync::Arc;

use proto::endpoint::CloseCode;
use proto::ids::{Counter, Phase};
use proto::replication::target_message::Body;
use proto::replication::{FenceRequest, GroupOpened, OpenGroup, PartKey, TargetMessage, VoidNote};
use tokio::sync::{Semaphore, mpsc};

use super::apply_thread::ToApply;
use super::board::Board;
use super::journal_thread::ToJournal;
use super::roster::Places;
use super::runtime::{Group, Slot, blocking};
use super::session::{About, Link, Pass, Session};
use super::upkeep::random;
use crate::journal::{Journal, PhaseError, PhaseOpened, Volume};
use crate::receive::admission::{Door, FAILED_BACK, Refusal, SourceLife, check_open, may_replace};

/// What the connection of a session gives its content to.
#[derive(Clone)]
pub struct Port {
    /// Right to work for the session.
    pub pass: Pass,
    /// To the journal thread.
    pub to_journal: mpsc::Sender<ToJournal>,
    /// To the apply thread.
    pub to_apply: mpsc::Sender<ToApply>,
    /// Memory for receiving, in KiB.
    pub budget: Arc<Semaphore>,
    /// Memory for comparisons, in KiB.
    pub compare_budget: Arc<Semaphore>,
    /// What others see of the group.
    pub board: Arc<Board>,
    /// Where the disks of the source stand in the journal.
    pub places: Places,
}

/// Has the journal open the phase of a source, and gives the counter that the answer carries; blocks.
pub fn enter<V: Volume>(
    journal: &Journal<V>,
    open: &OpenGroup,
    life: &SourceLife,
) -> Result<(PhaseOpened, Counter), PhaseError> {
    let is_of_old_lineage = !open.lineage.is_empty() && open.lineage[..] != journal.lineage().0[..];
    let opened = match journal.open_phase(Phase(open.phase), life.start, &life.instance) {
        // Its phase ended with a failback while it lived on: what this journal is tells it to begin anew (rule L1).
        // Nothing of the old phase is taken: the journal has none open.
        Err(PhaseError::Over { .. }) if is_of_old_lineage => journal.introduction(),
        opened => opened?,
    };
    Ok((opened, journal.greet(Counter(open.counter))?))
}

/// What the source is told of a group that it has opened. `had_content`: the disks were there before this agent.
pub fn answer_of<V: Volume>(
    open: &OpenGroup,
    journal: &Journal<V>,
    (opened, counter): (&PhaseOpened, Counter),
    had_content: bool,
) -> GroupOpened {
    let durable_parts = opened.durable_parts.iter().map(|&(number, part)| PartKey { number, part }).collect();
    GroupOpened {
        group: open.group.clone(),
        phase: open.phase,
        lineage: journal.lineage().to_vec(),
        counter: counter.into(),
        last_set: opened.last_set.into(),
        durable_parts,
        bulk_open: opened.bulk_open,
        has_history: opened.has_history,
        // A disk that was there before may hold the machine's content from before.
        comparable: opened.has_history || had_content,
        marks: journal.marks(),
        newest_cut_us: journal.newest_point().map_or(0, |point| point.time.us()),
        app_consistent_every_s: None,
        marks_void: journal.marks_void().map(|note| VoidNote { source_start: note.source_start, number: note.number }),
    }
}

impl Group {
    /// Opens a session, if its source may have one; the old one has ended when it begins.
    pub async fn open(
        &self,
        message: &OpenGroup,
        certificate_names: &[String],
        link: &Link,
    ) -> Result<(GroupOpened, Port), Refusal> {
        let mut slot = self.slot().await;
        let failed = |what: String| Refusal::Failed { group: self.name().to_owned(), what };
        if self.is_stopping() || !link.wire.is_open() {
            return Err(failed("the agent stops, or the connection is closed".to_owned()));
        }
        let held = slot.roster.iter().filter(|disk| disk.is_held()).map(|disk| disk.spec.clone()).collect::<Vec<_>>();
        let specs = slot.specs.as_ref().map(|_| &held[..]);
        let life = check_open(message, certificate_names, Some(self.rules()), specs, slot.door)?;
        if let Some(session) = &slot.session {
            may_replace(self.name(), &session.about().life, &life)?;
        }
        self.end_session(&mut slot, Some(link.wire.key())).await;
        self.check_trouble(&slot)?;
        let journal = match self.ready_for(&mut slot, &message.disks).await {
            Ok(journal) => journal,
            Err(error) => {
                slot.retry.failed(self.site().clock.elapsed(), random());
                self.board().fail(error.to_string());
                self.board().still_failed(error.to_string());
                return Err(failed(error.to_string()));
            }
        };
        let journal = self.with_disks_of(&mut slot, journal, message).await?;
        let places = self.places(&journal, message);
        let (opening, open, offered) = (journal.clone(), message.clone(), life.clone());
        let entered = blocking(move || enter(&opening, &open, &offered)).await;
        let (opened, counter) = entered.map_err(|error| Refusal::of_phase(self.name(), error))?;
        let Some(works) = &slot.works else { return Err(failed("it is being closed".to_owned())) };
        let had_content = works.opened.iter().flatten().any(|disk| !disk.created);
        let about = About {
            key: self.next_session_key(),
            group: self.name().to_owned(),
            phase: message.phase,
            life,
            disks: message.disks.clone().into(),
            link: link.clone(),
        };
        let session = Session::new(about);
        let port = Port {
            pass: session.pass(),
            to_journal: works.to_journal.clone(),
            to_apply: works.to_apply.clone(),
            budget: works.budget.clone(),
            compare_budget: works.compare_budget.clone(),
            board: self.board().clone(),
            places: places.clone(),
        };
        self.board().set_places(places);
        self.show_journal(&journal);
        slot.session = Some(session);
        let every = self.config().app_consistent_every.map(|every| u32::try_from(every.as_secs()).unwrap_or(u32::MAX));
        let answer = answer_of(message, &journal, (&opened, counter), had_content);
        let answer = GroupOpened { app_consistent_every_s: every, ..answer };
        Ok((answer, port))
    }

    /// The source was told that its session is open: from now on it may be told more about it, a fence or its end.
    pub async fn announced(&self, session_key: u64) {
        let outbox = {
            let slot = self.slot().await;
            let session = slot.session.as_ref().filter(|session| session.about().key == session_key);
            let Some(about) = session.map(|session| session.about()) else { return };
            self.board().session_opened(about.key, about.phase, about.link.clone());
            about.link.outbox.clone()
        };
        if let Some(message) = self.cancellation() {
            let _ = outbox.send(message).await;
        }
    }

    /// Refuses while a fault lasts: `upkeep` opens the group again. A group of which nothing is known yet has nothing to
    /// be opened but by its source.
    fn check_trouble(&self, slot: &Slot) -> Result<(), Refusal> {
        if let Some(what) = self.board().failure() {
            let is_tried = slot.is_started && slot.specs.is_none() && slot.retry.is_due(self.site().clock.elapsed());
            return if is_tried { Ok(()) } else { Err(Refusal::Failed { group: self.name().to_owned(), what }) };
        }
        match self.board().shortage() {
            Some((what, _)) => Err(Refusal::Full { group: self.name().to_owned(), what }),
            None => Ok(()),
        }
    }

    /// Ends the session of a connection that has ended, if it still is the group's.
    pub async fn closed(&self, session_key: u64) {
        let mut slot = self.slot().await;
        if slot.session.as_ref().is_some_and(|session| session.about().key == session_key) {
            self.end_session(&mut slot, None).await;
        }
    }

    /// Ends the session, if there is one: returns when nothing works for it any more.
    ///
    /// Its connection is closed unless it is that with key `kept`.
    pub(super) async fn end_session(&self, slot: &mut Slot, kept: Option<u64>) {
        let Some(session) = slot.session.take() else { return };
        let wire = &session.about().link.wire;
        if Some(wire.key()) != kept {
            wire.close(CloseCode::Replaced, "the group was taken by another connection");
        }
        self.board().session_ended();
        session.end().await;
    }

    /// Ends the session and lets none in. The connection and its other groups go on; the source asks for the group again,
    /// and is told to fence itself.
    pub async fn lock_out(&self) {
        let mut slot = self.slot().await;
        slot.door = Door::Fenced;
        let what = "the group is failed back: its source is fenced and takes no more writes";
        let is_told = self.board().session_over(FAILED_BACK, what);
        // A source that has not been told that its session is open can't be told that it is over.
        let kept = slot.session.as_ref().filter(|_| is_told).map(|session| session.about().link.wire.key());
        self.end_session(&mut slot, kept).await;
    }

    /// Lets sessions in: a failback still drains its source.
    pub async fn let_in(&self) {
        self.slot().await.door = Door::Open;
    }

    /// Asks the source of a session to fence itself. A session that has ended meanwhile is none to ask.
    pub async fn send_fence(&self, session_key: u64, request: u64) {
        let outbox = {
            let slot = self.slot().await;
            let session = slot.session.as_ref().filter(|session| session.about().key == session_key);
            session.map(|session| session.about().link.outbox.clone())
        };
        if let Some(outbox) = outbox {
            let body = Body::FenceRequest(FenceRequest { group: self.name().to_owned(), request });
            let _ = outbox.send(TargetMessage { body: Some(body) }).await;
        }
    }
}
