//! What travels in a session that works, and what must not travel from one to the next.

use std::time::Duration;

use bytes::Bytes;
use process_server::send::{CompareJob, FromLink, PartJob, ToLink, limits};
use proto::digest;
use proto::endpoint::{CloseCode, close};
use proto::frame::{Bases, Compression, Keep, RawContent, RawExtent};
use proto::ids::DiskIndex;
use proto::replication::source_message::Body;
use proto::replication::{
    BlocksCompared, BulkBegun, GroupOpened, PartBegin, PartDurable, PartKind, SetDurable, SourceGroupBeat,
    TargetHeartbeat,
};
use tokio::time::timeout;

use crate::fake_target::{FakeTarget, Site, read_rest};
use crate::group::{PATIENCE, data, open, part, seal, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_begins_with_hello_and_up_and_groups_hear_only_what_is_about_them() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (link, [mut web, mut db]) = start(site.source_tls(), &target.address().to_string(), ["web", "db"]);
    let mut session = target.welcome().await;
    assert_eq!(session.hello.name, "ps-1");
    web.up().await;
    db.up().await;
    link.status_when(|status| status.connected && status.last_error.is_none()).await;

    web.send(ToLink::Open(open("web", 3)));
    assert!(matches!(session.hear().await, Body::OpenGroup(open) if open.group == "web" && open.phase == 3));

    let opened = GroupOpened { group: "web".to_owned(), phase: 3, lineage: vec![1; 16], ..GroupOpened::default() };
    session.say(opened.clone()).await;
    session.say(SetDurable { group: "unknown".to_owned(), ..SetDurable::default() }).await;
    session.say(TargetHeartbeat { time_us: 5 }).await;
    let begun = BulkBegun { group: "db".to_owned(), phase: 9 };
    session.say(begun.clone()).await;
    assert_eq!(web.recv().await, FromLink::Message(opened.into()));
    assert_eq!(db.recv().await, FromLink::Message(begun.into()));
    assert_eq!((web.port.try_recv(), db.port.try_recv()), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_arrives_as_it_was_and_the_group_learns_its_size_on_the_wire() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (_link, [mut web]) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let session = target.welcome().await;
    web.up().await;
    for level in [Compression::Off, Compression::Zstd(1)] {
        let begin = PartBegin {
            group: "web".to_owned(),
            phase: 3,
            kind: PartKind::Ordered.into(),
            number: 5,
            part: 1,
            marks: 0,
        };
        let mut extents: Vec<_> = (0..300).map(|i| data(i * 8, Bytes::from(vec![1 + (i % 255) as u8; 4096]))).collect();
        let zero = RawExtent { disk: DiskIndex(1), sector: 8, content: RawContent::Zero { sectors: 2048 } };
        extents.push(zero);
        extents.push(data(1 << 20, Bytes::from(vec![3; 1 << 20])));
        web.send(ToLink::Part(PartJob {
            begin: begin.clone(),
            extents: extents.clone(),
            level,
            bases: Bases::default(),
            keep: Keep::Nothing,
        }));

        let arrived = session.read_part().await;
        assert_eq!(arrived.begin, begin);
        let expected = extents.iter().map(|extent| match &extent.content {
            RawContent::Data { bytes, .. } => (extent.disk.0, extent.sector, Some(bytes.clone())),
            _ => (extent.disk.0, extent.sector, None),
        });
        assert!(arrived.extents.iter().cloned().eq(expected));
        let wire_bytes = arrived.wire_bytes;
        let sent = FromLink::PartSent { kind: PartKind::Ordered, number: 5, part: 1, wire_bytes, compresses: true };
        assert_eq!(web.recv().await, sent);
        let raw_bytes = 300 * 4096 + (1 << 20);
        assert_eq!(arrived.wire_bytes < raw_bytes / 10, level != Compression::Off, "{}", arrived.wire_bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn comparisons_become_digests_in_any_order_and_their_answers_reach_the_group() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (_link, [mut web]) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let mut session = target.welcome().await;
    web.up().await;
    // More than are in progress at a time: the rest waits its turn.
    let requests = limits::COMPARES_WINDOW as u32 + 4;
    for request in 0..requests {
        let zero = RawExtent { disk: DiskIndex(1), sector: 8, content: RawContent::Zero { sectors: 2048 } };
        let content = data(u64::from(request) * 2048, Bytes::from(vec![1 + request as u8; digest::UNIT_BYTES + 512]));
        web.send(ToLink::Compare(CompareJob {
            group: "web".to_owned(),
            phase: 3,
            request,
            extents: vec![content, zero],
        }));
    }
    let mut asked = Vec::new();
    for _ in 0..requests {
        let Body::CompareBlocks(compare) = session.hear().await else { panic!("not a comparison") };
        assert_eq!((compare.group.as_str(), compare.phase), ("web", 3));
        let value = 1 + compare.request as u8;
        let units = [digest::of_unit(&[value; digest::UNIT_BYTES]), digest::of_unit(&[value; 512])];
        let runs: Vec<_> = compare.runs.iter().map(|run| (run.disk, run.sector, run.sectors)).collect();
        assert_eq!(runs, [(0, u64::from(compare.request) * 2048, 129), (1, 8, 2048)]);
        assert_eq!((&compare.runs[0].digests[..], &compare.runs[1].digests[..]), (&units.concat()[..], &[][..]));
        asked.push(compare.request);
    }
    asked.sort_unstable();
    assert!(asked.into_iter().eq(0..requests));

    let answer = BlocksCompared { group: "web".to_owned(), phase: 3, request: 5, differs: vec![2, 0, 0], counter: 7 };
    session.say(answer.clone()).await;
    assert_eq!(web.recv().await, FromLink::Message(answer.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn comparisons_go_on_while_bulk_parts_wait_for_the_targets_disks() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (_link, [mut web]) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let mut session = target.welcome().await;
    web.up().await;
    // They fill the room for bulk, and nothing of them is acknowledged.
    for index in 0..6 {
        web.send(ToLink::Part(part("web", PartKind::Bulk, 3, 0, index, 8 << 20)));
    }
    let extents = vec![data(0, Bytes::from(vec![1; 4096]))];
    web.send(ToLink::Compare(CompareJob { group: "web".to_owned(), phase: 3, request: 1, extents }));
    assert!(matches!(session.hear().await, Body::CompareBlocks(compare) if compare.request == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_part_is_a_part() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (_link, [mut web]) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let session = target.welcome().await;
    web.up().await;
    web.send(ToLink::Part(part("web", PartKind::Ordered, 1, 1, 0, 0)));
    assert!(session.read_part().await.extents.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_carry_the_newest_beat_of_each_group_once() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (_link, [mut web, mut db]) = start(site.source_tls(), &target.address().to_string(), ["web", "db"]);
    let mut session = target.welcome().await;
    web.up().await;
    db.up().await;
    let beat = |group: &str, newest_set| SourceGroupBeat {
        group: group.to_owned(),
        phase: 1,
        newest_set,
        as_of_us: newest_set * 10,
        streaming: true,
    };
    web.send(ToLink::Beat(beat("web", 1)));
    web.send(ToLink::Beat(beat("web", 2)));
    db.send(ToLink::Beat(beat("db", 7)));
    let mut heard = Vec::new();
    while heard.len() < 2 || heard.last() != Some(&beat("web", 2)) && heard.len() < 3 {
        heard.extend(session.hear_heartbeat().await.groups);
    }
    assert!(heard.contains(&beat("web", 2)) && heard.contains(&beat("db", 7)), "{heard:?}");
    assert!(session.hear_heartbeat().await.groups.is_empty(), "a beat goes out once");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_old_session_arrives_in_the_next() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (_link, [mut web]) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let old = target.welcome().await;
    web.up().await;
    // More than the parts in progress, so that some wait in the queue; large, so that some are half sent.
    for number in 1..=30 {
        web.send(ToLink::Part(part("web", PartKind::Ordered, 1, number, 0, 3 << 20)));
        web.send(ToLink::Seal(seal("web", 1, number)));
    }
    close(&old.connection, CloseCode::Replaced, "a test wants another session");
    let mut new = target.welcome().await;
    // The group has not looked yet: what it still says belongs to the old session, whether it is taken or not.
    drop(web.port.try_send(ToLink::Seal(seal("web", 1, 31))));
    drop(web.port.try_send(ToLink::Part(part("web", PartKind::Bulk, 1, 0, 0, 4096))));

    let reason = web.down().await;
    assert!(reason.contains("a test wants another session"), "{reason}");
    web.up().await;
    web.send(ToLink::Open(open("web", 2)));
    web.send(ToLink::Part(part("web", PartKind::Ordered, 2, 1, 0, 4096)));
    web.send(ToLink::Seal(seal("web", 2, 1)));
    assert!(matches!(new.hear().await, Body::OpenGroup(open) if open.phase == 2));
    assert!(matches!(new.hear().await, Body::SealSet(seal) if seal.phase == 2));
    assert_eq!(new.read_part().await.begin.phase, 2);
    let sent = web.recv().await;
    assert!(matches!(sent, FromLink::PartSent { number: 1, wire_bytes: ..8192, .. }), "{sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_ordered_parts_pass_bulk_that_the_target_does_not_read() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (_link, [mut web]) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let mut session = target.welcome().await;
    web.up().await;
    const BULK_PARTS: u32 = 14;
    const FIT: usize = (limits::BULK_IN_FLIGHT_KIB >> 12) as usize;
    for index in 0..BULK_PARTS {
        web.send(ToLink::Part(part("web", PartKind::Bulk, 1, 0, index, 4 << 20)));
    }
    // The target takes notice of bulk parts, and reads no further: no more come than there is room for.
    let mut unread = Vec::new();
    while unread.len() < FIT {
        unread.push(session.begin_part().await);
    }
    assert!(timeout(Duration::from_millis(200), session.begin_part()).await.is_err(), "more than there is room for");

    web.send(ToLink::Part(part("web", PartKind::Ordered, 1, 1, 0, 1 << 20)));
    web.send(ToLink::Seal(seal("web", 1, 1)));
    assert!(matches!(session.hear().await, Body::SealSet(_)));
    assert_eq!(session.read_part().await.begin.number, 1);

    // What becomes durable makes room for the rest.
    for _ in 0..BULK_PARTS {
        let (begin, reader) = if unread.is_empty() { session.begin_part().await } else { unread.remove(0) };
        assert_eq!(begin.kind(), PartKind::Bulk);
        let durable = PartDurable {
            group: begin.group.clone(),
            phase: begin.phase,
            kind: begin.kind,
            part: begin.part,
            ..PartDurable::default()
        };
        read_rest(begin, reader).await;
        session.say(durable).await;
    }
    let mut sent = Vec::new();
    while sent.len() < BULK_PARTS as usize {
        if let FromLink::PartSent { kind: PartKind::Bulk, part, .. } = web.recv().await {
            sent.push(part);
        }
    }
    assert!(sent.iter().copied().eq(0..BULK_PARTS), "reported in order: {sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_says_so_and_ends_at_once() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (link, [mut web]) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let session = target.welcome().await;
    web.up().await;
    link.stop.send(true).unwrap();
    timeout(PATIENCE, link.task).await.unwrap().unwrap();
    assert!(web.down().await.contains("stopping"));
    let reason = session.connection.closed().await;
    assert!(
        matches!(&reason, quinn::ConnectionError::ApplicationClosed(close)
        if close.error_code == quinn::VarInt::from_u32(CloseCode::Stopping as u32)),
        "{reason:?}"
    );
}
