//! A UDP socket for quinn that keeps to a [`LinkRate`].
//!
//! quinn asks a poller whether the socket is writable before each batch; here that also waits for the bucket. Two
//! connections of one endpoint may both be told so: the second one's batch is then refused as "would block", and it
//! asks again, as quinn's contract for sockets has it.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Instant, Sleep, sleep_until};

use super::LinkRate;

/// A cap that is lifted is noticed after this at the latest, however far the debt of the old one reached.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// The socket below, with the cap.
#[derive(Debug)]
pub(crate) struct CappedSocket {
    below: Arc<dyn AsyncUdpSocket>,
    rate: LinkRate,
}

impl CappedSocket {
    pub(crate) fn new(below: Arc<dyn AsyncUdpSocket>, rate: LinkRate) -> Self {
        Self { below, rate }
    }
}

impl AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let below = Arc::clone(&self.below).create_io_poller();
        Box::pin(Poller { below, rate: self.rate.clone(), waiting: None })
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let send = || self.below.try_send(transmit);
        let sent = self.rate.send(Instant::now(), transmit.contents.len(), send);
        sent.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.below.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.below.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.below.max_transmit_segments().min(self.rate.batch_datagrams_max())
    }

    fn max_receive_segments(&self) -> usize {
        self.below.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.below.may_fragment()
    }
}

/// One for each connection.
#[derive(Debug)]
struct Poller {
    below: Pin<Box<dyn UdpPoller>>,
    rate: LinkRate,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.rate.give_up(Instant::now());
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        loop {
            if let Some(sleep) = &mut self.waiting {
                ready!(sleep.as_mut().poll(cx));
                self.waiting = None;
            }
            match self.rate.check(Instant::now()) {
                Ok(()) => return self.below.as_mut().poll_writable(cx),
                Err(wait) => self.waiting = Some(Box::pin(sleep_until(Instant::now() + wait.min(WAIT_MAX)))),
            }
        }
    }
}
