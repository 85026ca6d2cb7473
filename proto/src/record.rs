//! The record: one layout for what travels on a part stream and what the journal keeps.
//!
//! ```text
//!  0       4    5       6        8          12          16           20         24
//!  | magic | kind | version | reserved | header_len | payload_len | payload_crc | header_crc | header | payload |
//! ```
//!
//! Numbers are little-endian. `header_crc` covers bytes 0..20 and the header, `payload_crc` the payload as stored
//! (encoded); both are CRC-32 (IEEE). The header is a protobuf message whose type follows from the kind. This file
//! knows the layout and its checksums, not what headers mean: that is [`crate::frame`] and the journal.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use thiserror::Error;

use crate::limits::{RECORD_BYTES_MAX, RECORD_HEADER_BYTES_MAX, RECORD_PAYLOAD_BYTES_MAX, RECORD_PREFIX_BYTES};

/// First bytes of a record.
pub const MAGIC: u32 = u32::from_le_bytes(*b"BHR1");

/// The only version so far.
pub const VERSION: u8 = 1;

/// What a record is. Values from 16 on stand in journals only and are refused on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// Opens a part stream; header `PartBegin`.
    PartBegin = 1,
    /// Extents and their content; header `FrameHeader`.
    Frame = 2,
    /// Closes a part stream; header `PartEnd`.
    PartEnd = 3,
    /// A set is complete.
    Seal = 16,
    /// Content of the disk from before it was overwritten.
    Undo = 17,
    /// Sets up to this one are on the disk.
    Applied = 18,
    /// A phase was opened or closed.
    Phase = 19,
    /// First record of a segment file.
    SegmentHead = 20,
    /// Progress of a bulk generation.
    BulkMark = 21,
}

impl RecordKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::PartBegin,
            2 => Self::Frame,
            3 => Self::PartEnd,
            16 => Self::Seal,
            17 => Self::Undo,
            18 => Self::Applied,
            19 => Self::Phase,
            20 => Self::SegmentHead,
            21 => Self::BulkMark,
            _ => return None,
        })
    }

    /// True for what a peer may send.
    #[must_use]
    pub fn is_wire(self) -> bool {
        (self as u8) < 16
    }
}

/// Why bytes are not a record. Who reads adds where the bytes stand.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    /// The bytes end inside the record.
    #[error("a record is cut short: it needs {needed} bytes, {have} are there")]
    Truncated {
        /// Bytes that the record takes, as far as is known.
        needed: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// No record begins here.
    #[error("no record begins here: the magic is {found:#010x} instead of \"BHR1\"")]
    Magic {
        /// The four bytes, as a little-endian number.
        found: u32,
    },
    /// Made by another version.
    #[error("a record has version {found}, this agent knows version 1: run the version that wrote it, or a later one")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// Not a kind of this version.
    #[error("a record has the unknown kind {found}")]
    Kind {
        /// The kind byte.
        found: u8,
    },
    /// Bytes that have to be zero are not.
    #[error("a record has reserved bytes that are not zero")]
    Reserved,
    /// Declares more than is legal; nothing was allocated for it.
    #[error("a record declares {field} of {declared} bytes, {max} are allowed")]
    TooLong {
        /// "a header" or "a payload".
        field: &'static str,
        /// What it declares.
        declared: u32,
        /// What is allowed.
        max: usize,
    },
    /// Prefix or header were changed on their way.
    #[error("the header of a record is damaged: its CRC is {found:#010x} instead of {expected:#010x}")]
    HeaderCrc {
        /// As the record says.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// The payload was changed on its way.
    #[error("the payload of a record is damaged: its CRC is {found:#010x} instead of {expected:#010x}")]
    PayloadCrc {
        /// As the record says.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// The header is not the protobuf message that belongs to the kind.
    #[error("the header of a {kind:?} record can't be decoded: {what}")]
    Header {
        /// Kind of the record.
        kind: RecordKind,
        /// What prost says.
        what: String,
    },
}

/// The fixed first 24 bytes of a record, with lengths within their bounds. Neither CRC is checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// What the record is.
    pub kind: RecordKind,
    /// Bytes of the header.
    pub header_len: u32,
    /// Bytes of the payload.
    pub payload_len: u32,
    /// CRC-32 of the payload.
    pub payload_crc: u32,
    /// CRC-32 of bytes 0..20 and the header.
    pub header_crc: u32,
}

impl Prefix {
    /// Reads a prefix and checks its bounds, before anything is allocated by its word.
    pub fn parse(bytes: &[u8; RECORD_PREFIX_BYTES]) -> Result<Prefix, RecordError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if word(0) != MAGIC {
            return Err(RecordError::Magic { found: word(0) });
        }
        if bytes[5] != VERSION {
            return Err(RecordError::Version { found: bytes[5] });
        }
        let kind = RecordKind::from_byte(bytes[4]).ok_or(RecordError::Kind { found: bytes[4] })?;
        if bytes[6..8] != [0, 0] {
            return Err(RecordError::Reserved);
        }
        let header_len = bounded("a header", word(8), RECORD_HEADER_BYTES_MAX)?;
        let payload_len = bounded("a payload", word(12), RECORD_PAYLOAD_BYTES_MAX)?;
        Ok(Prefix { kind, header_len, payload_len, payload_crc: word(16), header_crc: word(20) })
    }

    /// Bytes of the whole record, at most [`RECORD_BYTES_MAX`].
    #[must_use]
    pub fn record_len(&self) -> usize {
        RECORD_PREFIX_BYTES + self.header_len as usize + self.payload_len as usize
    }
}

