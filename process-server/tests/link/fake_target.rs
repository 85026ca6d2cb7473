//! The other end of the link. It keeps no state and judges nothing.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use proto::control_stream::{self, Receiver, Sender};
use proto::frame::Decoder;
use proto::limits::PROTOCOL_VERSION;
use proto::part_stream::PartReader;
use proto::replication::source_message::Body;
use proto::replication::{Hello, PartBegin, SourceHeartbeat, SourceMessage, TargetMessage, Welcome};
use proto::tls::TlsPaths;
use quinn::{Connection, Endpoint, RecvStream};
use tempfile::TempDir;

/// Certificates of both agents.
pub struct Site {
    folder: TempDir,
}

impl Site {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        proto::pki::generate(folder.path(), "ps-1", "mt-1", &[]).unwrap();
        Self { folder }
    }

    pub fn source_tls(&self) -> TlsPaths {
        paths(self.folder.path(), "ps-1")
    }

    pub fn target_tls(&self) -> TlsPaths {
        paths(self.folder.path(), "mt-1")
    }
}

fn paths(folder: &Path, name: &str) -> TlsPaths {
    TlsPaths {
        ca: folder.join("ca.pem"),
        cert: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    }
}

/// Listens on a port of its own.
pub struct FakeTarget {
    endpoint: Endpoint,
}

/// One connection whose greeting was read.
pub struct Session {
    pub connection: Connection,
    pub hello: Hello,
    sender: Sender<TargetMessage>,
    receiver: Receiver<SourceMessage>,
}

/// A part as it arrived.
pub struct Part {
    pub begin: PartBegin,
    /// Disk, first sector, and the bytes where there are any.
    pub extents: Vec<(u32, u64, Option<Bytes>)>,
    pub wire_bytes: u64,
}

impl FakeTarget {
    pub fn start(tls: &TlsPaths) -> Self {
        Self { endpoint: proto::endpoint::server("127.0.0.1:0".parse().unwrap(), tls).unwrap() }
    }

    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    /// The next connection, before any answer.
    pub async fn accept(&self) -> Session {
        let connection = self.endpoint.accept().await.unwrap().await.unwrap();
        let (sender, mut receiver) = control_stream::accept(&connection).await.unwrap();
        let Some(Body::Hello(hello)) = receiver.recv().await.unwrap().unwrap().body else { panic!("no hello") };
        Session { connection, hello, sender, receiver }
    }

    /// The next connection, welcomed.
    pub async fn welcome(&self) -> Session {
        let mut session = self.accept().await;
        session.say(Welcome { version: PROTOCOL_VERSION, name: "mt-1".to_owned(), time_us: 1 }).await;
        session
    }
}

impl Session {
    pub async fn say(&mut self, message: impl Into<TargetMessage>) {
        self.sender.send(message).await.unwrap();
    }

    /// The next message that is not a heartbeat.
    pub async fn hear(&mut self) -> Body {
        loop {
            match self.receiver.recv().await.unwrap().unwrap().body.unwrap() {
                Body::Heartbeat(_) => {}
                body => return body,
            }
        }
    }

    pub async fn hear_heartbeat(&mut self) -> SourceHeartbeat {
        loop {
            if let Body::Heartbeat(heartbeat) = self.receiver.recv().await.unwrap().unwrap().body.unwrap() {
                return heartbeat;
            }
        }
    }

    /// The next part, as far as its name: the rest stays unread.
    pub async fn begin_part(&self) -> (PartBegin, PartReader<RecvStream>) {
        let mut reader = PartReader::new(self.connection.accept_uni().await.unwrap());
        (reader.begin().await.unwrap(), reader)
    }

    pub async fn read_part(&self) -> Part {
        let (begin, reader) = self.begin_part().await;
        read_rest(begin, reader).await
    }
}

pub async fn read_rest(begin: PartBegin, mut reader: PartReader<RecvStream>) -> Part {
    let mut decoder = Decoder::new();
    let mut extents = Vec::new();
    while let Some(record) = reader.next().await.unwrap() {
        let frame = decoder.decode(&record).unwrap();
        extents.extend(frame.extents().map(|(extent, bytes)| (extent.disk, extent.sector, bytes)));
    }
    Part { begin, extents, wire_bytes: reader.wire_bytes() }
}
