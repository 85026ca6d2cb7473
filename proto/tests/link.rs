//! The link over a loopback QUIC connection: who may speak, what arrives, and what the operator is told when not.
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proto::control_stream::{self, ControlError};
use proto::endpoint::{self, CloseCode, ConnectError};
use proto::frame::{Compression, Decoder, Encoder, RawContent, RawExtent, split_frames};
use proto::ids::DiskIndex;
use proto::part_stream::{PartError, PartReader, write_part};
use proto::replication::{Hello, PartBegin, PartKind, SetDurable, SourceMessage, TargetMessage, Welcome};
use proto::tls::{TlsPaths, peer_names};
use quinn::{Connection, Endpoint};

struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        proto::pki::generate(folder.path(), "ps-1", "mt-1", &["target.example".to_owned()]).unwrap();
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn of(&self, name: &str) -> TlsPaths {
        TlsPaths {
            ca: self.file("ca.pem"),
            cert: self.file(&format!("{name}.pem")),
            key: self.file(&format!("{name}.key")),
        }
    }
}

fn listen(paths: &TlsPaths) -> (Endpoint, String) {
    let server = endpoint::server(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), paths).unwrap();
    let address = server.local_addr().unwrap().to_string();
    (server, address)
}

/// Both ends of one connection, and the endpoints that keep it.
struct Pair {
    source: Connection,
    target: Connection,
    _endpoints: [Endpoint; 2],
}

async fn pair() -> Pair {
    let keys = Keys::new();
    let (server, address) = listen(&keys.of("mt-1"));
    let client = endpoint::client(&keys.of("ps-1")).unwrap();
    let (source, target) = tokio::join!(endpoint::connect(&client, &address, "mt-1"), async {
        server.accept().await.unwrap().await.unwrap()
    });
    Pair { source: source.unwrap(), target, _endpoints: [server, client] }
}

/// What the target sees of a connection that it doesn't come to trust, and the source is told.
async fn refused(server: Endpoint, client: Endpoint, address: &str, name: &str) -> ConnectError {
    let accepting = tokio::spawn(async move {
        let outcome = server.accept().await.unwrap().await;
        if let Ok(connection) = &outcome {
            connection.closed().await;
        }
        (server, outcome.is_ok())
    });
    let error = match endpoint::connect(&client, address, name).await {
        Err(error) => error,
        // In TLS 1.3 the client is done before the server has judged its certificate.
        Ok(connection) => endpoint::explain(&connection.closed().await, address, name),
    };
    client.close(0_u32.into(), b"");
    let (_server, accepted) = accepting.await.unwrap();
    assert!(!accepted, "the target must not accept: {error}");
    error
}

#[tokio::test]
async fn messages_and_parts_arrive_as_they_were_sent() {
    let pair = pair().await;
    assert_eq!(peer_names(&pair.target), ["ps-1", "target.example"]);
    assert_eq!(peer_names(&pair.source), ["mt-1", "target.example"]);
    let extents: Vec<RawExtent> = (0_u32..300)
        .map(|i| {
            let bytes = Bytes::from(vec![i as u8; 4096 * (1 + i as usize % 70)]);
            let content = RawContent::Data { crc: crc32fast::hash(&bytes), bytes };
            RawExtent { disk: DiskIndex(i % 3), sector: u64::from(i) * 1000, content }
        })
        .collect();
    let source = source_of_one_set(pair.source.clone(), extents.clone());
    let target = target_of_one_set(pair.target.clone());
    let (written, received) = tokio::join!(source, target);
    assert_eq!(received.len(), extents.len());
    assert_eq!(received, extents);
    assert_eq!(written, extents.iter().map(RawExtent::sectors).sum::<u64>());
}

async fn source_of_one_set(connection: Connection, extents: Vec<RawExtent>) -> u64 {
    let (mut messages, mut answers) = control_stream::open(&connection).await.unwrap();
    messages.send(Hello { version: 1, name: "ps-1".to_owned(), time_us: 1 }).await.unwrap();
    let answer: TargetMessage = Welcome { version: 1, name: "mt-1".to_owned(), time_us: 2 }.into();
    assert_eq!(answers.recv().await.unwrap(), Some(answer));
    let begin =
        PartBegin { group: "web".to_owned(), phase: 1, kind: PartKind::Ordered.into(), number: 1, part: 0, marks: 0 };
    let mut encoder = Encoder::new();
    let frames: Vec<_> = split_frames(extents.into_iter())
        .iter()
        .map(|frame| encoder.encode(1, 0, frame, Compression::Zstd(1)).unwrap())
        .collect();
    let mut stream = connection.open_uni().await.unwrap();
    let written = write_part(&mut stream, &begin, frames.into_iter()).await.unwrap();
    let durable: TargetMessage =
        SetDurable { group: "web".to_owned(), phase: 1, number: 1, counter: 5, takes_deltas: false }.into();
    assert_eq!(answers.recv().await.unwrap(), Some(durable));
    messages.finish();
    assert!(answers.recv().await.unwrap().is_none());
    written.sectors
}

