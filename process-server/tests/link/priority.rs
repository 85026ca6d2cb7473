//! What goes first on a link that is full.

use std::time::Duration;

use process_server::config::Schedule;
use process_server::send::ToLink;
use proto::part_stream::PartReader;
use proto::replication::PartKind;
use proto::replication::source_message::Body;
use proto::throttle::BitRate;
use tokio::time::Instant;

use crate::fake_target::{FakeTarget, Session, Site, read_rest};
use crate::group::{TestGroup, TestLink, part, seal, start_with};

const MIB: usize = 1 << 20;

/// 2 MB/s.
async fn capped() -> (Site, FakeTarget, TestLink, TestGroup, Session) {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let schedule = Schedule { otherwise: Some(BitRate(16_000_000)), windows: Vec::new() };
    let (link, [mut web]) = start_with(schedule, site.source_tls(), &target.address().to_string(), ["web"]);
    let session = target.welcome().await;
    web.up().await;
    (site, target, link, web, session)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_ordered_parts_overtake_bulk_that_is_half_sent() {
    let (_site, _target, _link, mut web, mut session) = capped().await;
    for index in 0..2 {
        web.send(ToLink::Part(part("web", PartKind::Bulk, 1, 0, index, 8 * MIB)));
    }
    let _first_bulk = session.begin_part().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let asked = Instant::now();
    web.send(ToLink::Part(part("web", PartKind::Ordered, 1, 1, 0, MIB / 16)));
    web.send(ToLink::Seal(seal("web", 1, 1)));
    assert!(matches!(session.hear().await, Body::SealSet(_)));
    let _second_bulk = session.connection.accept_uni().await.unwrap();
    let (begin, reader) = session.begin_part().await;
    assert_eq!(begin.kind(), PartKind::Ordered);
    read_rest(begin, reader).await;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?} for 64 KiB; the bulk before it takes 8 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_ordered_part_is_there_as_a_whole_before_a_newer_one_takes_its_share() {
    let (_site, _target, _link, mut web, session) = capped().await;
    let asked = Instant::now();
    for number in 1..=3 {
        web.send(ToLink::Part(part("web", PartKind::Ordered, 1, number, 0, 2 * MIB)));
    }
    // Streams are numbered as they are opened, which is not in order; what arrives first tells which it is.
    let mut reading = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let connection = session.connection.clone();
        reading.spawn(async move {
            let mut reader = PartReader::new(connection.accept_uni().await.unwrap());
            let begin = reader.begin().await.unwrap();
            read_rest(begin, reader).await.begin.number
        });
    }
    let first = reading.join_next().await.unwrap().unwrap();
    let took = asked.elapsed();
    assert_eq!(first, 1);
    assert!(took < Duration::from_secs(2), "{took:?} for the first of three parts of 1 s each");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_with_a_backlog_does_not_keep_the_set_of_another_waiting() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let schedule = Schedule { otherwise: Some(BitRate(16_000_000)), windows: Vec::new() };
    let (_link, [mut web, mut db]) =
        start_with(schedule, site.source_tls(), &target.address().to_string(), ["web", "db"]);
    let session = target.welcome().await;
    web.up().await;
    db.up().await;
    for number in 1..=8 {
        web.send(ToLink::Part(part("web", PartKind::Ordered, 1, number, 0, 2 * MIB)));
    }
    // Streams are numbered as they are opened, and their first bytes arrive in the order in which parts go.
    let mut reading = tokio::task::JoinSet::new();
    for _ in 0..9 {
        let connection = session.connection.clone();
        reading.spawn(async move {
            let mut reader = PartReader::new(connection.accept_uni().await.unwrap());
            let begin = reader.begin().await.unwrap();
            read_rest(begin, reader).await.begin.group
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let asked = Instant::now();
    db.send(ToLink::Part(part("db", PartKind::Ordered, 1, 1, 0, MIB / 16)));
    while reading.join_next().await.unwrap().unwrap() != "db" {}
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?} for 64 KiB; what the other group has queued takes 8 s");
}
