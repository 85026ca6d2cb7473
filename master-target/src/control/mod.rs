//! The control interface: what operators ask of a running agent, as gRPC on its unix socket.
//!
//! `server` answers; `restore_job` runs a restore and tells how far it is. The command line is the client.

mod restore_job;
mod server;

pub use server::ControlServer;
