//! QUIC endpoints of both agents: sockets, transport settings, and connecting with errors that say what to check.
//!
//! The link is one connection per pair of agents. Settings follow measurements with quinn on two cores: 4 MiB socket
//! buffers gave 470-630 MiB/s where the defaults lost packets at 400-440; without segmentation offload 165. What
//! travels is the business of [`crate::control_stream`] and [`crate::part_stream`].

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, MtuDiscoveryConfig, Runtime, TokioRuntime, TransportConfig,
    VarInt,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use thiserror::Error;

use crate::config::HostPort;
use crate::congestion::SteadyConfig;
use crate::limits::PARTS_IN_FLIGHT_MAX;
use crate::reset;
use crate::throttle::{CappedSocket, LinkRate};
use crate::tls::{self, TlsError, TlsPaths};

/// Bytes of the kernel's buffers of a UDP socket, each way.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Bytes in flight of a connection: 1.25 Gbit/s x 80 ms are 12 MiB, 10 Gbit/s x 50 ms 60 MiB.
const WINDOW_BYTES: u32 = 64 << 20;
/// Bytes in flight of a stream. Larger ones let losses open too many gaps in one stream's buffer.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// Largest datagram that is tried: where jumbo frames or loopback carry it, packets cost a third of the processor. Ten of
/// them, which is what quinn hands to the kernel at once, still fit the 64 KiB of one call.
const DATAGRAM_BYTES_MAX: u16 = 6500;
/// The target keeps this many handshakes waiting at most.
const INCOMING_MAX: usize = 64;
/// A connection without any packet for this long is lost.
const IDLE_TIME_MAX: Duration = Duration::from_secs(15);
/// Packets that keep the state of firewalls between the agents alive.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// A handshake takes two round trips; more than this means that nobody answers.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the answer "port unreachable" may take, once nothing else came.
const PROBE_TIME_MAX: Duration = Duration::from_millis(500);

const _: () = assert!(10 * DATAGRAM_BYTES_MAX as u32 <= 65_507, "a batch of datagrams fits one call");
const _: () = assert!(STREAM_WINDOW_BYTES < WINDOW_BYTES, "one stream must not fill the connection's window");

/// Settings of the transport that depend on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkOptions {
    /// Hand segments to the kernel in batches (GSO). Some network cards and hypervisors drop such batches.
    pub segmentation_offload: bool,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { segmentation_offload: true }
    }
}

/// Why an endpoint can't be made.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// Certificates or keys are unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The socket can't be bound.
    #[error("can't listen on UDP {address}: {source}; check `listen`, and that no other agent uses the port")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No socket can be made.
    #[error("can't make a UDP socket: {source}")]
    Socket {
        /// Why.
        source: io::Error,
    },
}

/// Why there is no connection, in words for the operator of this agent (M4).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// The address is misspelt.
    #[error("{what}; correct the address in the configuration")]
    Address {
        /// What is wrong with it.
        what: String,
    },
    /// The name can't stand in a certificate.
    #[error("{name:?} can't be a name in a certificate; correct the peer's name in the configuration")]
    Name {
        /// The name.
        name: String,
    },
    /// The host is not known.
    #[error("can't find the address of {address}: {what}; check the host name and the name service")]
    Resolve {
        /// As configured.
        address: String,
        /// What the resolver says.
        what: String,
    },
    /// Nothing listens there.
    #[error("{address} refuses: nothing listens on this UDP port; check the port, and that the peer agent is running")]
    Refused {
        /// As configured.
        address: String,
    },
    /// Nobody answers.
    #[error("no answer from {address} (time-out); check the address, the route or VPN, and that firewalls pass UDP")]
    TimedOut {
        /// As configured.
        address: String,
    },
    /// This agent does not trust the peer.
    #[error(
        "the certificate of {address} is not accepted: {what}; it has to hold the name {name:?}, be in date, and come from the authority in [tls] ca"
    )]
    PeerCertificate {
        /// As configured.
        address: String,
        /// The name that the peer must prove.
        name: String,
        /// What TLS says.
        what: String,
    },
    /// The peer does not trust this agent.
    #[error(
        "{address} does not accept the certificate of this agent: {what}; both have to come from the same authority and be in date"
    )]
    OwnCertificate {
        /// As configured.
        address: String,
        /// What the peer's TLS says.
        what: String,
    },
    /// Something that speaks another protocol or version.
    #[error("{address} does not speak this protocol: {what}; check the port and the versions of both agents")]
    Protocol {
        /// As configured.
        address: String,
        /// What differs.
        what: String,
    },
    /// The peer ended the connection and said why.
    #[error("{address} closed the connection: {reason}")]
    Closed {
        /// As configured.
        address: String,
        /// The peer's words.
        reason: String,
    },
    /// The connection broke.
    #[error("the connection to {address} is lost: {what}")]
    Lost {
        /// As configured.
        address: String,
        /// Why.
        what: String,
    },
}

