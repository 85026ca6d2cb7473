//! The negotiation of one connection as a state machine: options in, answers and the next step out.
//!
//! Pure: [`negotiate`](super::negotiate()) moves the bytes, keeps the time and sets up TLS. Whatever was agreed before
//! TLS is forgotten when it begins, so that nobody on the way can choose for the client.

use super::export::{Exports, NoExport};
use super::limits;
use super::option_reply::OptionReply;
use super::option_request::{InfoRequest, MetaError, MetaRequest};
use super::reply::Replies;
use super::wire::{self, handshake_flag, option, rep};

/// What the server says first: two magic words, and the flags `FIXED_NEWSTYLE` and `NO_ZEROES`.
pub(super) const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\x00\x03";

/// The frame before the data of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// `NBD_OPT_*`, or anything else.
    pub code: u32,
    /// Bytes of data that follow, at most [`limits::OPTION_BYTES_MAX`].
    pub len: u32,
}

impl OptionHeader {
    /// Bytes on the wire.
    pub const BYTES: usize = 16;
}

/// What both sides have agreed on when transmission begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Index in the [`Exports`].
    pub export: usize,
    /// Whether replies are structured.
    pub structured: bool,
    /// Whether `BLOCK_STATUS` may be asked, about `base:allocation`.
    pub meta_base_allocation: bool,
}

/// What follows an option, once its answers are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The next option.
    Continue,
    /// A TLS handshake, then [`Handshake::handle_tls_established`].
    StartTls,
    /// Transmission.
    Enter(Agreed),
    /// The client has said good-bye.
    Leave,
}

/// How a client broke the protocol. Its connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Handshake flags that nobody has offered.
    #[error("it set handshake flags {0:#x} that were not offered")]
    UnknownFlags(u32),
    /// An option doesn't begin as one.
    #[error("it sent {0:#018x} where an NBD option begins; it may not be an NBD client")]
    BadMagic(u64),
    /// An option is too long.
    #[error("it announced an option of {0} bytes, more than {max}", max = limits::OPTION_BYTES_MAX)]
    OptionTooLong(u32),
    /// It negotiates without end.
    #[error("it sent more than {} options", limits::OPTIONS_MAX)]
    TooManyOptions,
    /// A client that didn't accept fixed newstyle used an option that needs it.
    #[error("it used option {0} without having accepted fixed newstyle negotiation")]
    NotFixedNewstyle(u32),
    /// `EXPORT_NAME` allows no error answer.
    #[error("it asked for export {name:?}: {reason}")]
    NoExport {
        /// The name it gave, shortened.
        name: String,
        /// Why there is none.
        reason: NoExport,
    },
    /// `EXPORT_NAME` with a name that can't be one.
    #[error("it asked for an export by a name that is too long or not UTF-8")]
    BadName,
    /// `EXPORT_NAME` before TLS, where TLS is required.
    #[error("it asked for an export without TLS, which this address requires")]
    TlsRequired,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Secrecy {
    NotOffered,
    Required,
    Established,
}

/// The negotiation of one connection.
#[derive(Debug)]
pub struct Handshake<'a> {
    exports: &'a Exports,
    secrecy: Secrecy,
    fixed_newstyle: bool,
    no_zeroes: bool,
    replies: Replies,
    /// The export for which `base:allocation` is selected.
    meta_context_of: Option<usize>,
    options_seen: u32,
}

impl<'a> Handshake<'a> {
    /// A negotiation without TLS.
    pub fn plain(exports: &'a Exports) -> Self {
        Self::new(exports, Secrecy::NotOffered)
    }

    /// A negotiation that reveals nothing before TLS.
    pub fn with_tls(exports: &'a Exports) -> Self {
        Self::new(exports, Secrecy::Required)
    }

    fn new(exports: &'a Exports, secrecy: Secrecy) -> Self {
        Self {
            exports,
            secrecy,
            fixed_newstyle: false,
            no_zeroes: false,
            replies: Replies::Simple,
            meta_context_of: None,
            options_seen: 0,
        }
    }

