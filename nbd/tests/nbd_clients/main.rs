//! The NBD server side against the clients that will use it: libnbd, QEMU and fio, over unix sockets, TCP and TLS.
//!
//! The disks are memory; what is judged is negotiation, framing, flags, errors and the hand-over of connections.

#![allow(clippy::unwrap_used)]

mod clients;
mod memory_server;
mod plain;
mod tls;
