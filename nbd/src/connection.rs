//! Turns a negotiated connection into a plain file descriptor for the thread that owns the disk.
//!
//! A connection in the clear is handed over as it is. For TLS, the owner gets one end of a socket pair and a task
//! copies between the other end and the TLS stream, so that the write path knows one kind of connection only.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use super::export::Export;
use super::limits::TLS_COPY_BYTES;
use super::negotiate::Negotiated;
use super::reply::Replies;
use super::request::Session;
use super::transport::Transport;

/// A client's place among the connections of its address; dropping the last clone frees it.
#[derive(Debug, Clone)]
pub struct ConnectionPermit {
    _place: Arc<OwnedSemaphorePermit>,
}

impl ConnectionPermit {
    pub(super) fn new(place: OwnedSemaphorePermit) -> Self {
        Self { _place: Arc::new(place) }
    }
}

/// A connection in transmission. Dropping it closes it.
#[derive(Debug)]
pub struct Connected {
    /// A stream socket in non-blocking mode. The next byte in it is the first of a request.
    pub fd: OwnedFd,
    /// Index in the exports of its address.
    pub export: usize,
    /// Whether replies are structured.
    pub structured: bool,
    /// Whether `BLOCK_STATUS` may be asked, about `base:allocation`.
    pub meta_base_allocation: bool,
    /// Who it is, for log lines.
    pub peer: String,
    /// Hold it as long as `fd`.
    pub permit: ConnectionPermit,
}

impl Connected {
    /// The rules for its requests.
    pub fn session(&self, export: &Export) -> Session {
        Session::new(export, Replies::from_structured(self.structured), self.meta_base_allocation)
    }
}

/// A socket that tokio accepted and that can leave it.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn into_fd(self) -> io::Result<OwnedFd>;
}

impl Socket for UnixStream {
    fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(self.into_std()?.into())
    }
}

impl Socket for TcpStream {
    fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(self.into_std()?.into())
    }
}

/// Makes the descriptor to hand over.
pub(super) fn hand_over<S: Socket>(
    negotiated: Negotiated<S>,
    peer: String,
    permit: ConnectionPermit,
) -> io::Result<Connected> {
    let Negotiated { export, structured, meta_base_allocation, stream } = negotiated;
    let fd = match stream {
        Transport::Plain(socket) => socket.into_fd()?,
        Transport::Tls(stream) => bridge(*stream, peer.clone(), permit.clone())?,
    };
    Ok(Connected { fd, export, structured, meta_base_allocation, peer, permit })
}

fn bridge<T>(client: T, peer: String, permit: ConnectionPermit) -> io::Result<OwnedFd>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (owner, near) = StdUnixStream::pair()?;
    owner.set_nonblocking(true)?;
    near.set_nonblocking(true)?;
    let near = UnixStream::from_std(near)?;
    tokio::spawn(async move {
        if let Err(error) = copy_both_ways(client, near).await {
            debug!(%peer, %error, "NBD over TLS: the connection was lost");
        }
        drop(permit);
    });
    Ok(owner.into())
}

/// Copies until the owner closes its end. Whichever way the requests end, those in flight are still answered, and the
/// owner sees the end when the copy drops its side.
async fn copy_both_ways<T: AsyncRead + AsyncWrite>(client: T, near: UnixStream) -> io::Result<()> {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_owner, to_owner) = near.into_split();
    let mut requests = std::pin::pin!(copy(from_client, to_owner));
    let mut replies = std::pin::pin!(copy(from_owner, to_client));
    tokio::select! {
        ended = &mut replies => ended,
        ended = &mut requests => replies.await.and(ended),
    }
}

/// Copies until the end, and passes the end on. It flushes after each piece, because TLS may hold bytes back.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buf = vec![0; TLS_COPY_BYTES];
    loop {
        let len = from.read(&mut buf).await?;
        if len == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buf[..len]).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::UnixStream;
    use tokio::sync::Semaphore;

    use super::{ConnectionPermit, bridge};

    /// The client's end, the owner's end, and the places of which the connection holds the only one.
    fn bridged() -> (DuplexStream, UnixStream, Arc<Semaphore>) {
        let places = Arc::new(Semaphore::new(1));
        let permit = ConnectionPermit::new(Arc::clone(&places).try_acquire_owned().unwrap());
        let (client, server) = duplex(1 << 10);
        let owner = StdUnixStream::from(bridge(server, "a test".to_owned(), permit).unwrap());
        (client, UnixStream::from_std(owner).unwrap(), places)
    }

    #[tokio::test]
    async fn a_client_that_stops_sending_still_gets_its_replies() {
        let (mut client, mut owner, places) = bridged();
        client.write_all(b"request").await.unwrap();
        client.shutdown().await.unwrap();
        let mut request = Vec::new();
        owner.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"request");
        owner.write_all(&[7; 100_000]).await.unwrap_or_else(|error| panic!("{error}"));
        let (mut replies, closing) = (Vec::new(), async { drop(owner) });
        let (read, ()) = tokio::join!(client.read_to_end(&mut replies), closing);
        assert_eq!((read.unwrap(), replies), (100_000, vec![7; 100_000]));
        drop(places.acquire().await.unwrap());
    }

    #[tokio::test]
    async fn an_owner_that_closes_ends_the_connection_of_a_client_that_does_not() {
        let (mut client, owner, places) = bridged();
        assert_eq!(places.available_permits(), 0);
        drop(owner);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        drop(places.acquire().await.unwrap());
    }

    #[tokio::test]
    async fn a_client_that_vanishes_is_seen_by_the_owner_as_the_end() {
        let (client, mut owner, _places) = bridged();
        drop(client);
        assert_eq!(owner.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
