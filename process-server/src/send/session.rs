//! One session: from the greeting on a fresh connection to the first thing that goes wrong.
//!
//! Tasks: one reads the control stream and hands each message to its group, one writes it, one keeps
//! the heartbeat, and each group has one for its messages and ordered parts and one for its bulk parts and comparisons.
//! The first of them that fails ends the session. Groups hear [`FromLink::Up`] after the greeting, and
//! [`FromLink::Down`] only when every task of the session has ended: nothing of it reaches them afterwards.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use proto::control_stream::{self, ControlError, Receiver, Sender};
use proto::ids::AgentName;
use proto::limits::PROTOCOL_VERSION;
use proto::replication::target_message::Body as TargetBody;
use proto::replication::{Hello, SourceGroupBeat, SourceHeartbeat, SourceMessage, TargetMessage, Welcome};
use proto::time::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, info};

use super::compare::Comparisons;
use super::compress::WINDOW;
use super::encode::Workshop;
use super::error::LinkError;
use super::limits;
use super::liveness::{HEARTBEAT_EVERY, Liveness};
use super::parts::{Lane, Outlet, Peer, run_bulk};
use super::peer::PeerView;
use super::port::{FromLink, LinkPort, SessionQueues, ToLink};

/// The greeting must be answered within this time. The target may have to end an older session first.
pub(super) const WELCOME_WITHIN: Duration = Duration::from_secs(10);

/// What all sessions of a link share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) name: AgentName,
    pub(super) peer_name: AgentName,
    pub(super) address: String,
    pub(super) ports: Arc<[LinkPort]>,
    pub(super) view: PeerView,
    pub(super) workshop: Arc<Workshop>,
}

impl Shared {
    fn lost(&self, error: &quinn::ConnectionError) -> LinkError {
        proto::endpoint::explain(error, &self.address, self.peer_name.as_str()).into()
    }

    /// A stream fails either because of what is in it, or with its connection, which then knows better why.
    fn stream_failed(&self, connection: &quinn::Connection, error: &ControlError) -> LinkError {
        match (error, connection.close_reason()) {
            (ControlError::Message(error), _) => LinkError::Protocol(error.to_string()),
            (_, Some(reason)) => self.lost(&reason),
            (error, None) => LinkError::Lost(error.to_string()),
        }
    }
}

/// The newest beat of each group that has not gone out yet.
type Beats = Arc<Mutex<BTreeMap<String, SourceGroupBeat>>>;

/// Greets, then runs until something ends the session, `stop` for one. Returns what, and how long it lived since
/// the greeting.
pub(super) async fn run(
    shared: &Shared,
    connection: quinn::Connection,
    stop: impl Future<Output = ()>,
) -> (LinkError, Duration) {
    let mut stop = std::pin::pin!(stop);
    let greeted = tokio::select! {
        greeted = timeout(WELCOME_WITHIN, greet(shared, &connection)) => greeted,
        () = &mut stop => Ok(Err(LinkError::Stopping)),
    };
    let (sender, receiver) = match greeted.unwrap_or(Err(LinkError::NoWelcome(WELCOME_WITHIN))) {
        Ok(streams) => streams,
        Err(error) => {
            close(&connection, &error);
            return (error, Duration::ZERO);
        }
    };
    let start = Instant::now();
    shared.view.set_connected(start);
    info!(peer = %shared.peer_name, address = %connection.remote_address(), "connected to the master-target");

    let mut tasks = start_tasks(shared, &connection, sender, receiver).await;
    let first = tokio::select! {
        first = tasks.join_next() => first,
        () = stop => Some(Ok(Err(LinkError::Stopping))),
    };
    let error = match first {
        Some(Ok(Err(error))) => error,
        Some(Ok(Ok(()))) | None => LinkError::Lost("a task of the session ended early".to_owned()),
        Some(Err(failed)) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
        Some(Err(_)) => LinkError::Stopping,
    };
    close(&connection, &error);
    tasks.shutdown().await;
    for port in shared.ports.iter() {
        port.tell(FromLink::Down { reason: error.to_string() }).await;
    }
    (error, start.elapsed())
}