async fn target_of_one_set(connection: Connection) -> Vec<RawExtent> {
    let (mut messages, mut received) = control_stream::accept(&connection).await.unwrap();
    let hello: SourceMessage = Hello { version: 1, name: "ps-1".to_owned(), time_us: 1 }.into();
    assert_eq!(received.recv().await.unwrap(), Some(hello));
    messages.send(Welcome { version: 1, name: "mt-1".to_owned(), time_us: 2 }).await.unwrap();
    let mut reader = PartReader::new(connection.accept_uni().await.unwrap());
    assert_eq!(reader.begin().await.unwrap().group, "web");
    let mut decoder = Decoder::new();
    let mut extents = Vec::new();
    while let Some(record) = reader.next().await.unwrap() {
        for (extent, bytes) in decoder.decode(&record).unwrap().extents() {
            let content = RawContent::Data { bytes: bytes.unwrap(), crc: extent.crc };
            extents.push(RawExtent { disk: DiskIndex(extent.disk), sector: extent.sector, content });
        }
    }
    messages
        .send(SetDurable { group: "web".to_owned(), phase: 1, number: 1, counter: 5, takes_deltas: false })
        .await
        .unwrap();
    assert!(received.recv().await.unwrap().is_none());
    messages.finish();
    extents
}

#[tokio::test]
async fn a_part_of_a_lost_connection_is_an_error_and_never_complete() {
    let pair = pair().await;
    let mut stream = pair.source.open_uni().await.unwrap();
    let begin =
        PartBegin { group: "web".to_owned(), phase: 1, kind: PartKind::Bulk.into(), number: 0, part: 7, marks: 0 };
    let mut writer = proto::part_stream::PartWriter::begin(&mut stream, &begin).await.unwrap();
    let bytes = Bytes::from(vec![1; 4096]);
    let content = RawContent::Data { crc: crc32fast::hash(&bytes), bytes };
    let extents = [RawExtent { disk: DiskIndex(0), sector: 0, content }];
    writer.frame(Encoder::new().encode(0, 7, &extents, Compression::Off).unwrap()).await.unwrap();
    let mut reader = PartReader::new(pair.target.accept_uni().await.unwrap());
    assert_eq!(reader.begin().await.unwrap(), begin);
    assert!(reader.next().await.unwrap().is_some());
    endpoint::close(&pair.source, CloseCode::Stopping, "the agent stops");
    assert!(matches!(reader.next().await, Err(PartError::Io(_))));
}

#[tokio::test]
async fn a_reason_for_closing_reaches_the_operator_without_control_characters() {
    let pair = pair().await;
    let (mut messages, mut answers) = control_stream::open(&pair.source).await.unwrap();
    messages.send(Hello { version: 9, name: "ps-1".to_owned(), time_us: 1 }).await.unwrap();
    endpoint::close(&pair.target, CloseCode::Refused, "version 9 is not\x1b[31m known");
    assert!(matches!(answers.recv().await, Err(ControlError::Io(_))));
    let error = endpoint::explain(&pair.source.closed().await, "10.0.0.2:9443", "mt-1");
    assert_eq!(error.to_string(), "10.0.0.2:9443 closed the connection: version 9 is not[31m known");
}

