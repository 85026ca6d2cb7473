//! The control interface: what operators ask of a running agent, as gRPC on its unix socket.
//!
//! `server` answers; `restore_job` and `scrub_job` do long work and tell how far they are. The command line is the client.

mod restore_job;
mod scrub_job;
mod server;

pub use server::ControlServer;