fn bounded(field: &'static str, declared: u32, max: usize) -> Result<u32, RecordError> {
    if declared as usize > max { Err(RecordError::TooLong { field, declared, max }) } else { Ok(declared) }
}

/// A record whose checksums are right. Header and payload share the memory they were parsed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// The protobuf header, still encoded.
    pub header: Bytes,
    /// The payload as it travels.
    pub payload: Bytes,
    encoded: Bytes,
}

impl Record {
    /// Prefix and header of a record with this payload; the payload follows them.
    ///
    /// # Panics
    /// If header or payload are longer than their bound: who encodes has split them before.
    #[must_use]
    pub fn encode_head(kind: RecordKind, header: &impl Message, payload: &[u8]) -> Bytes {
        Self::encode_head_summed(kind, header, payload, crc32fast::hash(payload))
    }

    /// The same of a payload whose CRC was just computed over this very memory.
    ///
    /// # Panics
    /// As [`Record::encode_head`].
    pub(crate) fn encode_head_summed(kind: RecordKind, header: &impl Message, payload: &[u8], crc: u32) -> Bytes {
        let header_len = header.encoded_len();
        assert!(header_len <= RECORD_HEADER_BYTES_MAX, "{kind:?} header of {header_len} bytes");
        assert!(payload.len() <= RECORD_PAYLOAD_BYTES_MAX, "{kind:?} payload of {} bytes", payload.len());
        let mut head = BytesMut::with_capacity(RECORD_PREFIX_BYTES + header_len);
        head.put_u32_le(MAGIC);
        head.put_u8(kind as u8);
        head.put_u8(VERSION);
        head.put_u16_le(0);
        head.put_u32_le(u32::try_from(header_len).expect("bounded above"));
        head.put_u32_le(u32::try_from(payload.len()).expect("bounded above"));
        head.put_u32_le(crc);
        head.put_u32_le(0);
        header.encode_raw(&mut head);
        let crc = header_crc(&head);
        head[20..24].copy_from_slice(&crc.to_le_bytes());
        head.freeze()
    }

    /// A whole record in one piece, for records that are small or written to files.
    ///
    /// # Panics
    /// As [`Record::encode_head`].
    #[must_use]
    pub fn encode(kind: RecordKind, header: &impl Message, payload: &[u8]) -> Bytes {
        let head = Self::encode_head(kind, header, payload);
        if payload.is_empty() {
            return head;
        }
        let mut whole = BytesMut::with_capacity(head.len() + payload.len());
        whole.put_slice(&head);
        whole.put_slice(payload);
        whole.freeze()
    }

    /// The record at the beginning of `bytes`, and how many bytes it takes. Verifies both CRCs; copies nothing.
    pub fn parse(bytes: &Bytes) -> Result<(Record, usize), RecordError> {
        let truncated = |needed| RecordError::Truncated { needed, have: bytes.len() };
        let fixed = bytes.first_chunk::<RECORD_PREFIX_BYTES>().ok_or(truncated(RECORD_PREFIX_BYTES))?;
        let prefix = Prefix::parse(fixed)?;
        let record_len = prefix.record_len();
        debug_assert!(record_len <= RECORD_BYTES_MAX);
        if bytes.len() < record_len {
            return Err(truncated(record_len));
        }
        let payload_at = RECORD_PREFIX_BYTES + prefix.header_len as usize;
        let found = header_crc(&bytes[..payload_at]);
        if found != prefix.header_crc {
            return Err(RecordError::HeaderCrc { expected: prefix.header_crc, found });
        }
        let found = crc32fast::hash(&bytes[payload_at..record_len]);
        if found != prefix.payload_crc {
            return Err(RecordError::PayloadCrc { expected: prefix.payload_crc, found });
        }
        let record = Record {
            kind: prefix.kind,
            header: bytes.slice(RECORD_PREFIX_BYTES..payload_at),
            payload: bytes.slice(payload_at..record_len),
            encoded: bytes.slice(..record_len),
        };
        Ok((record, record_len))
    }

    /// The record as it was read, prefix included: what a journal appends.
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The CRC of the payload, which was found right when the record was parsed; none if the payload is no longer what
    /// was parsed.
    pub(crate) fn payload_crc(&self) -> Option<u32> {
        let parsed = &self.encoded[RECORD_PREFIX_BYTES + self.header.len()..];
        let is_same = std::ptr::eq(parsed, &self.payload[..]);
        let fixed = self.encoded.first_chunk::<RECORD_PREFIX_BYTES>()?;
        is_same.then(|| u32::from_le_bytes(*fixed[16..20].first_chunk().expect("four bytes")))
    }