fn close(connection: &quinn::Connection, error: &LinkError) {
    proto::endpoint::close(connection, error.close_code(), &error.to_string());
}

async fn greet(
    shared: &Shared,
    connection: &quinn::Connection,
) -> Result<(Sender<SourceMessage>, Receiver<TargetMessage>), LinkError> {
    let (mut sender, mut receiver) = control_stream::open(connection).await.map_err(|error| shared.lost(&error))?;
    let hello = Hello { version: PROTOCOL_VERSION, name: shared.name.to_string(), time_us: now().us() };
    sender.send(hello).await.map_err(|error| shared.stream_failed(connection, &error))?;
    let answer = receiver.recv().await.map_err(|error| shared.stream_failed(connection, &error))?;
    check_welcome(shared, answer)?;
    Ok((sender, receiver))
}

fn check_welcome(shared: &Shared, answer: Option<TargetMessage>) -> Result<(), LinkError> {
    let Welcome { version, name, time_us: _ } = match answer.and_then(|answer| answer.body) {
        Some(TargetBody::Welcome(welcome)) => welcome,
        Some(TargetBody::Refused(refused)) => {
            return Err(LinkError::Refused { reason: refused.reason, message: refused.message });
        }
        Some(_) => return Err(LinkError::Protocol("another message in place of the welcome".to_owned())),
        None => return Err(LinkError::Protocol("the end of the conversation in place of the welcome".to_owned())),
    };
    if version != PROTOCOL_VERSION {
        return Err(LinkError::Version { ours: PROTOCOL_VERSION, theirs: version });
    }
    if shared.peer_name != name.as_str() {
        return Err(LinkError::WrongName { expected: shared.peer_name.clone(), found: name });
    }
    Ok(())
}

async fn start_tasks(
    shared: &Shared,
    connection: &quinn::Connection,
    sender: Sender<SourceMessage>,
    receiver: Receiver<TargetMessage>,
) -> JoinSet<Result<(), LinkError>> {
    let mut tasks = JoinSet::new();
    let (control, outgoing) = mpsc::channel(limits::CONTROL_QUEUE);
    let liveness = Arc::new(Mutex::new(Liveness::new(Instant::now())));
    let beats = Beats::default();
    let peer = Peer { name: shared.peer_name.to_string(), address: shared.address.clone() };
    let outlet = Arc::new(Outlet::new(connection.clone(), Arc::clone(&shared.workshop), peer));

    tasks.spawn(write_control(shared.clone(), connection.clone(), sender, outgoing));
    tasks.spawn(read_control(shared.clone(), Arc::clone(&outlet), receiver, Arc::clone(&liveness)));
    tasks.spawn(keep_heartbeat(control.clone(), Arc::clone(&beats), liveness));
    tasks.spawn(measure(Arc::clone(&shared.workshop)));
    for (index, port) in shared.ports.iter().enumerate() {
        let SessionQueues { first, bulk } = port.begin_session().await;
        let lane = || Lane::new(Arc::clone(&outlet), Arc::clone(&shared.ports), index);
        tasks.spawn(run_group(lane(), first, control.clone(), Arc::clone(&beats)));
        let comparisons = Comparisons::new(Arc::clone(&shared.workshop), control.clone());
        tasks.spawn(run_bulk(lane(), comparisons, bulk));
    }
    tasks
}

async fn write_control(
    shared: Shared,
    connection: quinn::Connection,
    mut sender: Sender<SourceMessage>,
    mut outgoing: mpsc::Receiver<SourceMessage>,
) -> Result<(), LinkError> {
    while let Some(message) = outgoing.recv().await {
        sender.send(message).await.map_err(|error| shared.stream_failed(&connection, &error))?;
    }
    Err(LinkError::Stopping)
}