/// The target's endpoint with default options.
pub fn server(listen: SocketAddr, paths: &TlsPaths) -> Result<Endpoint, EndpointError> {
    server_with(listen, paths, LinkOptions::default())
}

/// The target's endpoint. Has to be called inside a tokio runtime.
pub fn server_with(listen: SocketAddr, paths: &TlsPaths, options: LinkOptions) -> Result<Endpoint, EndpointError> {
    let mut config = tls::server_config(paths)?;
    let mut transport = transport(options);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(1));
    transport.max_concurrent_uni_streams(VarInt::from_u32(PARTS_IN_FLIGHT_MAX));
    config.transport_config(Arc::new(transport)).max_incoming(INCOMING_MAX);
    let socket = bind(listen).map_err(|source| EndpointError::Bind { address: listen, source })?;
    let mut endpoint_config = reset::endpoint_config(tls::private_key(paths)?.secret_der());
    take_large_datagrams(&mut endpoint_config);
    Endpoint::new(endpoint_config, Some(config), socket, Arc::new(TokioRuntime))
        .map_err(|source| EndpointError::Socket { source })
}

/// The source's endpoint with default options and no cap.
pub fn client(paths: &TlsPaths) -> Result<Endpoint, EndpointError> {
    client_with(paths, LinkOptions::default(), LinkRate::unlimited())
}