#[tokio::test]
async fn a_target_of_another_authority_is_not_trusted() {
    let (ours, theirs) = (Keys::new(), Keys::new());
    let (server, address) = listen(&theirs.of("mt-1"));
    let client = endpoint::client(&ours.of("ps-1")).unwrap();
    let error = refused(server, client, &address, "mt-1").await;
    assert!(matches!(&error, ConnectError::PeerCertificate { name, .. } if name == "mt-1"), "{error:?}");
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn a_target_without_the_configured_name_is_not_trusted() {
    let keys = Keys::new();
    let (server, address) = listen(&keys.of("mt-1"));
    let error = refused(server, endpoint::client(&keys.of("ps-1")).unwrap(), &address, "mt-2").await;
    assert!(matches!(&error, ConnectError::PeerCertificate { name, .. } if name == "mt-2"), "{error:?}");
}

#[tokio::test]
async fn a_source_of_another_authority_is_refused_and_told_so() {
    let (ours, theirs) = (Keys::new(), Keys::new());
    let (server, address) = listen(&ours.of("mt-1"));
    let foreign = TlsPaths { ca: ours.file("ca.pem"), ..theirs.of("ps-1") };
    let error = refused(server, endpoint::client(&foreign).unwrap(), &address, "mt-1").await;
    assert!(matches!(error, ConnectError::OwnCertificate { .. }), "{error:?}");
}

#[tokio::test]
async fn a_source_without_a_certificate_is_refused() {
    let keys = Keys::new();
    let (server, address) = listen(&keys.of("mt-1"));
    let client = client_of(&keys.file("ca.pem"), proto::tls::ALPN);
    let error = refused(server, client, &address, "mt-1").await;
    assert!(matches!(error, ConnectError::OwnCertificate { .. }), "{error:?}");
}

#[tokio::test]
async fn a_peer_of_another_protocol_is_refused() {
    let keys = Keys::new();
    let (server, address) = listen(&keys.of("mt-1"));
    let error = refused(server, client_of(&keys.file("ca.pem"), b"backhaul/9"), &address, "mt-1").await;
    assert!(matches!(error, ConnectError::Protocol { .. }), "{error:?}");
}

/// A client that trusts the authority but shows no certificate.
fn client_of(ca: &Path, alpn: &[u8]) -> Endpoint {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let mut client = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    client.set_default_client_config(quinn::ClientConfig::new(Arc::new(quic)));
    client
}

#[tokio::test]
async fn a_port_where_nothing_listens_is_told_from_silence() {
    let keys = Keys::new();
    let client = endpoint::client(&keys.of("ps-1")).unwrap();
    // A socket that talks to one peer only keeps the port, but nothing on it listens to anybody else.
    let taken = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    taken.connect((Ipv4Addr::LOCALHOST, 9)).unwrap();
    let closed = taken.local_addr().unwrap().to_string();
    let mute = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let silent = mute.local_addr().unwrap().to_string();
    let (closed_error, silent_error) =
        tokio::join!(endpoint::connect(&client, &closed, "mt-1"), endpoint::connect(&client, &silent, "mt-1"));
    assert_eq!(closed_error.unwrap_err(), ConnectError::Refused { address: closed });
    assert_eq!(silent_error.unwrap_err(), ConnectError::TimedOut { address: silent });
}

#[tokio::test]
async fn addresses_and_names_that_can_not_be_are_refused_in_words() {
    let keys = Keys::new();
    let client = endpoint::client(&keys.of("ps-1")).unwrap();
    assert!(matches!(endpoint::connect(&client, "10.0.0.2", "mt-1").await, Err(ConnectError::Address { .. })));
    assert!(matches!(endpoint::connect(&client, "127.0.0.1:9", "m t").await, Err(ConnectError::Name { .. })));
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let keys = Keys::new();
    let (server, address) = listen(&keys.of("mt-1"));
    let error = endpoint::server(address.parse().unwrap(), &keys.of("mt-1")).unwrap_err().to_string();
    assert!(error.contains(&address) && error.contains("in use"), "{error}");
    drop(server);
}

#[tokio::test]
async fn keys_serve_nbd_over_tls_with_client_certificates() {
    let keys = Keys::new();
    for agent in ["ps-1", "mt-1"] {
        proto::tls::nbd_server_config(&keys.of(agent)).unwrap();
        proto::tls::client_config(&keys.of(agent)).unwrap();
        proto::tls::server_config(&keys.of(agent)).unwrap();
    }
}

#[tokio::test]
async fn a_target_that_was_killed_and_is_back_tells_its_peer_so_at_once() {
    let keys = Keys::new();
    let first_life = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let entered = first_life.enter();
    let (server, address) = listen(&keys.of("mt-1"));
    drop(entered);
    let accepting = server.clone();
    first_life.spawn(async move {
        let _connection = accepting.accept().await.unwrap().await.unwrap();
        std::future::pending::<()>().await;
    });
    let client = endpoint::client(&keys.of("ps-1")).unwrap();
    let connection = endpoint::connect(&client, &address, "mt-1").await.unwrap();
    // As kill -9 does it: nobody says farewell.
    drop(server);
    first_life.shutdown_background();

    let listen: SocketAddr = address.parse().unwrap();
    let second_life = loop {
        match endpoint::server(listen, &keys.of("mt-1")) {
            Ok(server) => break server,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    };
    let (mut stream, _) = connection.open_bi().await.unwrap();
    stream.write_all(&[0x5a; 1000]).await.unwrap();
    let told = tokio::time::timeout(std::time::Duration::from_secs(5), connection.closed()).await;
    assert!(matches!(told, Ok(quinn::ConnectionError::Reset)), "{told:?}");
    drop(second_life);
}
