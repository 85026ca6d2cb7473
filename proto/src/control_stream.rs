//! The control stream: length-prefixed protobuf messages on one bidirectional stream of the connection.
//!
//! ```text
//!  0        4
//!  | length | message (protobuf, `length` bytes) |
//! ```
//!
//! The length is little-endian and at most 1 MiB; it is checked before memory is taken for the message, and the
//! message before it is handed on ([`crate::message`]). What messages mean is for the sessions of the agents.

use std::marker::PhantomData;

use bytes::{BufMut, BytesMut};
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::limits::MESSAGE_BYTES_MAX;
use crate::message::{self, MessageError, WireMessage};
use crate::replication::{SourceMessage, TargetMessage};

const LENGTH_BYTES: usize = 4;

/// Messages overtake content: an acknowledgement must not wait behind a full stream.
pub const CONTROL_PRIORITY: i32 = i32::MAX;

/// Why the control stream ends.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The peer sent what is not a message. The session has to end.
    #[error("the control stream is broken: {0}")]
    Message(#[from] MessageError),
    /// The stream ends inside a message.
    #[error("the control stream ends inside a message")]
    Truncated,
    /// The connection is lost.
    #[error("the control stream is lost: {0}")]
    Io(#[from] std::io::Error),
}

/// The source's end of a control stream. The target sees it when the first message arrives.
pub async fn open(
    connection: &Connection,
) -> Result<(Sender<SourceMessage>, Receiver<TargetMessage>), ConnectionError> {
    let (send, recv) = connection.open_bi().await?;
    Ok((Sender::for_control(send), Receiver::new(recv)))
}

/// The target's end of the control stream that the source opens.
pub async fn accept(
    connection: &Connection,
) -> Result<(Sender<TargetMessage>, Receiver<SourceMessage>), ConnectionError> {
    let (send, recv) = connection.accept_bi().await?;
    Ok((Sender::for_control(send), Receiver::new(recv)))
}

/// Sends messages.
pub struct Sender<M, W = SendStream> {
    stream: W,
    unsent: BytesMut,
    message: PhantomData<fn(M)>,
}

impl<M: WireMessage> Sender<M, SendStream> {
    fn for_control(stream: SendStream) -> Self {
        // Fails only on a closed stream, which the first send reports.
        drop(stream.set_priority(CONTROL_PRIORITY));
        Self::new(stream)
    }

    /// Ends the stream: the peer's receiver then returns `None`.
    pub fn finish(mut self) {
        // Fails only on a stream that is closed already.
        drop(self.stream.finish());
    }
}

impl<M: WireMessage, W: AsyncWrite + Unpin> Sender<M, W> {
    /// A sender over a stream.
    pub fn new(stream: W) -> Self {
        Self { stream, unsent: BytesMut::new(), message: PhantomData }
    }

    /// Sends one message. A send that is dropped half-way is completed by the next one.
    ///
    /// # Panics
    /// If the message is longer than any legal one.
    pub async fn send(&mut self, message: impl Into<M>) -> Result<(), ControlError> {
        let message = message.into();
        let len = message.encoded_len();
        assert!(len <= MESSAGE_BYTES_MAX, "a message of {len} bytes");
        self.unsent.reserve(LENGTH_BYTES + len);
        self.unsent.put_u32_le(u32::try_from(len).expect("bounded above"));
        message.encode_raw(&mut self.unsent);
        self.stream.write_all_buf(&mut self.unsent).await?;
        self.stream.flush().await?;
        Ok(())
    }
}

/// Receives messages.
pub struct Receiver<M, R = RecvStream> {
    stream: R,
    received: BytesMut,
    message: PhantomData<fn() -> M>,
}

impl<M: WireMessage, R: AsyncRead + Unpin> Receiver<M, R> {
    /// A receiver over a stream.
    pub fn new(stream: R) -> Self {
        Self { stream, received: BytesMut::new(), message: PhantomData }
    }

    /// The next message, checked; `None` once the peer has ended the stream between two messages. May be dropped at
    /// any time without losing bytes, so it can stand in a `select!`.
    pub async fn recv(&mut self) -> Result<Option<M>, ControlError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return if self.received.is_empty() { Ok(None) } else { Err(ControlError::Truncated) };
            }
        }
    }

    fn take(&mut self) -> Result<Option<M>, ControlError> {
        let Some(prefix) = self.received.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let len = u32::from_le_bytes(*prefix) as usize;
        if len > MESSAGE_BYTES_MAX {
            return Err(MessageError::TooLong { found: len }.into());
        }
        let whole = LENGTH_BYTES + len;
        if self.received.len() < whole {
            self.received.reserve(whole - self.received.len());
            return Ok(None);
        }
        let bytes = self.received.split_to(whole);
        Ok(Some(message::decode(&bytes[LENGTH_BYTES..])?))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::replication::{BeginBulk, Hello, SealSet};

    fn hello() -> SourceMessage {
        Hello { version: 1, name: "ps-1".to_owned(), time_us: 7 }.into()
    }

    async fn receive(bytes: &[u8]) -> Result<Option<SourceMessage>, ControlError> {
        Receiver::<SourceMessage, _>::new(bytes).recv().await
    }

    #[tokio::test]
    async fn messages_arrive_in_order_through_a_pipe_of_three_bytes() {
        let (near, far) = tokio::io::duplex(3);
        let mut sender = Sender::<SourceMessage, _>::new(near);
        let mut receiver = Receiver::<SourceMessage, _>::new(far);
        let messages: Vec<SourceMessage> = vec![
            hello(),
            BeginBulk { group: "web".to_owned(), phase: 3 }.into(),
            SealSet { group: "web".to_owned(), number: 1, label: "x".repeat(200), ..Default::default() }.into(),
        ];
        let sent = messages.clone();
        let sending = tokio::spawn(async move {
            for message in sent {
                sender.send(message).await.unwrap();
            }
        });
        for message in messages {
            assert_eq!(receiver.recv().await.unwrap(), Some(message));
        }
        sending.await.unwrap();
        assert_eq!(receiver.recv().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_receive_that_is_given_up_loses_nothing() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut receiver = Receiver::<SourceMessage, _>::new(far);
        let mut bytes = Vec::new();
        Sender::<SourceMessage, _>::new(&mut bytes).send(hello()).await.unwrap();
        let (head, tail) = bytes.split_at(5);
        near.write_all(head).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), receiver.recv()).await.is_err());
        near.write_all(tail).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap(), Some(hello()));
    }

    #[tokio::test]
    async fn a_declared_length_beyond_the_bound_is_refused_without_waiting_for_it() {
        for len in [u32::try_from(MESSAGE_BYTES_MAX).unwrap() + 1, u32::MAX] {
            let error = receive(&len.to_le_bytes()).await.unwrap_err();
            assert!(matches!(error, ControlError::Message(MessageError::TooLong { found }) if found == len as usize));
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_message_is_not_a_clean_end() {
        let mut bytes = Vec::new();
        Sender::<SourceMessage, _>::new(&mut bytes).send(hello()).await.unwrap();
        for cut in 1..bytes.len() {
            assert!(matches!(receive(&bytes[..cut]).await, Err(ControlError::Truncated)), "{cut}");
        }
        assert!(matches!(receive(&[]).await, Ok(None)));
    }

    #[tokio::test]
    async fn bytes_that_are_no_message_are_refused() {
        for bytes in [&[0, 0, 0, 0][..], &[3, 0, 0, 0, 0xff, 0xff, 0xff], &[2, 0, 0, 0, 0x0a, 0x00]] {
            assert!(matches!(receive(bytes).await, Err(ControlError::Message(_))), "{bytes:?}");
        }
    }
}
