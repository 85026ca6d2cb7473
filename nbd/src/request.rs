//! Requests of the transmission phase: 28 bytes in, a valid request or a refusal out.
//!
//! Pure. Two kinds of wrong: a [`ProtocolError`] means that the position in the stream is lost, so the connection must
//! end; a [`Refusal`] is answered, and the connection goes on after the request's payload is read.

use super::errno::Errno;
use super::export::Export;
use super::limits::PAYLOAD_BYTES_MAX;
use super::reply::Replies;
use super::wire::{self, command, command_flag};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read `length` bytes.
    Read,
    /// Write the `length` bytes that follow the request.
    Write,
    /// Finish what is outstanding and close; there is no reply.
    Disconnect,
    /// Make durable every write that was answered on any connection.
    Flush,
    /// The content isn't needed any more.
    Trim,
    /// Prefetch.
    Cache,
    /// Write zeroes.
    WriteZeroes,
    /// Tell what is allocated.
    BlockStatus,
    /// A command that isn't known; [`Request::check`] refuses it.
    Unknown(u16),
}

/// One request, as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// `NBD_CMD_FLAG_*`.
    pub flags: u16,
    /// What to do.
    pub command: Command,
    /// Chosen by the client; the reply carries it back.
    pub cookie: u64,
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u32,
}

/// The client broke the protocol so that the next request can't be found: close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A request doesn't begin as one.
    #[error("it sent {0:#010x} where an NBD request begins")]
    BadMagic(u32),
    /// A write is too long to be read.
    #[error("it announced a write of {0} bytes, more than {PAYLOAD_BYTES_MAX}")]
    PayloadTooLong(u32),
}

/// A request that must be answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The number for the client.
    pub errno: Errno,
    /// For structured replies, which carry a text.
    pub reason: &'static str,
}

/// What a request is checked against: the export and what was agreed for the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Size of the export in bytes.
    pub size: u64,
    /// Longest read or write in bytes.
    pub block_max: u32,
    /// Refuse what changes data.
    pub read_only: bool,
    /// How replies are framed.
    pub replies: Replies,
    /// Whether `BLOCK_STATUS` may be asked.
    pub meta_base_allocation: bool,
}

impl Session {
    /// The rules for a connection to `export`.
    pub fn new(export: &Export, replies: Replies, meta_base_allocation: bool) -> Self {
        let Export { size, block_max, read_only, .. } = *export;
        Self { size, block_max, read_only, replies, meta_base_allocation }
    }
}

impl Request {
    /// Bytes on the wire, without payload.
    pub const BYTES: usize = 28;

    /// Reads the 28 bytes of a request:
    ///
    /// ```text
    /// 0 magic u32 | 4 flags u16 | 6 command u16 | 8 cookie u64 | 16 offset u64 | 24 length u32
    /// ```
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Result<Self, ProtocolError> {
        let (head, rest) = bytes.split_at(8);
        let (cookie, rest) = rest.split_at(8);
        let (offset, length) = rest.split_at(8);
        let head = be_u64(head);
        let (magic, flags, code) = ((head >> 32) as u32, (head >> 16) as u16, head as u16);
        if magic != wire::REQUEST_MAGIC {
            return Err(ProtocolError::BadMagic(magic));
        }
        let request = Self {
            flags,
            command: Command::from_code(code),
            cookie: be_u64(cookie),
            offset: be_u64(offset),
            length: be_u64(length) as u32,
        };
        if request.payload_bytes() > PAYLOAD_BYTES_MAX {
            return Err(ProtocolError::PayloadTooLong(request.length));
        }
        Ok(request)
    }

    /// Bytes that follow the request on the wire, to be read whether or not the request is refused.
    pub fn payload_bytes(&self) -> u32 {
        if self.command == Command::Write { self.length } else { 0 }
    }

    /// The reply must wait until the data is durable.
    pub fn fua(&self) -> bool {
        self.has(command_flag::FUA)
    }

