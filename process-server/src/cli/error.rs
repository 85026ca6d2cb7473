//! Why a command failed: each text is the one line that standard error gets.

use std::io;
use std::path::PathBuf;

use proto::config::ConfigError;
use proto::ids::{AgentName, GroupName};
use thiserror::Error;

use nbd::{ExportsError, ListenError};

/// A command failed.
#[derive(Debug, Error)]
pub enum CliError {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The agent can't be reached.
    #[error(transparent)]
    Control(#[from] proto::uds::UdsError),
    /// The agent answered that it can't.
    #[error("{0}")]
    Agent(String),
    /// There is no such group.
    #[error("{}: there is no group \"{group}\"; its groups are listed there as [[group]]", file.display())]
    NoGroup {
        /// As asked for.
        group: String,
        /// The configuration.
        file: PathBuf,
    },
    /// A verification found what the target holds differently.
    #[error("{0}")]
    Differs(String),
    /// The answer can't be written as JSON.
    #[error("the answer can't be written as JSON: {0}")]
    Json(serde_json::Error),
    /// Nobody takes the output.
    #[error("can't write to standard output: {0}")]
    Output(io::Error),
    /// The agent did not start, or ended badly.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// The agent did not start, or ended badly.
#[derive(Debug, Error)]
pub enum RunError {
    /// No threads to be had.
    #[error("can't start worker threads: {0}; check the limits of the agent's user (ulimit -u)")]
    Runtime(io::Error),
    /// No handler for SIGTERM and SIGINT.
    #[error("can't listen for signals: {0}")]
    Signals(io::Error),
    /// The state folder can't be made.
    #[error("state_dir can't be used: {0}")]
    StateDir(blockio::IoError),
    /// The folder of a socket can't be made.
    #[error("{}: can't make this folder for a socket: {source}; make it, or choose another path", path.display())]
    SocketFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificate of the link can't be read.
    #[error("[tls]: {0}")]
    Tls(proto::tls::TlsError),
    /// The certificate of the link belongs to somebody else.
    #[error("{}: is a certificate for {found}, not for {name}; correct `name`, or make one with `master-target pki`", file.display())]
    OwnName {
        /// As configured.
        name: AgentName,
        /// The certificate.
        file: PathBuf,
        /// The names in it.
        found: String,
    },
    /// The link can't be set up.
    #[error("[tls] or network: {0}")]
    Link(#[from] proto::endpoint::EndpointError),
    /// The certificates of the NBD listeners can't be used.
    #[error("[nbd_tls]: {0}")]
    NbdTls(proto::tls::TlsError),
    /// An NBD address can't be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A disk can't be offered.
    #[error(transparent)]
    Exports(#[from] ExportsError),
    /// The control socket can't be served.
    #[error(transparent)]
    Control(#[from] proto::uds::UdsError),
    /// A group can't be started.
    #[error("group {group} can't start: {reason}")]
    Group {
        /// Which.
        group: GroupName,
        /// What its thread said.
        reason: String,
    },
    /// Groups that were told to stop did not end well.
    #[error("not everything was saved: {0}; the next start compares what was written last")]
    Unclean(String),
}
