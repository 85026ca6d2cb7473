//! The cap of a link: how many bits a second may leave this host through one UDP socket.
//!
//! It sits below QUIC, where a datagram is handed to the kernel, so it holds for everything that a connection sends:
//! content, retransmissions, acknowledgements, handshakes and padding. QUIC packs the next datagram only when the last
//! ones have gone, so what has a higher priority never waits behind more than one batch of what has a lower one: a
//! heartbeat is on its way within some 10 ms however deep the backlog is.
//!
//! [`bucket`](self::Bucket) decides, without a clock; [`LinkRate`] is what the agent holds, to set the cap and to show
//! what was sent; `socket` is the wrapper around the UDP socket. What the cap is at this hour is not decided here.

mod bit_rate;
mod bucket;
mod link_rate;
mod socket;

pub use bit_rate::BitRate;
pub use bucket::Bucket;
pub use link_rate::{LinkRate, LinkUse};
pub(crate) use socket::CappedSocket;
