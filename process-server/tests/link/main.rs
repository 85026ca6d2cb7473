//! The link against a fake master-target: a real QUIC server that says and reads only what a test wants.
#![allow(clippy::unwrap_used)]

mod conversation;
mod fake_target;
mod group;
mod priority;
mod trouble;
