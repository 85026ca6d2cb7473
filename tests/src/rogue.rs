//! A source that has the right keys and sends the wrong things: it speaks the real protocol up to a part of its choice.
//!
//! It connects once, opens the site's group as a source that was never here before, begins bulk and sends one part
//! made of the bytes that a test gives it. It says what the target answers. Its start counter is 0, below that of
//! any real source, so that the real one may follow it.

use std::time::Duration;

use bytes::Bytes;
use proto::control_stream::{self, ControlError};
use proto::limits::PROTOCOL_VERSION;
use proto::record::{Record, RecordKind};
use proto::replication::target_message::Body;
use proto::replication::{BeginBulk, DiskSpec, Hello, OpenGroup, PartBegin, PartKind, TargetMessage};
use proto::tls::TlsPaths;

use crate::site::{GROUP, Site};

/// The target has to answer within this.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What the target made of the part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It acknowledged the part.
    Durable,
    /// It ended the session, or refused in words.
    Refused(String),
}

/// The records of a bulk part around `frames`, with true counts at its end.
#[must_use]
pub fn part(frames: Vec<Bytes>, sectors: u64) -> Vec<Bytes> {
    let begin = PartBegin { group: GROUP.into(), phase: 1, kind: PartKind::Bulk.into(), number: 0, part: 0, marks: 0 };
    let end = proto::replication::PartEnd { frames: frames.len() as u32, sectors };
    let mut records = vec![Record::encode(RecordKind::PartBegin, &begin, &[])];
    records.extend(frames);
    records.push(Record::encode(RecordKind::PartEnd, &end, &[]));
    records
}

/// Connects to the site's target and sends `records` on one stream, as a bulk part.
///
/// # Panics
/// If the target does not even open the group, or gives no answer.
#[track_caller]
#[must_use]
pub fn send_part(site: &Site, records: Vec<Bytes>) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let pki = site.path().join("pki");
    let tls = TlsPaths { ca: pki.join("ca.pem"), cert: pki.join("ps-1.pem"), key: pki.join("ps-1.key") };
    let disks = site.disks.iter();
    let disks = disks.map(|disk| DiskSpec { name: disk.name.clone(), size: disk.size, logical_block: 512 }).collect();
    let address = site.target_address();
    runtime.block_on(async {
        let converse = tokio::time::timeout(ANSWER_MAX, converse(&address, &tls, disks, records));
        converse.await.expect("an answer of the target")
    })
}

async fn converse(address: &str, tls: &TlsPaths, disks: Vec<DiskSpec>, records: Vec<Bytes>) -> Answer {
    let endpoint = proto::endpoint::client(tls).expect("an endpoint");
    let connection = proto::endpoint::connect(&endpoint, address, "mt-1").await.expect("a connection");
    let (mut sender, mut receiver) = control_stream::open(&connection).await.expect("a control stream");
    let hello = Hello { version: PROTOCOL_VERSION, name: "ps-1".into(), time_us: 1 };
    sender.send(hello).await.expect("a message is sent");
    expect(&mut receiver, "welcome", |body| matches!(body, Body::Welcome(_))).await;
    let open = OpenGroup {
        group: GROUP.into(),
        phase: 1,
        source_start: 0,
        source_instance: vec![7; 16],
        disks,
        lineage: Vec::new(),
        counter: 0,
    };
    sender.send(open).await.expect("a message is sent");
    expect(&mut receiver, "the group", |body| matches!(body, Body::GroupOpened(_))).await;
    sender.send(BeginBulk { group: GROUP.into(), phase: 1 }).await.expect("a message is sent");
    expect(&mut receiver, "bulk", |body| matches!(body, Body::BulkBegun(_))).await;

    let mut stream = connection.open_uni().await.expect("a stream");
    for record in records {
        // The target may have stopped reading at the first wrong byte.
        if stream.write_all(&record).await.is_err() {
            break;
        }
    }
    let _ = stream.finish();
    let answer = loop {
        match receiver.recv().await {
            Ok(Some(TargetMessage { body: Some(Body::PartDurable(_)) })) => break Answer::Durable,
            Ok(Some(TargetMessage { body: Some(Body::GroupRefused(refused)) })) => {
                break Answer::Refused(refused.message);
            }
            Ok(Some(TargetMessage { body: Some(Body::Refused(refused)) })) => break Answer::Refused(refused.message),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break Answer::Refused(format!("{:?}", connection.close_reason())),
        }
    };
    connection.close(0u32.into(), b"done");
    endpoint.wait_idle().await;
    answer
}

type Receiver = control_stream::Receiver<TargetMessage>;

async fn expect(receiver: &mut Receiver, what: &str, wanted: impl Fn(&Body) -> bool) {
    loop {
        let message: Result<Option<TargetMessage>, ControlError> = receiver.recv().await;
        match message {
            Ok(Some(TargetMessage { body: Some(body) })) if wanted(&body) => return,
            // Heartbeats may stand between.
            Ok(Some(TargetMessage { body: Some(Body::Heartbeat(_)) })) => {}
            other => panic!("waited for {what}, got {other:?}"),
        }
    }
}