    /// The header as the message that belongs to the record's kind.
    pub fn header_as<M: Message + Default>(&self) -> Result<M, RecordError> {
        M::decode(&self.header[..]).map_err(|error| RecordError::Header { kind: self.kind, what: error.to_string() })
    }
}

/// CRC-32 of bytes 0..20 and of the header, which begins at 24.
fn header_crc(head: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head[..20]);
    hasher.update(&head[RECORD_PREFIX_BYTES..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::replication::PartEnd;

    fn end() -> PartEnd {
        PartEnd { frames: 3, sectors: 70_000 }
    }

    fn prefix_of(bytes: &Bytes) -> [u8; 24] {
        *bytes.first_chunk().unwrap()
    }

    fn with(at: usize, value: &[u8]) -> [u8; 24] {
        let mut prefix = prefix_of(&Record::encode(RecordKind::Frame, &end(), b"abc"));
        prefix[at..at + value.len()].copy_from_slice(value);
        prefix
    }

    #[test]
    fn a_record_stands_in_memory_byte_by_byte_as_documented() {
        let bytes = Record::encode(RecordKind::PartEnd, &PartEnd { frames: 1, sectors: 2 }, b"hi");
        let header = [8, 1, 16, 2];
        let mut expected = b"BHR1\x03\x01\0\0\x04\0\0\0\x02\0\0\0".to_vec();
        expected.extend(crc32fast::hash(b"hi").to_le_bytes());
        let crc = crc32fast::hash(&[&expected[..], &header].concat());
        expected.extend(crc.to_le_bytes());
        expected.extend(header);
        expected.extend(b"hi");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_record_reads_back_with_what_follows_left_alone() {
        let whole = Record::encode(RecordKind::PartEnd, &end(), b"payload");
        let bytes = Bytes::from([&whole[..], b"next"].concat());
        let (record, len) = Record::parse(&bytes).unwrap();
        assert_eq!((record.kind, len), (RecordKind::PartEnd, whole.len()));
        assert_eq!(record.header_as::<PartEnd>().unwrap(), end());
        assert_eq!(&record.payload[..], b"payload");
        assert_eq!(record.encoded(), &whole);
    }

    #[test]
    fn lengths_beyond_their_bounds_are_refused_by_the_prefix_alone() {
        let too_long = |field, declared, max| Err(RecordError::TooLong { field, declared, max });
        let header = u32::try_from(RECORD_HEADER_BYTES_MAX).unwrap() + 1;
        assert_eq!(Prefix::parse(&with(8, &header.to_le_bytes())), too_long("a header", header, header as usize - 1));
        for payload in [u32::try_from(RECORD_PAYLOAD_BYTES_MAX).unwrap() + 1, u32::MAX] {
            let expected = too_long("a payload", payload, RECORD_PAYLOAD_BYTES_MAX);
            assert_eq!(Prefix::parse(&with(12, &payload.to_le_bytes())), expected);
        }
    }

    #[test]
    fn other_magic_version_kind_and_reserved_bytes_are_refused() {
        assert!(matches!(Prefix::parse(&with(0, b"X")), Err(RecordError::Magic { .. })));
        assert_eq!(Prefix::parse(&with(5, &[2])), Err(RecordError::Version { found: 2 }));
        for kind in [0, 4, 15, 22, 255] {
            assert_eq!(Prefix::parse(&with(4, &[kind])), Err(RecordError::Kind { found: kind }));
        }
        assert_eq!(Prefix::parse(&with(6, &[0, 1])), Err(RecordError::Reserved));
    }

    #[test]
    fn kinds_of_the_journal_are_not_kinds_of_the_wire() {
        for byte in 0..=255 {
            if let Some(kind) = RecordKind::from_byte(byte) {
                assert_eq!(kind as u8, byte);
                assert_eq!(kind.is_wire(), byte < 16);
            }
        }
    }

    proptest! {
        #[test]
        fn any_payload_round_trips(payload in proptest::collection::vec(any::<u8>(), 0..4096), frames: u32, sectors: u64) {
            let header = PartEnd { frames, sectors };
            let bytes = Record::encode(RecordKind::Frame, &header, &payload);
            let (record, len) = Record::parse(&bytes).unwrap();
            prop_assert_eq!(len, bytes.len());
            prop_assert_eq!(record.header_as::<PartEnd>().unwrap(), header);
            prop_assert_eq!(&record.payload[..], &payload[..]);
        }

        #[test]
        fn a_record_cut_anywhere_says_that_it_is_truncated(payload in proptest::collection::vec(any::<u8>(), 0..64), cut: prop::sample::Index) {
            let bytes = Record::encode(RecordKind::Frame, &end(), &payload);
            let have = cut.index(bytes.len());
            let result = Record::parse(&bytes.slice(..have));
            let cut_short = matches!(result, Err(RecordError::Truncated { needed, have: h }) if needed > have && h == have);
            prop_assert!(cut_short);
        }

        #[test]
        fn any_bytes_are_parsed_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::parse(&Bytes::from(bytes));
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let bytes = Record::encode(RecordKind::Frame, &end(), b"some payload");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::parse(&Bytes::from(flipped)).is_err(), "bit {bit}");
        }
    }
}
