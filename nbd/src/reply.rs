//! Replies of the transmission phase, written into a buffer of the connection.
//!
//! Pure. Data is never copied here: the heads of reads are written, and the payload follows them on the wire from the
//! buffer it was read into.

use super::errno::Errno;
use super::limits::{MESSAGE_BYTES_MAX, STATUS_DESCRIPTORS_MAX};
use super::wire::{self, chunk, status};

/// How replies are framed, agreed for each connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replies {
    /// 16 bytes with an error number; the data of a read follows.
    #[default]
    Simple,
    /// Chunks with lengths. Commands without data may still be answered by [`simple`].
    Structured,
}

impl Replies {
    /// From the flag in [`Connected`](super::Connected) and [`Agreed`](super::Agreed).
    pub fn from_structured(structured: bool) -> Self {
        if structured { Replies::Structured } else { Replies::Simple }
    }
}

/// Whether a chunk ends its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// More chunks follow.
    No,
    /// This is the last one.
    Yes,
}

/// What `base:allocation` says about a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Allocated, may hold anything.
    Data,
    /// Not allocated, reads as zeroes.
    Hole,
    /// Allocated, reads as zeroes.
    Zero,
}

impl Allocation {
    fn bits(self) -> u32 {
        match self {
            Allocation::Data => 0,
            Allocation::Hole => status::HOLE | status::ZERO,
            Allocation::Zero => status::ZERO,
        }
    }
}

/// A simple reply without data: `error` 0 for success, else an [`Errno`] number. In structured sessions it is allowed
/// for every command but reads and block status.
pub fn simple(out: &mut Vec<u8>, cookie: u64, error: u32) {
    out.extend_from_slice(&wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

/// The request is done and has no data to give.
pub fn success(out: &mut Vec<u8>, cookie: u64) {
    simple(out, cookie, 0);
}

/// The request failed: a number, and in structured replies the text too.
pub fn failure(out: &mut Vec<u8>, replies: Replies, cookie: u64, errno: Errno, message: &str) {
    match replies {
        Replies::Simple => simple(out, cookie, errno.number()),
        Replies::Structured => error(out, cookie, errno, message),
    }
}

/// The head of a whole successful read; exactly `length` bytes of data must follow it.
pub fn read_head(out: &mut Vec<u8>, replies: Replies, cookie: u64, offset: u64, length: u32) {
    match (replies, length) {
        (Replies::Simple, _) => success(out, cookie),
        // A chunk of data has at least one byte.
        (Replies::Structured, 0) => none(out, cookie),
        (Replies::Structured, _) => read_ok_structured(out, cookie, offset, length, Last::Yes),
    }
}

/// The head of one piece of a structured read; exactly `length` bytes of data must follow it. With DF there must be
/// only one piece.
pub fn read_ok_structured(out: &mut Vec<u8>, cookie: u64, offset: u64, length: u32, last: Last) {
    assert!((1..=u32::MAX - 8).contains(&length), "a chunk holds 1 byte to 4 GiB, not {length}");
    chunk_head(out, chunk::OFFSET_DATA, cookie, length + 8, last);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// A piece of a structured read that reads as zeroes; not with DF.
pub fn read_hole_structured(out: &mut Vec<u8>, cookie: u64, offset: u64, length: u32, last: Last) {
    assert_ne!(length, 0, "a hole holds at least 1 byte");
    chunk_head(out, chunk::OFFSET_HOLE, cookie, 12, last);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

/// Ends a structured reply without saying more.
pub fn none(out: &mut Vec<u8>, cookie: u64) {
    chunk_head(out, chunk::NONE, cookie, 0, Last::Yes);
}

/// Ends a structured reply with an error for the whole request.
pub fn error(out: &mut Vec<u8>, cookie: u64, errno: Errno, message: &str) {
    let message = bounded(message);
    chunk_head(out, chunk::ERROR, cookie, 6 + u32::from(message.len), Last::Yes);
    message.write(out, errno);
}

/// A structured error for one place of a request; pieces before it stay valid.
pub fn error_at(out: &mut Vec<u8>, cookie: u64, errno: Errno, message: &str, offset: u64, last: Last) {
    let message = bounded(message);
    chunk_head(out, chunk::ERROR_OFFSET, cookie, 14 + u32::from(message.len), last);
    message.write(out, errno);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// The whole answer to a block status request of `length` bytes, from the ranges that follow each other from its
/// offset on. Neighbours that are alike become one descriptor; what reaches beyond `length` is cut, and with
/// `one_extent`, or after 4,096 descriptors, the answer ends early, as the protocol allows. Where nothing is known (no
/// ranges) it says *data*.
pub fn block_status(
    out: &mut Vec<u8>,
    cookie: u64,
    length: u32,
    one_extent: bool,
    ranges: impl IntoIterator<Item = (u64, Allocation)>,
) {
    let start = out.len();
    chunk_head(out, chunk::BLOCK_STATUS, cookie, 0, Last::Yes);
    out.extend_from_slice(&wire::BASE_ALLOCATION_ID.to_be_bytes());
    let count = descriptors(out, length, if one_extent { 1 } else { STATUS_DESCRIPTORS_MAX }, ranges);
    let payload_len = 4 + 8 * count as u32;
    out[start + CHUNK_LENGTH_AT..start + CHUNK_BYTES].copy_from_slice(&payload_len.to_be_bytes());
}

fn descriptors(
    out: &mut Vec<u8>,
    length: u32,
    count_max: usize,
    ranges: impl IntoIterator<Item = (u64, Allocation)>,
) -> usize {
    let mut rest = u64::from(length);
    let mut current: Option<(u64, Allocation)> = None;
    let mut count = 0;
    for (len, allocation) in ranges {
        let len = len.min(rest);
        rest -= len;
        match &mut current {
            _ if len == 0 => {}
            Some((sum, same)) if *same == allocation => *sum += len,
            Some(done) => {
                descriptor(out, *done);
                count += 1;
                if count == count_max {
                    return count;
                }
                *done = (len, allocation);
            }
            None => current = Some((len, allocation)),
        }
        if rest == 0 {
            break;
        }
    }
    descriptor(out, current.unwrap_or((u64::from(length), Allocation::Data)));
    count + 1
}

fn descriptor(out: &mut Vec<u8>, (len, allocation): (u64, Allocation)) {
    // The sum of the lengths is the request's length at most, which has 32 bits.
    out.extend_from_slice(&(len as u32).to_be_bytes());
    out.extend_from_slice(&allocation.bits().to_be_bytes());
}

const CHUNK_LENGTH_AT: usize = 16;
const CHUNK_BYTES: usize = 20;

fn chunk_head(out: &mut Vec<u8>, kind: u16, cookie: u64, payload_len: u32, last: Last) {
    let flags = if last == Last::Yes { chunk::FLAG_DONE } else { 0 };
    out.extend_from_slice(&wire::STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&payload_len.to_be_bytes());
}

struct Message<'a> {
    text: &'a str,
    len: u16,
}

fn bounded(text: &str) -> Message<'_> {
    let text = &text[..text.floor_char_boundary(MESSAGE_BYTES_MAX)];
    Message { text, len: text.len() as u16 }
}

impl Message<'_> {
    fn write(&self, out: &mut Vec<u8>, errno: Errno) {
        out.extend_from_slice(&errno.number().to_be_bytes());
        out.extend_from_slice(&self.len.to_be_bytes());
        out.extend_from_slice(self.text.as_bytes());
    }
}

#[cfg(test)]
mod tests;
