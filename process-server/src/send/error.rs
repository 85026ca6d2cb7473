//! Why there is no session, in words for the log and for `status`.

use std::time::Duration;

use proto::endpoint::{CloseCode, ConnectError};
use proto::ids::AgentName;
use thiserror::Error;

/// Why a session could not begin, or ended. All of them lead to another attempt.
#[derive(Debug, Error)]
pub enum LinkError {
    /// No connection came about, or it ended; the text says what to check.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The target speaks, but does not want this agent.
    #[error("the master-target refused this agent ({reason}): {message}")]
    Refused {
        /// A short code.
        reason: String,
        /// The target's own sentence.
        message: String,
    },
    /// The connection came about, the greeting did not.
    #[error("the master-target accepted the connection but did not answer the greeting within {} s: is it overloaded or stopping?", .0.as_secs())]
    NoWelcome(Duration),
    /// Another agent answers at this address.
    #[error(
        "the agent at this address calls itself {found:?}, not {expected:?}: check [master_target] address and name"
    )]
    WrongName {
        /// As configured.
        expected: AgentName,
        /// As it says.
        found: String,
    },
    /// Another version of the protocol.
    #[error(
        "the master-target speaks version {theirs} of the protocol, this agent version {ours}: update the older one"
    )]
    Version {
        /// Of this agent.
        ours: u32,
        /// Of the target.
        theirs: u32,
    },
    /// Nothing was heard for too long.
    #[error("the master-target was silent for {:.0} s: connecting anew", .0.as_secs_f64())]
    Silent(Duration),
    /// The session ended without a word of the target.
    #[error("the connection to the master-target ended: {0}")]
    Lost(String),
    /// The target broke the rules of the conversation.
    #[error("the master-target sent something unexpected: {0}")]
    Protocol(String),
    /// Content in memory no longer matches its checksum, or cannot be put into frames.
    #[error("part {part} of set {number} of group {group} can't be encoded: {what}; its content will be read again")]
    Content {
        /// Name of the group.
        group: String,
        /// Set number; 0 for bulk.
        number: u64,
        /// Index of the part.
        part: u32,
        /// What the encoder said.
        what: String,
    },
    /// Content that was to be compared no longer matches its checksum in memory.
    #[error(
        "disk {disk} of group {group}, sector {sector}: {bytes} bytes in memory no longer match the CRC they were read \
         with; they will be read again: if this comes back, test the memory of this machine"
    )]
    Damaged {
        /// Name of the group.
        group: String,
        /// Index of the disk.
        disk: u32,
        /// First sector of the extent.
        sector: u64,
        /// Bytes of the extent.
        bytes: usize,
    },
    /// This agent stops.
    #[error("the agent is stopping")]
    Stopping,
}

impl LinkError {
    /// With what code the connection is closed, where it still stands.
    pub(super) fn close_code(&self) -> CloseCode {
        match self {
            Self::Silent(_) | Self::NoWelcome(_) => CloseCode::Silent,
            Self::WrongName { .. } | Self::Version { .. } => CloseCode::Refused,
            Self::Protocol(_) | Self::Content { .. } | Self::Damaged { .. } => CloseCode::Protocol,
            Self::Stopping | Self::Connect(_) | Self::Refused { .. } | Self::Lost(_) => CloseCode::Stopping,
        }
    }
}