/// The source's endpoint: any free port, IPv6 and IPv4 where the host has both. All that leaves through it keeps to
/// `rate`. Has to be called inside a tokio runtime.
pub fn client_with(paths: &TlsPaths, options: LinkOptions, rate: LinkRate) -> Result<Endpoint, EndpointError> {
    let mut config = tls::client_config(paths)?;
    let mut transport = transport(options);
    // The target opens no streams.
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0)).max_concurrent_uni_streams(VarInt::from_u32(0));
    config.transport_config(Arc::new(transport));
    let socket = bind((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| bind((Ipv4Addr::UNSPECIFIED, 0).into()));
    let mut endpoint = socket
        .and_then(|socket| {
            let socket = CappedSocket::new(TokioRuntime.wrap_udp_socket(socket)?, rate);
            let runtime = Arc::new(TokioRuntime);
            let mut endpoint_config = EndpointConfig::default();
            take_large_datagrams(&mut endpoint_config);
            Endpoint::new_with_abstract_socket(endpoint_config, None, Arc::new(socket), runtime)
        })
        .map_err(|source| EndpointError::Socket { source })?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// Lets the peer try datagrams as large as this side tries.
fn take_large_datagrams(config: &mut EndpointConfig) {
    config.max_udp_payload_size(DATAGRAM_BYTES_MAX).expect("the largest datagram is one that QUIC allows");
}

fn transport(options: LinkOptions) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut mtu_discovery = MtuDiscoveryConfig::default();
    mtu_discovery.upper_bound(DATAGRAM_BYTES_MAX);
    transport
        .max_idle_timeout(Some(IDLE_TIME_MAX.try_into().expect("seconds fit a QUIC time-out")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(u64::from(WINDOW_BYTES))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        // Without it a stream that was begun is finished first, whatever the priority of those that wait. Parts have
        // priorities that keep them in order all the same.
        .send_fairness(true)
        .congestion_controller_factory(Arc::new(SteadyConfig))
        .mtu_discovery_config(Some(mtu_discovery))
        .datagram_receive_buffer_size(None)
        .enable_segmentation_offload(options.segmentation_offload);
    transport
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    let granted = socket.recv_buffer_size()?;
    if granted < SOCKET_BUFFER_BYTES {
        tracing::info!(
            granted_bytes = granted,
            wanted_bytes = SOCKET_BUFFER_BYTES,
            "the kernel limits UDP buffers; raise net.core.rmem_max and net.core.wmem_max for links over 1 Gbit/s"
        );
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket.into())
}

/// Connects to `address` ("HOST:PORT"), whose certificate must hold `name`.
///
/// The target judges this agent's certificate only after this returns; its refusal comes with the first use of the
/// connection, and [`explain`] puts it into words.
pub async fn connect(endpoint: &Endpoint, address: &str, name: &str) -> Result<Connection, ConnectError> {
    let target: HostPort = address.parse().map_err(|what| ConnectError::Address { what })?;
    let unresolved = |what: String| ConnectError::Resolve { address: address.to_owned(), what };
    let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
    let candidates: Vec<SocketAddr> = found.map_err(|error| unresolved(error.to_string()))?.collect();
    let mut last = unresolved("it has no address".to_owned());
    for candidate in candidates {
        match connect_one(endpoint, candidate, address, name).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_one(
    endpoint: &Endpoint,
    candidate: SocketAddr,
    address: &str,
    name: &str,
) -> Result<Connection, ConnectError> {
    let connecting = endpoint.connect(candidate, name).map_err(|error| match error {
        quinn::ConnectError::InvalidServerName(name) => ConnectError::Name { name },
        other => ConnectError::Lost { address: address.to_owned(), what: other.to_string() },
    })?;
    match tokio::time::timeout(CONNECT_TIME_MAX, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(ConnectionError::TimedOut)) | Err(_) if is_refused(candidate).await => {
            Err(ConnectError::Refused { address: address.to_owned() })
        }
        Ok(Err(error)) => Err(explain(&error, address, name)),
        Err(_) => Err(ConnectError::TimedOut { address: address.to_owned() }),
    }
}

/// Whether the host answers "port unreachable". QUIC itself never learns that: its socket is not connected.
async fn is_refused(candidate: SocketAddr) -> bool {
    let any: SocketAddr = match candidate {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let probe = async {
        let socket = tokio::net::UdpSocket::bind(any).await?;
        socket.connect(candidate).await?;
        // One byte is no QUIC packet: an agent that listens drops it.
        socket.send(&[0]).await?;
        socket.recv(&mut [0]).await
    };
    let answer = tokio::time::timeout(PROBE_TIME_MAX, probe).await;
    matches!(answer, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// First code of QUIC errors that carry a TLS alert in their low byte (RFC 9001, 4.8).
const CRYPTO_ERROR: u64 = 0x100;

/// Puts into words why a connection to `address`, whose name is `name`, ended.
#[must_use]
pub fn explain(error: &ConnectionError, address: &str, name: &str) -> ConnectError {
    let address = address.to_owned();
    let lost = |what: String| ConnectError::Lost { address: address.clone(), what };
    match error {
        ConnectionError::TransportError(cause) => match alert_of(cause.code.into()) {
            // Nothing in common: no version, no protocol name, no cipher.
            Some(70 | 120 | 40) => ConnectError::Protocol { address, what: cause.to_string() },
            Some(_) => ConnectError::PeerCertificate { address, name: name.to_owned(), what: cause.reason.clone() },
            None => lost(cause.to_string()),
        },
        ConnectionError::ConnectionClosed(close) => match alert_of(close.error_code.into()) {
            Some(alert @ (70 | 120)) => ConnectError::Protocol { address, what: alert_text(alert) },
            Some(alert) => ConnectError::OwnCertificate { address, what: alert_text(alert) },
            None => lost(close.to_string()),
        },
        ConnectionError::ApplicationClosed(close) => {
            // The peer's words are printed: they must not carry control characters to a terminal.
            let reason: String = String::from_utf8_lossy(&close.reason).chars().filter(|c| !c.is_control()).collect();
            ConnectError::Closed { address, reason }
        }
        ConnectionError::VersionMismatch => {
            ConnectError::Protocol { address, what: "it speaks no common version of QUIC".to_owned() }
        }
        ConnectionError::TimedOut => ConnectError::TimedOut { address },
        ConnectionError::Reset => lost("the peer has forgotten it, as after a restart".to_owned()),
        ConnectionError::LocallyClosed => lost("this agent closed it".to_owned()),
        ConnectionError::CidsExhausted => lost(error.to_string()),
    }
}

fn alert_of(code: u64) -> Option<u64> {
    code.checked_sub(CRYPTO_ERROR).filter(|alert| *alert < 0x100)
}

fn alert_text(alert: u64) -> String {
    let words = match alert {
        42 => "bad certificate",
        43 => "unsupported certificate",
        44 => "certificate revoked",
        45 => "certificate expired",
        46 => "certificate unknown",
        48 => "unknown authority",
        51 => "signature does not verify",
        70 => "unsupported version",
        116 => "a certificate is required",
        120 => "no common protocol",
        _ => return format!("TLS alert {alert}"),
    };
    format!("{words} (TLS alert {alert})")
}

/// Codes with which an agent closes a connection; the reason beside it is a sentence for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// The agent stops.
    Stopping = 0,
    /// The peer broke the protocol, or content was damaged.
    Protocol = 1,
    /// The peer is not allowed what it asks for.
    Refused = 2,
    /// A newer connection of the same peer takes its place.
    Replaced = 3,
    /// The peer has been silent for too long.
    Silent = 4,
}

/// Closes a connection with a reason that the peer's [`explain`] shows.
pub fn close(connection: &Connection, code: CloseCode, reason: &str) {
    connection.close(VarInt::from_u32(code as u32), reason.as_bytes());
}
