//! The handshake over a stream: good clients, slow ones, and those that leave.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::{NegotiateError, Negotiated, negotiate, negotiate_within};
use crate::{Export, Exports, HandshakeError, TlsMode, Transport};

fn exports() -> Exports {
    let export = Export {
        name: "web/os".to_owned(),
        size: 1 << 20,
        description: String::new(),
        block_min: 512,
        block_preferred: 4096,
        block_max: 1 << 20,
        read_only: false,
    };
    Exports::new(vec![export]).unwrap()
}

/// Sends all of `bytes`, closes, and gives what came of it.
async fn after(bytes: &[u8]) -> Result<Negotiated<DuplexStream>, NegotiateError> {
    let (mut client, server) = duplex(64 << 10);
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    negotiate(server, &exports(), &TlsMode::Off).await
}

const FLAGS: &[u8] = &[0, 0, 0, 3];
const GO: &[u8] = b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";

#[tokio::test]
async fn requests_sent_right_behind_the_negotiation_are_still_in_the_stream() {
    let negotiated = after(&[FLAGS, GO, b"first request"].concat()).await.unwrap();
    let Transport::Plain(mut stream) = negotiated.stream else { panic!("no TLS was asked for") };
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!((negotiated.export, rest.as_slice()), (0, &b"first request"[..]));
}

#[tokio::test]
async fn a_client_that_only_looks_leaves_in_good_order() {
    let abort = b"IHAVEOPT\0\0\0\x02\0\0\0\0";
    for bytes in [&b""[..], FLAGS, &[FLAGS, b"IHAVEOPT\0\0\0\x03\0\0\0\0"].concat(), &[FLAGS, abort].concat()] {
        assert!(matches!(after(bytes).await, Err(NegotiateError::Left)), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_client_that_stops_inside_an_option_was_lost() {
    let all = [FLAGS, GO].concat();
    for len in (1..all.len()).filter(|len| *len != FLAGS.len()) {
        assert!(matches!(after(&all[..len]).await, Err(NegotiateError::Lost(_))), "cut to {len}");
    }
}

#[tokio::test]
async fn garbage_ends_the_negotiation() {
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[FLAGS, &[0xaa; 40]].concat()] {
        assert!(matches!(after(bytes).await, Err(NegotiateError::Protocol(_))));
    }
    let long = [FLAGS, b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff"].concat();
    assert!(matches!(after(&long).await, Err(NegotiateError::Protocol(HandshakeError::OptionTooLong(u32::MAX)))));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_not_waited_for() {
    let (_client, server) = duplex(64);
    let limit = Duration::from_millis(10);
    let ended = negotiate_within(limit, server, &exports(), &TlsMode::Off).await;
    assert!(matches!(ended, Err(NegotiateError::TimedOut(_))));
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answers_is_not_waited_for() {
    let (mut client, server) = duplex(64 << 10);
    let list = b"IHAVEOPT\0\0\0\x03\0\0\0\0".repeat(1000);
    let limit = Duration::from_millis(50);
    let exports = exports();
    let (sent, ended) = tokio::join!(
        async { client.write_all(&[FLAGS, &list].concat()).await },
        negotiate_within(limit, server, &exports, &TlsMode::Off),
    );
    drop(sent);
    assert!(matches!(ended, Err(NegotiateError::TimedOut(_))));
}
