//! Accepts the NBD clients of one address and hands those that negotiated well to the owner of their disk.
//!
//! It is the slow path of a connection: once per client, on the tokio runtime. It ends when it is dropped; connections
//! that were handed over live on.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::config::{HostPort, NbdAddress};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::connection::{Connected, ConnectionPermit, Socket, hand_over};
use super::export::Exports;
use super::limits;
use super::negotiate::{NegotiateError, negotiate};
use super::transport::TlsMode;
use super::unix_socket::UnixSocket;

/// Why an address can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens there.
    #[error("{} is in use by a running process; stop it, or configure another nbd address", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else in the socket's place.
    #[error("{} exists and is not a socket; move it away, or configure another nbd address", path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// Others could write to the disk.
    #[error(
        "nbd address {address} ({ip}) can be reached from other hosts, but has no TLS, so anyone there could write to \
         the disk; use a unix socket or 127.0.0.1, or turn on TLS with client certificates"
    )]
    Exposed {
        /// As configured.
        address: NbdAddress,
        /// What it resolves to.
        ip: IpAddr,
    },
    /// The host has no address.
    #[error("can't find the host of nbd address {address}: {source}; use an IP address of this machine")]
    Resolve {
        /// As configured.
        address: NbdAddress,
        /// From the resolver.
        source: io::Error,
    },
    /// The system refused.
    #[error("can't listen on nbd address {address}: {source}; {}", remedy(address))]
    Bind {
        /// As configured.
        address: NbdAddress,
        /// From the system.
        source: io::Error,
    },
}

fn remedy(address: &NbdAddress) -> &'static str {
    match address {
        NbdAddress::Unix(_) => "its folder must exist and be writable, its path have at most 107 bytes",
        NbdAddress::Tcp(_) => "the host must be an address of this machine, the port be free",
    }
}

/// Time without traffic after which a TCP client is asked whether it still lives.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Pause after an accept that failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound address that doesn't accept yet.
#[derive(Debug)]
pub struct Listener {
    socket: ListeningSocket,
    tls: TlsMode,
    address: NbdAddress,
}

#[derive(Debug)]
enum ListeningSocket {
    Unix(UnixSocket),
    Tcp(TcpListener),
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

/// What the connections of one address share.
struct Shared<F> {
    address: NbdAddress,
    tls: TlsMode,
    exports: Arc<Exports>,
    places: Arc<Semaphore>,
    sink: F,
}

impl Listener {
    /// Binds an address, or says why it can't be served. Without TLS, TCP is refused beyond loopback.
    pub async fn bind(address: &NbdAddress, tls: TlsMode) -> Result<Self, ListenError> {
        let socket = match address {
            NbdAddress::Unix(path) => ListeningSocket::Unix(UnixSocket::bind(path)?),
            NbdAddress::Tcp(at) => ListeningSocket::Tcp(bind_tcp(address, at, &tls).await?),
        };
        let address = match &socket {
            ListeningSocket::Unix(_) => address.clone(),
            ListeningSocket::Tcp(listener) => bound_address(address, listener),
        };
        Ok(Self { socket, tls, address })
    }

    /// Where it listens; the port is the real one.
    pub fn address(&self) -> &NbdAddress {
        &self.address
    }

    /// Accepts and negotiates until it is dropped; gives each client that may transmit to `sink`, which must not block.
    pub async fn serve(self, exports: Arc<Exports>, sink: impl Fn(Connected) + Send + Sync + 'static) {
        let places = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
        let shared = Arc::new(Shared { address: self.address, tls: self.tls, exports, places, sink });
        let mut negotiations = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                Some(_) = negotiations.join_next() => continue,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Err(error) => {
                    warn!(address = %shared.address, %error, "can't accept an NBD client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Ok(_) if negotiations.len() >= limits::NEGOTIATING_MAX => {
                    warn!(address = %shared.address, "an NBD client was turned away: too many are negotiating");
                }
                Ok(Accepted::Unix(stream)) => {
                    let peer = local_peer(&stream);
                    negotiations.spawn(admit(stream, peer, Arc::clone(&shared)));
                }
                Ok(Accepted::Tcp(stream, peer)) => {
                    negotiations.spawn(admit(stream, peer.to_string(), Arc::clone(&shared)));
                }
            }
        }
    }
}

impl ListeningSocket {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            ListeningSocket::Unix(socket) => Ok(Accepted::Unix(socket.listener.accept().await?.0)),
            ListeningSocket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                if let Err(error) = tune(&stream) {
                    debug!(%peer, %error, "an NBD client's TCP connection can't be tuned; it may already be gone");
                }
                Ok(Accepted::Tcp(stream, peer))
            }
        }
    }
}

/// Who is at the other end of a unix socket, for log lines.
fn local_peer(stream: &UnixStream) -> String {
    match stream.peer_cred().ok().and_then(|credentials| credentials.pid()) {
        Some(pid) => format!("process {pid}"),
        None => "a local process".to_owned(),
    }
}

/// Replies leave at once, and a client whose machine died is noticed.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))
}

async fn bind_tcp(address: &NbdAddress, at: &HostPort, tls: &TlsMode) -> Result<TcpListener, ListenError> {
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host((at.host.as_str(), at.port))
        .await
        .map_err(|source| ListenError::Resolve { address: address.clone(), source })?
        .collect();
    if let TlsMode::Off = tls
        && let Some(outside) = resolved.iter().find(|resolved| !resolved.ip().to_canonical().is_loopback())
    {
        return Err(ListenError::Exposed { address: address.clone(), ip: outside.ip() });
    }
    TcpListener::bind(resolved.as_slice())
        .await
        .map_err(|source| ListenError::Bind { address: address.clone(), source })
}

/// The configured address, with the port that the system chose where it was 0.
fn bound_address(configured: &NbdAddress, listener: &TcpListener) -> NbdAddress {
    match (configured, listener.local_addr()) {
        (NbdAddress::Tcp(at), Ok(local)) => NbdAddress::Tcp(HostPort { host: at.host.clone(), port: local.port() }),
        _ => configured.clone(),
    }
}

/// One client from accept to hand-over.
async fn admit<S: Socket, F: Fn(Connected)>(socket: S, peer: String, shared: Arc<Shared<F>>) {
    let address = &shared.address;
    let negotiated = match negotiate(socket, &shared.exports, &shared.tls).await {
        Ok(negotiated) => negotiated,
        Err(NegotiateError::Left) => return debug!(%address, %peer, "an NBD client left before transmission"),
        Err(error @ NegotiateError::Lost(_)) => return info!(%address, %peer, %error, "an NBD client was lost"),
        Err(error) => return warn!(%address, %peer, %error, "an NBD client was turned away"),
    };
    let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else {
        return warn!(%address, %peer, max = limits::CONNECTIONS_MAX, "an NBD client was turned away: too many");
    };
    let export = shared.exports.at(negotiated.export).name.clone();
    match hand_over(negotiated, peer.clone(), ConnectionPermit::new(place)) {
        Ok(connected) => {
            info!(%address, %peer, export, structured = connected.structured, "an NBD client is connected");
            (shared.sink)(connected);
        }
        Err(error) => warn!(%address, %peer, export, %error, "an NBD client could not be handed over"),
    }
}

#[cfg(test)]
mod tests;
