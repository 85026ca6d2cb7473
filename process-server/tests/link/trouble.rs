//! What the operator and the groups are told when there is no session (M4).

use bytes::Bytes;
use process_server::send::{CompareJob, FromLink, PartJob, ToLink};
use proto::frame::{Bases, Compression, Keep, RawContent, RawExtent};
use proto::limits::PROTOCOL_VERSION;
use proto::replication::{PartBegin, Refused, Welcome};
use proto::tls::TlsPaths;

use crate::fake_target::{FakeTarget, Site};
use crate::group::{data, start};

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_without_listener_is_told_as_a_refusal() {
    let site = Site::new();
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (link, _groups) = start(site.source_tls(), &free, ["web"]);
    assert_says(&link.error().await, &[&free, "refuses", "check the port"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_of_another_authority_is_told_as_its_certificate() {
    let (site, foreign) = (Site::new(), Site::new());
    let target = FakeTarget::start(&foreign.target_tls());
    let (link, _groups) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let accepting = tokio::spawn(async move { target.accept().await });
    assert_says(&link.error().await, &["the certificate of 127.0.0.1", "is not accepted", "authority"]);
    accepting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_another_name_is_told_with_the_name_it_should_have() {
    let site = Site::new();
    // The source's own certificate: of the right authority, with the wrong name.
    let target = FakeTarget::start(&site.source_tls());
    let (link, _groups) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let accepting = tokio::spawn(async move { target.accept().await });
    assert_says(&link.error().await, &["certificate", "is not accepted", "\"mt-1\""]);
    accepting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_this_agent_that_the_target_refuses_is_told_as_such() {
    let (site, foreign) = (Site::new(), Site::new());
    let target = FakeTarget::start(&site.target_tls());
    let tls = TlsPaths { ca: site.source_tls().ca, ..foreign.source_tls() };
    let (link, _groups) = start(tls, &target.address().to_string(), ["web"]);
    let accepting = tokio::spawn(async move { target.accept().await });
    assert_says(&link.error().await, &["does not accept the certificate of this agent"]);
    accepting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_in_the_greeting_is_told_in_the_targets_words_and_tried_again() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (link, [mut web]) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let mut refused = target.accept().await;
    let message = "no group of this master-target belongs to ps-1".to_owned();
    refused.say(Refused { reason: "name".to_owned(), message: message.clone() }).await;
    assert_says(&link.error().await, &["refused this agent (name)", &message]);
    let _session = target.welcome().await;
    web.up().await;
    link.status_when(|status| status.connected && status.last_error.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_and_another_agent_are_told_apart() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (link, _groups) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let mut newer = target.accept().await;
    newer.say(Welcome { version: PROTOCOL_VERSION + 1, name: "mt-1".to_owned(), time_us: 1 }).await;
    assert_says(&link.error().await, &["version 2", "update the older one"]);
    let mut other = target.accept().await;
    other.say(Welcome { version: PROTOCOL_VERSION, name: "mt-2".to_owned(), time_us: 1 }).await;
    link.status_when(|status| status.last_error.as_deref().is_some_and(|error| error.contains("mt-2"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_silent_is_given_up_and_connected_anew() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (link, [mut web]) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    // Its QUIC answers, the agent does not.
    let _silent = target.welcome().await;
    web.up().await;
    assert_says(&web.down().await, &["silent for 1"]);
    assert_says(&link.error().await, &["silent for 1"]);
    let _session = target.welcome().await;
    web.up().await;
}

/// Content at sector 64 that no longer is what its CRC says.
fn damaged() -> RawExtent {
    let mut damaged = data(64, Bytes::from(vec![1; 4096]));
    if let RawContent::Data { crc, .. } = &mut damaged.content {
        *crc ^= 1;
    }
    damaged
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_was_damaged_in_memory_ends_the_session_and_is_named() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (_link, [mut web]) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let _session = target.welcome().await;
    web.up().await;
    let begin = PartBegin { group: "web".to_owned(), phase: 1, number: 4, ..PartBegin::default() };
    web.send(ToLink::Part(PartJob {
        begin,
        extents: vec![damaged()],
        level: Compression::Zstd(1),
        bases: Bases::default(),
        keep: Keep::Nothing,
    }));
    assert_says(&web.down().await, &["part 0 of set 4 of group web", "sector 64", "CRC"]);
    let _next = target.welcome().await;
    web.up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_to_be_compared_that_was_damaged_in_memory_is_named_and_no_digest_of_it_is_sent() {
    let site = Site::new();
    let target = FakeTarget::start(&site.target_tls());
    let (_link, [mut web]) = start(site.source_tls(), &target.address().to_string(), ["web"]);
    let _session = target.welcome().await;
    web.up().await;
    let extents = vec![data(0, Bytes::from(vec![1; 512])), damaged()];
    web.send(ToLink::Compare(CompareJob { group: "web".to_owned(), phase: 1, request: 7, extents }));
    assert_eq!(web.recv().await, FromLink::PartDamaged { number: 0, part: 7 });
    assert_says(&web.down().await, &["disk 0 of group web", "sector 64", "4096 bytes", "CRC"]);
    let _next = target.welcome().await;
    web.up().await;
}
