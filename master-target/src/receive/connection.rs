//! One connection with a process-server: hello, then messages and part streams until it ends, then its sessions end.
//!
//! Part streams are tasks of the connection and end with it. Groups open in tasks of their own that are never cut off:
//! between the end of one session and the begin of the next there is no place to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proto::control_stream::{ControlError, Receiver, Sender, accept};
use proto::endpoint::{CloseCode, close};
use proto::limits::PROTOCOL_VERSION;
use proto::replication::source_message::Body as SourceBody;
use proto::replication::target_message::Body;
use proto::replication::{Hello, Refused, SourceMessage, TargetHeartbeat, TargetMessage, Welcome};
use proto::tls::peer_names;
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::conversation::Conversation;
use super::part::{Decoders, PartEnded, take_part};
use crate::agent::{Agent, Clock};
use crate::group::board::SILENT_MS;
use crate::group::session::{Link, Wire};

/// How long a peer may take to say its name.
const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a refused peer may take to read why.
const REFUSED_TIME_MAX: Duration = Duration::from_secs(2);
/// How often the target says that it is there.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// Answers that wait for the peer to read.
const OUTBOX_MAX: usize = 1024;

/// A connection with a key of its own.
pub(super) struct QuicWire {
    key: u64,
    connection: Connection,
}

impl Wire for QuicWire {
    fn key(&self) -> u64 {
        self.key
    }

    fn close(&self, code: CloseCode, reason: &str) {
        close(&self.connection, code, reason);
    }

    fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

/// Why a connection is ended by this side.
#[derive(Debug, thiserror::Error)]
enum HelloError {
    #[error("{0}")]
    Control(#[from] ControlError),
    #[error("the connection was lost: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("it did not say its name within {} s", HELLO_TIME_MAX.as_secs())]
    Silent,
    #[error("{message}")]
    Refused { reason: &'static str, message: String },
}

/// Serves a connection until it ends.
pub async fn serve(connection: Connection, agent: &Arc<Agent>) {
    let remote = connection.remote_address();
    let names = peer_names(&connection);
    let greeted = tokio::time::timeout(HELLO_TIME_MAX, greet(&connection, &names, agent)).await;
    match greeted.unwrap_or(Err(HelloError::Silent)) {
        Ok((name, sender, receiver)) => talk(connection, name, names, sender, receiver, agent).await,
        Err(error) => {
            tracing::info!(%remote, ?names, %error, "a peer was refused");
            close(&connection, CloseCode::Refused, &error.to_string());
        }
    }
}

async fn greet(
    connection: &Connection,
    names: &[String],
    agent: &Agent,
) -> Result<(String, Sender<TargetMessage>, Receiver<SourceMessage>), HelloError> {
    let (mut sender, mut receiver) = accept(connection).await?;
    let first = receiver.recv().await?.and_then(|message| message.body);
    match check_hello(first, names) {
        Ok(name) => {
            let time_us = agent.clock().wall().us();
            let welcome = Welcome { version: PROTOCOL_VERSION, name: agent.name().to_owned(), time_us };
            sender.send(TargetMessage { body: Some(Body::Welcome(welcome)) }).await?;
            Ok((name, sender, receiver))
        }
        Err(HelloError::Refused { reason, message }) => {
            let refused = Refused { reason: reason.to_owned(), message: message.clone() };
            sender.send(TargetMessage { body: Some(Body::Refused(refused)) }).await?;
            sender.finish();
            // A connection that is closed at once takes the message with it: the peer closes when it has read it.
            let _ = tokio::time::timeout(REFUSED_TIME_MAX, connection.closed()).await;
            Err(HelloError::Refused { reason, message })
        }
        Err(error) => Err(error),
    }
}

fn check_hello(first: Option<SourceBody>, names: &[String]) -> Result<String, HelloError> {
    let refused = |reason, message| Err(HelloError::Refused { reason, message });
    let Some(SourceBody::Hello(Hello { version, name, .. })) = first else {
        return refused(
            "hello",
            "the first message must be Hello: the process-server is of another version".to_owned(),
        );
    };
    if version != PROTOCOL_VERSION {
        let message = format!(
            "the process-server speaks version {version} of the protocol, this master-target version {PROTOCOL_VERSION}: \
             install the same release on both"
        );
        return refused("version", message);
    }
    if !names.contains(&name) {
        let message = format!(
            "the process-server says it is \"{name}\", but its certificate is for {names:?}: correct `name` in its \
             configuration, or give it its own certificate"
        );
        return refused("name", message);
    }
    Ok(name)
}

async fn talk(
    connection: Connection,
    name: String,
    names: Vec<String>,
    sender: Sender<TargetMessage>,
    receiver: Receiver<SourceMessage>,
    agent: &Arc<Agent>,
) {
    let key = agent.next_connection();
    let clock = agent.clock();
    let heard_ms = Arc::new(AtomicU64::new(elapsed_ms(clock)));
    let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
    let wire = Arc::new(QuicWire { key, connection: connection.clone() });
    let link = Link { outbox, wire, heard_ms: heard_ms.clone() };
    agent.peers().connected(&name, connection.remote_address(), key, heard_ms.clone());
    tracing::info!(peer = name, remote = %connection.remote_address(), "connected");
    let writer = tokio::spawn(write_messages(sender, messages, clock));
    let conversation = Conversation::new(agent.clone(), names, link);
    let ended = tokio::select! {
        ended = read_messages(receiver, &conversation, &heard_ms, clock) => ended,
        ended = take_parts(&connection, &conversation) => ended,
        () = watch_silence(&name, &heard_ms, clock) => unreachable!("it watches for ever"),
        error = connection.closed() => Ended { code: CloseCode::Stopping, what: error.to_string() },
    };
    // Closed already where the peer or another task was first: then this is without effect.
    close(&connection, ended.code, &ended.what);
    conversation.end().await;
    writer.abort();
    let what = connection.close_reason().map_or(ended.what, |reason| reason.to_string());
    tracing::info!(peer = name, reason = what, "disconnected");
    agent.peers().disconnected(&name, key, what);
}

/// How a conversation ended, seen from this side.
struct Ended {
    code: CloseCode,
    what: String,
}

fn elapsed_ms(clock: Clock) -> u64 {
    clock.elapsed().as_millis() as u64
}

async fn write_messages(mut sender: Sender<TargetMessage>, mut messages: mpsc::Receiver<TargetMessage>, clock: Clock) {
    let mut beat = tokio::time::interval(HEARTBEAT_EVERY);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            message = messages.recv() => match message {
                Some(message) => message,
                None => return,
            },
            _ = beat.tick() => {
                let heartbeat = TargetHeartbeat { time_us: clock.wall().us() };
                TargetMessage { body: Some(Body::Heartbeat(heartbeat)) }
            }
        };
        // The reader sees the end of the connection as well, and says why.
        if sender.send(message).await.is_err() {
            return;
        }
    }
}

async fn read_messages(
    mut receiver: Receiver<SourceMessage>,
    conversation: &Conversation,
    heard_ms: &AtomicU64,
    clock: Clock,
) -> Ended {
    loop {
        let message = match receiver.recv().await {
            Ok(Some(message)) => message,
            Ok(None) => return Ended { code: CloseCode::Stopping, what: "the peer ended the conversation".to_owned() },
            Err(error @ ControlError::Io(_)) => return Ended { code: CloseCode::Stopping, what: error.to_string() },
            Err(error) => {
                tracing::error!(%error, "a message was refused");
                return Ended { code: CloseCode::Protocol, what: error.to_string() };
            }
        };
        heard_ms.store(elapsed_ms(clock), Ordering::Relaxed);
        if let Some(body) = message.body {
            conversation.take(body).await;
        }
    }
}

async fn take_parts(connection: &Connection, conversation: &Conversation) -> Ended {
    let mut parts = JoinSet::new();
    let decoders = Arc::new(Decoders::default());
    loop {
        let stream = tokio::select! {
            stream = connection.accept_uni() => stream,
            Some(done) = parts.join_next() => {
                match done {
                    Ok(Err(PartEnded::Refused(what))) => {
                        tracing::error!(reason = what, "a part was refused");
                        return Ended { code: CloseCode::Protocol, what };
                    }
                    Err(error) if error.is_panic() => {
                        return Ended { code: CloseCode::Protocol, what: "the task of a part panicked".to_owned() };
                    }
                    _ => continue,
                }
            }
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => return Ended { code: CloseCode::Stopping, what: error.to_string() },
        };
        let (ports, decoders) = (conversation.ports().clone(), decoders.clone());
        parts.spawn(async move { take_part(stream, &ports, &decoders).await });
    }
}

async fn watch_silence(name: &str, heard_ms: &AtomicU64, clock: Clock) {
    let mut tick = tokio::time::interval(HEARTBEAT_EVERY);
    let mut said = false;
    loop {
        tick.tick().await;
        let silent_ms = elapsed_ms(clock).saturating_sub(heard_ms.load(Ordering::Relaxed));
        let is_silent = silent_ms > SILENT_MS;
        if is_silent && !said {
            tracing::warn!(peer = name, silent_ms, "nothing heard: check the link and the process-server");
        }
        said = is_silent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(version: u32, name: &str) -> Option<SourceBody> {
        Some(SourceBody::Hello(Hello { version, name: name.into(), time_us: 0 }))
    }

    #[test]
    fn a_peer_is_greeted_by_a_name_of_its_certificate() {
        assert_eq!(check_hello(hello(PROTOCOL_VERSION, "ps-1"), &["ps-1".into()]).unwrap(), "ps-1");
    }

    #[test]
    fn another_version_another_name_and_another_first_message_are_refused() {
        let names = ["ps-1".to_owned()];
        for (first, code) in [
            (hello(PROTOCOL_VERSION + 1, "ps-1"), "version"),
            (hello(PROTOCOL_VERSION, "ps-2"), "name"),
            (None, "hello"),
            (Some(SourceBody::Fenced(Default::default())), "hello"),
        ] {
            let error = check_hello(first, &names).unwrap_err();
            assert!(matches!(&error, HelloError::Refused { reason, .. } if *reason == code), "{error}");
        }
    }
}
