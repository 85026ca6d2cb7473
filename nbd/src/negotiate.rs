//! Drives the [`Handshake`] of one connection over its socket: reads options, writes answers, starts TLS, keeps time.
//!
//! It reads exactly what belongs to the negotiation, never more: what follows is still in the socket when transmission
//! begins, and nothing that was sent in the clear can be taken for something that came over TLS.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::export::Exports;
use super::handshake::{Agreed, GREETING, Handshake, HandshakeError, OptionHeader, Step};
use super::limits::NEGOTIATION_TIME_MAX;
use super::transport::{TlsMode, Transport};

/// A connection that is ready for transmission.
#[derive(Debug)]
pub struct Negotiated<S> {
    /// Index in the [`Exports`].
    pub export: usize,
    /// Whether replies are structured.
    pub structured: bool,
    /// Whether `BLOCK_STATUS` may be asked, about `base:allocation`.
    pub meta_base_allocation: bool,
    /// The next byte in it is the first of a request.
    pub stream: Transport<S>,
}

/// Why a connection didn't get as far as transmission.
#[derive(Debug, thiserror::Error)]
pub enum NegotiateError {
    /// The client went away between two options, as clients do that only list or probe.
    #[error("it left before transmission")]
    Left,
    /// The connection broke.
    #[error("the connection was lost during negotiation: {0}")]
    Lost(#[source] io::Error),
    /// The client broke the protocol.
    #[error(transparent)]
    Protocol(#[from] HandshakeError),
    /// No TLS, or no certificate of the right authority.
    #[error("the TLS handshake failed: {0}; the client needs a certificate of the configured authority")]
    Tls(#[source] io::Error),
    /// The client was too slow.
    #[error("it did not finish the negotiation within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
}

/// Negotiates with a client that has just connected, within [`NEGOTIATION_TIME_MAX`].
pub async fn negotiate<S>(stream: S, exports: &Exports, tls: &TlsMode) -> Result<Negotiated<S>, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    negotiate_within(NEGOTIATION_TIME_MAX, stream, exports, tls).await
}

async fn negotiate_within<S>(
    limit: Duration,
    stream: S,
    exports: &Exports,
    tls: &TlsMode,
) -> Result<Negotiated<S>, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (agreed, stream) = tokio::time::timeout(limit, converse(stream, exports, tls))
        .await
        .map_err(|_| NegotiateError::TimedOut(limit))??;
    let Agreed { export, structured, meta_base_allocation } = agreed;
    Ok(Negotiated { export, structured, meta_base_allocation, stream })
}

async fn converse<S>(stream: S, exports: &Exports, tls: &TlsMode) -> Result<(Agreed, Transport<S>), NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut handshake = match tls {
        TlsMode::Off => Handshake::plain(exports),
        TlsMode::Required(_) => Handshake::with_tls(exports),
    };
    let mut stream = Transport::Plain(stream);
    send(&mut stream, &GREETING).await?;
    let mut flags = [0; 4];
    read_or_left(&mut stream, &mut flags).await?;
    handshake.handle_client_flags(flags)?;
    let (mut data, mut answers) = (Vec::new(), Vec::new());
    loop {
        let header = read_option(&mut stream, &mut handshake, &mut data).await?;
        answers.clear();
        let step = handshake.handle_option(header.code, &data, &mut answers)?;
        let sent = send(&mut stream, &answers).await;
        match step {
            // A client may close without waiting for the answer to its good-bye.
            Step::Leave => return Err(NegotiateError::Left),
            Step::Continue => sent?,
            Step::Enter(agreed) => {
                sent?;
                return Ok((agreed, stream));
            }
            Step::StartTls => {
                sent?;
                stream = stream.start_tls(tls).await.map_err(NegotiateError::Tls)?;
                handshake.handle_tls_established();
            }
        }
    }
}

/// The next option; its data replaces what `data` held, after its length was checked.
async fn read_option<S: AsyncRead + Unpin>(
    stream: &mut S,
    handshake: &mut Handshake<'_>,
    data: &mut Vec<u8>,
) -> Result<OptionHeader, NegotiateError> {
    let mut header = [0; OptionHeader::BYTES];
    read_or_left(stream, &mut header).await?;
    let header = handshake.handle_option_header(&header)?;
    data.clear();
    data.resize(header.len as usize, 0);
    stream.read_exact(data).await.map_err(NegotiateError::Lost)?;
    Ok(header)
}

/// Fills `buf`; the end of the stream before its first byte means that the client left in good order.
async fn read_or_left<S: AsyncRead + Unpin>(stream: &mut S, buf: &mut [u8]) -> Result<(), NegotiateError> {
    let first = stream.read(buf).await.map_err(NegotiateError::Lost)?;
    if first == 0 {
        return Err(NegotiateError::Left);
    }
    stream.read_exact(&mut buf[first..]).await.map_err(NegotiateError::Lost)?;
    Ok(())
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), NegotiateError> {
    stream.write_all(bytes).await.map_err(NegotiateError::Lost)?;
    stream.flush().await.map_err(NegotiateError::Lost)
}

#[cfg(test)]
mod tests;
