//! The conversation of the two agents, and everything that both of them say it with.
//!
//! `process-server` (the source) and `master-target` (the target) depend on this crate and not on each other.
//! It holds the protobuf schemas, the layout of the records that travel and are journalled, the bounds of
//! everything a peer may declare, TLS and QUIC, and the local control transport. It knows nothing of disks,
//! sets in progress or journals: it turns bytes into checked values and back. docs/wire-format.md describes
//! the bytes.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod clock;
pub mod config;
pub mod congestion;
pub mod control_stream;
pub mod digest;
pub mod endpoint;
pub mod frame;
pub mod fuzz;
pub mod ids;
pub mod limits;
pub mod message;
pub mod part_stream;
pub mod pki;
pub mod record;
mod reset;
pub mod throttle;
pub mod time;
pub mod tls;
pub mod uds;

/// What source and target say to each other: the messages of `replication.proto`.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod replication {
    tonic::include_proto!("backhaul.replication.v1");
}

/// What operators say to an agent: the messages and services of `control.proto`. Messages serialise to the
/// documented JSON.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod control {
    tonic::include_proto!("backhaul.control.v1");
}