    /// Zeroes must keep the range allocated.
    pub fn no_hole(&self) -> bool {
        self.has(command_flag::NO_HOLE)
    }

    /// Zeroes must fail with [`Errno::NotSup`] if they would be written one by one.
    pub fn fast_zero(&self) -> bool {
        self.has(command_flag::FAST_ZERO)
    }

    /// A read must be answered in one chunk.
    pub fn dont_fragment(&self) -> bool {
        self.has(command_flag::DF)
    }

    /// A block status must have one descriptor.
    pub fn one_extent(&self) -> bool {
        self.has(command_flag::REQ_ONE)
    }

    /// Whether the request may be carried out. After `Ok` its range lies inside the export, also when it is empty.
    pub fn check(&self, session: &Session) -> Result<(), Refusal> {
        self.check_command(session)?;
        self.check_flags()?;
        self.check_range(session)?;
        self.check_length(session)
    }

    fn check_command(&self, session: &Session) -> Result<(), Refusal> {
        match self.command {
            Command::Unknown(_) => refuse(Errno::Inval, "this server doesn't know this command"),
            Command::Write | Command::Trim | Command::WriteZeroes if session.read_only => {
                refuse(Errno::Perm, "this export is read-only")
            }
            Command::BlockStatus if !session.meta_base_allocation => {
                refuse(Errno::Inval, "no metadata context was negotiated")
            }
            Command::Read if self.dont_fragment() && session.replies == Replies::Simple => {
                refuse(Errno::Inval, "DF needs structured replies")
            }
            _ => Ok(()),
        }
    }

    fn check_flags(&self) -> Result<(), Refusal> {
        // FUA must be accepted on every command, because clients set it on some that write nothing.
        let allowed = command_flag::FUA
            | match self.command {
                Command::Read => command_flag::DF,
                Command::WriteZeroes => command_flag::NO_HOLE | command_flag::FAST_ZERO,
                Command::BlockStatus => command_flag::REQ_ONE,
                _ => 0,
            };
        if self.flags & !allowed == 0 { Ok(()) } else { refuse(Errno::Inval, "a flag doesn't belong to this command") }
    }

    fn check_range(&self, session: &Session) -> Result<(), Refusal> {
        if self.offset.checked_add(u64::from(self.length)).is_some_and(|end| end <= session.size) {
            return Ok(());
        }
        match self.command {
            Command::Disconnect | Command::Flush => Ok(()),
            Command::Write | Command::WriteZeroes => refuse(Errno::NoSpc, "the range ends beyond the export"),
            _ => refuse(Errno::Inval, "the range ends beyond the export"),
        }
    }

    fn check_length(&self, session: &Session) -> Result<(), Refusal> {
        match self.command {
            Command::Read if self.length > session.block_max => {
                let errno = if self.dont_fragment() { Errno::Overflow } else { Errno::Inval };
                refuse(errno, "the read is longer than the advertised maximum block")
            }
            Command::Write if self.length > session.block_max => {
                refuse(Errno::Inval, "the write is longer than the advertised maximum block")
            }
            Command::BlockStatus if self.length == 0 => refuse(Errno::Inval, "the range is empty"),
            Command::Flush if (self.offset, self.length) != (0, 0) => {
                refuse(Errno::Inval, "a flush has no offset and no length")
            }
            _ => Ok(()),
        }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

impl Command {
    fn from_code(code: u16) -> Self {
        match code {
            command::READ => Command::Read,
            command::WRITE => Command::Write,
            command::DISC => Command::Disconnect,
            command::FLUSH => Command::Flush,
            command::TRIM => Command::Trim,
            command::CACHE => Command::Cache,
            command::WRITE_ZEROES => Command::WriteZeroes,
            command::BLOCK_STATUS => Command::BlockStatus,
            other => Command::Unknown(other),
        }
    }
}

fn refuse(errno: Errno, reason: &'static str) -> Result<(), Refusal> {
    Err(Refusal { errno, reason })
}

/// At most 8 big-endian bytes.
fn be_u64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;
