//! Listening for real: sockets, stale ones, TLS, and what is refused at start.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::sync::Arc;

use proto::config::{HostPort, NbdAddress};

use super::{ListenError, Listener};
use crate::{Connected, Export, Exports, TlsMode};

fn tcp(host: &str) -> NbdAddress {
    NbdAddress::Tcp(HostPort { host: host.to_owned(), port: 0 })
}

#[tokio::test]
async fn tcp_without_tls_is_served_on_loopback_only() {
    for host in ["127.0.0.1", "::1", "localhost", "127.1.2.3"] {
        assert!(Listener::bind(&tcp(host), TlsMode::Off).await.is_ok(), "{host}");
    }
    for host in ["0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1"] {
        let error = Listener::bind(&tcp(host), TlsMode::Off).await.unwrap_err();
        assert!(matches!(error, ListenError::Exposed { .. }), "{host}: {error}");
        assert!(error.to_string().contains("TLS"), "{error}");
    }
}

#[tokio::test]
async fn a_host_that_is_not_there_is_named() {
    let error = Listener::bind(&tcp("no such host"), TlsMode::Off).await.unwrap_err();
    assert!(matches!(error, ListenError::Resolve { .. }));
    assert!(error.to_string().contains("tcp:no such host:0"), "{error}");
}

#[tokio::test]
async fn a_port_chosen_by_the_system_is_told() {
    let listener = Listener::bind(&tcp("127.0.0.1"), TlsMode::Off).await.unwrap();
    assert!(matches!(listener.address(), NbdAddress::Tcp(HostPort { port: 1.., .. })));
}

#[tokio::test]
async fn a_socket_is_its_owners_alone_and_goes_with_its_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let listener = Listener::bind(&NbdAddress::Unix(path.clone()), TlsMode::Off).await.unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn the_socket_of_a_dead_process_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    drop(StdUnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a process that dies leaves its socket behind");
    assert!(Listener::bind(&NbdAddress::Unix(path), TlsMode::Off).await.is_ok());
}

#[tokio::test]
async fn the_socket_of_a_living_process_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let living = StdUnixListener::bind(&path).unwrap();
    let error = Listener::bind(&NbdAddress::Unix(path.clone()), TlsMode::Off).await.unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }));
    drop(living);
    assert!(path.exists());
}

#[tokio::test]
async fn a_file_in_the_sockets_place_is_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    std::fs::write(&path, "precious").unwrap();
    let error = Listener::bind(&NbdAddress::Unix(path.clone()), TlsMode::Off).await.unwrap_err();
    assert!(matches!(error, ListenError::NotASocket { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn a_successors_socket_survives_the_end_of_its_predecessor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let first = Listener::bind(&NbdAddress::Unix(path.clone()), TlsMode::Off).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let _second = Listener::bind(&NbdAddress::Unix(path.clone()), TlsMode::Off).await.unwrap();
    drop(first);
    assert!(path.exists());
}

#[tokio::test]
async fn a_missing_folder_is_told_with_what_to_do() {
    let error = Listener::bind(&NbdAddress::Unix("/nonexistent/dir/nbd.sock".into()), TlsMode::Off).await.unwrap_err();
    assert!(error.to_string().contains("its folder must exist"), "{error}");
    let long = format!("/tmp/{}", "x".repeat(200));
    let error = Listener::bind(&NbdAddress::Unix(long.into()), TlsMode::Off).await.unwrap_err();
    assert!(error.to_string().contains("107 bytes"), "{error}");
}

#[tokio::test]
async fn a_negotiated_client_is_handed_over_and_garbage_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let export = Export {
        name: "web/os".to_owned(),
        size: 1 << 20,
        description: String::new(),
        block_min: 512,
        block_preferred: 4096,
        block_max: 1 << 20,
        read_only: false,
    };
    let exports = Arc::new(Exports::new(vec![export]).unwrap());
    let listener = Listener::bind(&NbdAddress::Unix(path.clone()), TlsMode::Off).await.unwrap();
    let (sender, mut handed_over) = tokio::sync::mpsc::channel(4);
    let server = tokio::spawn(listener.serve(exports, move |connected: Connected| sender.try_send(connected).unwrap()));

    let client_path = path.clone();
    let client = tokio::task::spawn_blocking(move || {
        let mut garbage = StdUnixStream::connect(&client_path).unwrap();
        garbage.write_all(&[b'x'; 64]).unwrap();
        let mut greeting = Vec::new();
        let ended = garbage.read_to_end(&mut greeting);
        assert!(greeting.len() == 18 || ended.is_err(), "the connection is closed after the greeting");
        let mut good = StdUnixStream::connect(&client_path).unwrap();
        good.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0ping").unwrap();
        good
    });
    let connected = handed_over.recv().await.unwrap();
    let _client = client.await.unwrap();
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());

    let mut stream = StdUnixStream::from(connected.fd);
    let mut first = [0; 4];
    stream.set_nonblocking(false).unwrap();
    stream.read_exact(&mut first).unwrap();
    assert_eq!((connected.export, &first), (0, b"ping"), "it lives on, with nothing lost");
    assert!(handed_over.try_recv().is_err());
}