async fn read_control(
    shared: Shared,
    outlet: Arc<Outlet>,
    mut receiver: Receiver<TargetMessage>,
    liveness: Arc<Mutex<Liveness>>,
) -> Result<(), LinkError> {
    loop {
        let received = receiver.recv().await.map_err(|error| shared.stream_failed(&outlet.connection, &error))?;
        let Some(message) = received else {
            // The reason arrives with the end of the connection, if it is ending.
            let closed = timeout(Duration::from_secs(1), outlet.connection.closed()).await;
            let silently = || LinkError::Lost("the target ended the conversation".to_owned());
            return Err(closed.map_or_else(|_| silently(), |error| shared.lost(&error)));
        };
        let now = Instant::now();
        liveness.lock().unwrap_or_else(PoisonError::into_inner).handle_heard(now);
        shared.view.set_heard(now);
        outlet.bulk_room.handle_message(&message);
        hand_over(&shared.ports, message).await?;
    }
}

/// Brings a message to the group that it is about.
async fn hand_over(ports: &[LinkPort], message: TargetMessage) -> Result<(), LinkError> {
    let group = match &message.body {
        Some(TargetBody::Welcome(_)) => return Err(LinkError::Protocol("a second welcome".to_owned())),
        Some(TargetBody::Refused(refused)) => {
            return Err(LinkError::Refused { reason: refused.reason.clone(), message: refused.message.clone() });
        }
        // Heartbeats are about no group, and have been heard.
        _ => match message.group() {
            Some(group) => group,
            None => return Ok(()),
        },
    };
    match ports.iter().find(|port| port.group() == group) {
        Some(port) => port.tell(FromLink::Message(message)).await,
        None => debug!(group, "the master-target speaks of a group that this agent does not have"),
    }
    Ok(())
}

async fn keep_heartbeat(
    control: mpsc::Sender<SourceMessage>,
    beats: Beats,
    liveness: Arc<Mutex<Liveness>>,
) -> Result<(), LinkError> {
    let mut ticks = interval(HEARTBEAT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now_ticked = ticks.tick().await;
        let heard = liveness.lock().unwrap_or_else(PoisonError::into_inner).check(now_ticked);
        heard.map_err(|silent| LinkError::Silent(silent.for_how_long))?;
        let groups = std::mem::take(&mut *beats.lock().unwrap_or_else(PoisonError::into_inner));
        let heartbeat = SourceHeartbeat { time_us: now().us(), groups: groups.into_values().collect() };
        // A full queue means that the stream is not moving: silence is still noticed at the next tick.
        match control.try_send(heartbeat.into()) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(LinkError::Stopping),
        }
    }
}

/// Feeds the compression policy.
async fn measure(workshop: Arc<Workshop>) -> Result<(), LinkError> {
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(WINDOW).await;
        workshop.end_window(last.elapsed());
        last = Instant::now();
    }
}

/// Passes on what a group says, and sends its ordered parts.
async fn run_group(
    mut lane: Lane,
    mut queue: mpsc::Receiver<ToLink>,
    control: mpsc::Sender<SourceMessage>,
    beats: Beats,
) -> Result<(), LinkError> {
    loop {
        let next = tokio::select! {
            next = queue.recv(), if lane.has_room() => next,
            sent = lane.oldest() => {
                lane.tell(sent?).await;
                continue;
            }
        };
        let message = match next {
            Some(ToLink::Part(job)) => {
                lane.start(job);
                continue;
            }
            Some(ToLink::Compare(_)) => unreachable!("the port puts it into the other queue"),
            Some(ToLink::Beat(beat)) => {
                beats.lock().unwrap_or_else(PoisonError::into_inner).insert(beat.group.clone(), beat);
                continue;
            }
            Some(ToLink::Open(open)) => open.into(),
            Some(ToLink::BeginBulk(begin)) => begin.into(),
            Some(ToLink::Seal(seal)) => seal.into(),
            Some(ToLink::Repair(repair)) => repair.into(),
            Some(ToLink::MarksVoid(void)) => void.into(),
            Some(ToLink::Fenced(fenced)) => fenced.into(),
            // The group has stopped; what it handed over still goes out.
            None => return lane.finish().await,
        };
        control.send(message).await.map_err(|_| LinkError::Stopping)?;
    }
}

#[expect(clippy::disallowed_methods, reason = "the link tells the peer the time of this machine")]
fn now() -> Timestamp {
    Timestamp::from_system_time(SystemTime::now())
}
