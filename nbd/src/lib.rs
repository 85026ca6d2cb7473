//! The server side of the Network Block Device protocol, without the disk behind it. The process-server exports
//! protected disks by it, the master-target recovery points.
//!
//! A connection goes through two phases. The first is slow and rare: [`Listener`] accepts, [`negotiate()`] drives the
//! pure [`Handshake`] over the socket, with TLS where it is asked for, and the listener hands over a plain file
//! descriptor ([`Connected`]). The second is the write path: its owner reads requests, checks them by
//! [`Request::parse`] and [`Request::check`], and answers by [`reply`]; that codec does no I/O and reads no clock.
//!
//! What a client sends is never trusted: every length is bounded by [`limits`] before memory is taken for it, and a
//! client that breaks the protocol loses its connection and leaves one log line.
//!
//! The protocol: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. Spoken here: fixed newstyle,
//! structured replies, `base:allocation`. Not spoken: extended headers, oldstyle, selective TLS.
#![forbid(unsafe_code)]

mod connection;
mod errno;
mod export;
mod fields;
pub mod fuzz;
mod handshake;
pub mod limits;
mod listen;
mod negotiate;
mod option_reply;
mod option_request;
pub mod reply;
mod request;
mod transport;
mod unix_socket;
pub mod wire;

pub use connection::{Connected, ConnectionPermit};
pub use errno::Errno;
pub use export::{Export, Exports, ExportsError, NoExport};
pub use handshake::{Agreed, Handshake, HandshakeError, OptionHeader, Step};
pub use listen::{ListenError, Listener};
pub use negotiate::{NegotiateError, Negotiated, negotiate};
pub use reply::{Allocation, Last, Replies};
pub use request::{Command, ProtocolError, Refusal, Request, Session};
pub use transport::{TlsMode, Transport};