    /// Takes the client's answer to the greeting.
    pub fn handle_client_flags(&mut self, bytes: [u8; 4]) -> Result<(), HandshakeError> {
        let flags = u32::from_be_bytes(bytes);
        let fixed = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            return Err(HandshakeError::UnknownFlags(flags));
        }
        self.fixed_newstyle = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        Ok(())
    }

    /// Takes the frame of an option; its data may be read if this is `Ok`.
    pub fn handle_option_header(&mut self, bytes: &[u8; OptionHeader::BYTES]) -> Result<OptionHeader, HandshakeError> {
        let word = u128::from_be_bytes(*bytes);
        let (magic, code, len) = ((word >> 64) as u64, (word >> 32) as u32, word as u32);
        if magic != wire::OPTION_MAGIC {
            return Err(HandshakeError::BadMagic(magic));
        }
        if len > limits::OPTION_BYTES_MAX {
            return Err(HandshakeError::OptionTooLong(len));
        }
        self.options_seen += 1;
        if self.options_seen > limits::OPTIONS_MAX {
            return Err(HandshakeError::TooManyOptions);
        }
        Ok(OptionHeader { code, len })
    }

    /// Takes a whole option and appends the answers to `out`.
    pub fn handle_option(&mut self, code: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Step, HandshakeError> {
        if code == option::EXPORT_NAME {
            return self.export_name(data, out);
        }
        if !self.fixed_newstyle {
            return Err(HandshakeError::NotFixedNewstyle(code));
        }
        let reply = &mut OptionReply::new(code, out);
        if code == option::ABORT {
            reply.ack();
            return Ok(Step::Leave);
        }
        if self.secrecy == Secrecy::Required && code != option::STARTTLS {
            reply.error(rep::ERR_TLS_REQD, "this address requires TLS with a client certificate");
            return Ok(Step::Continue);
        }
        match code {
            option::STARTTLS => return Ok(self.start_tls(data, reply)),
            option::GO => return Ok(self.go(data, reply)),
            option::INFO => {
                self.describe(data, reply);
            }
            option::LIST => self.list(data, reply),
            option::STRUCTURED_REPLY => self.structured_reply(data, reply),
            option::LIST_META_CONTEXT => self.list_meta_context(data, reply),
            option::SET_META_CONTEXT => self.set_meta_context(data, reply),
            _ => reply.error(rep::ERR_UNSUP, "this server doesn't know this option"),
        }
        Ok(Step::Continue)
    }

    /// The connection goes on over TLS: everything agreed so far is void.
    pub fn handle_tls_established(&mut self) {
        assert_eq!(self.secrecy, Secrecy::Required, "TLS begins once, where it is required");
        self.secrecy = Secrecy::Established;
        self.replies = Replies::Simple;
        self.meta_context_of = None;
    }

    fn export_name(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<Step, HandshakeError> {
        if self.secrecy == Secrecy::Required {
            return Err(HandshakeError::TlsRequired);
        }
        if data.len() > limits::STRING_BYTES_MAX {
            return Err(HandshakeError::BadName);
        }
        let name = std::str::from_utf8(data).map_err(|_| HandshakeError::BadName)?;
        let index = self.exports.find(name).map_err(|reason| HandshakeError::NoExport { name: shown(name), reason })?;
        let export = self.exports.at(index);
        out.extend_from_slice(&export.size.to_be_bytes());
        out.extend_from_slice(&export.transmission_flags(self.replies).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; wire::EXPORT_NAME_PADDING]);
        }
        Ok(Step::Enter(self.agreed(index)))
    }

    fn start_tls(&self, data: &[u8], reply: &mut OptionReply<'_>) -> Step {
        if self.secrecy == Secrecy::NotOffered {
            reply.error(rep::ERR_POLICY, "this address doesn't use TLS");
        } else if self.secrecy == Secrecy::Established {
            reply.error(rep::ERR_INVALID, "TLS is already in use");
        } else if has_no_data(data, reply) {
            reply.ack();
            return Step::StartTls;
        }
        Step::Continue
    }

    fn go(&self, data: &[u8], reply: &mut OptionReply<'_>) -> Step {
        match self.describe(data, reply) {
            Some(index) => Step::Enter(self.agreed(index)),
            None => Step::Continue,
        }
    }

    /// Answers `INFO` or `GO`; gives the export unless the answer is an error.
    fn describe(&self, data: &[u8], reply: &mut OptionReply<'_>) -> Option<usize> {
        let request = match InfoRequest::parse(data) {
            Ok(request) => request,
            Err(what) => {
                reply.error(rep::ERR_INVALID, &format!("the request is malformed: {what}"));
                return None;
            }
        };
        let index = self.find(request.name, reply)?;
        let export = self.exports.at(index);
        reply.info_export(export.size, export.transmission_flags(self.replies));
        if request.wants_name {
            reply.info_name(export);
        }
        if request.wants_description {
            reply.info_description(export);
        }
        if request.wants_block_size {
            reply.info_block_size(export);
        }
        reply.ack();
        Some(index)
    }

    fn list(&self, data: &[u8], reply: &mut OptionReply<'_>) {
        if has_no_data(data, reply) {
            self.exports.iter().for_each(|export| reply.server(export));
            reply.ack();
        }
    }

    fn structured_reply(&mut self, data: &[u8], reply: &mut OptionReply<'_>) {
        if has_no_data(data, reply) {
            self.replies = Replies::Structured;
            reply.ack();
        }
    }

    fn list_meta_context(&self, data: &[u8], reply: &mut OptionReply<'_>) {
        let Some((_, queries)) = self.meta_request(data, reply) else { return };
        if queries.is_empty() || queries.iter().any(|query| matches!(*query, "base:" | wire::BASE_ALLOCATION)) {
            // The protocol reserves the id here; clients learn it from SET_META_CONTEXT.
            reply.meta_context(0, wire::BASE_ALLOCATION);
        }
        reply.ack();
    }

    fn set_meta_context(&mut self, data: &[u8], reply: &mut OptionReply<'_>) {
        // A request replaces what was selected before, also when it fails.
        self.meta_context_of = None;
        let Some((index, queries)) = self.meta_request(data, reply) else { return };
        if queries.contains(&wire::BASE_ALLOCATION) {
            self.meta_context_of = Some(index);
            reply.meta_context(wire::BASE_ALLOCATION_ID, wire::BASE_ALLOCATION);
        }
        reply.ack();
    }

    fn meta_request<'d>(&self, data: &'d [u8], reply: &mut OptionReply<'_>) -> Option<(usize, Vec<&'d str>)> {
        if self.replies == Replies::Simple {
            reply.error(rep::ERR_INVALID, "metadata contexts need structured replies to be agreed first");
            return None;
        }
        match MetaRequest::parse(data) {
            Ok(request) => Some((self.find(request.name, reply)?, request.queries)),
            Err(MetaError::TooManyQueries) => {
                reply.error(rep::ERR_TOO_BIG, "too many metadata queries");
                None
            }
            Err(MetaError::Malformed(what)) => {
                reply.error(rep::ERR_INVALID, &format!("the request is malformed: {what}"));
                None
            }
        }
    }

    fn find(&self, name: &str, reply: &mut OptionReply<'_>) -> Option<usize> {
        match self.exports.find(name) {
            Ok(index) => Some(index),
            Err(reason) => {
                reply.error(rep::ERR_UNKNOWN, &reason.to_string());
                None
            }
        }
    }

    fn agreed(&self, export: usize) -> Agreed {
        let meta_base_allocation = self.meta_context_of == Some(export);
        Agreed { export, structured: self.replies == Replies::Structured, meta_base_allocation }
    }
}

/// Whether an option that takes no data has none; answers with an error otherwise.
fn has_no_data(data: &[u8], reply: &mut OptionReply<'_>) -> bool {
    if !data.is_empty() {
        reply.error(rep::ERR_INVALID, "this option takes no data");
    }
    data.is_empty()
}

/// As much of a client's name as a log line should carry.
fn shown(name: &str) -> String {
    name[..name.floor_char_boundary(128)].to_owned()
}

#[cfg(test)]
mod tests;
