//! Entry points for fuzzing: pure functions of bytes that must neither panic nor allocate by the bytes' word.
//!
//! Each runs a parser as its caller does, and asserts what a caller may rely on where the parser accepts.

use bytes::Bytes;
use prost::Message;

use crate::frame::Decoder;
use crate::limits::{FRAME_RAW_BYTES_MAX, RECORD_BYTES_MAX};
use crate::message::{self, WireMessage};
use crate::record::{Record, RecordKind};
use crate::replication::{PartBegin, SourceMessage, TargetMessage};

/// Bytes as a record and, where they are one of a frame, its content.
pub fn record(bytes: &[u8]) {
    let shared = Bytes::copy_from_slice(bytes);
    if let Ok((record, len)) = Record::parse(&shared) {
        assert!(len <= bytes.len() && len <= RECORD_BYTES_MAX);
        assert_eq!(record.encoded()[..], bytes[..len]);
        decode(&record);
    }
}

/// A length byte, a frame header of that many bytes and a payload, given right checksums: reaches what lies behind them.
pub fn frame(bytes: &[u8]) {
    let Some((&header_len, rest)) = bytes.split_first() else { return };
    let (header, payload) = rest.split_at(usize::from(header_len).min(rest.len()));
    // An undecodable header can't be encoded as a message; it is what `record` is for.
    let Ok(header) = crate::replication::FrameHeader::decode(header) else { return };
    if header.encoded_len() > 60_000 || payload.len() > FRAME_RAW_BYTES_MAX {
        return;
    }
    if let Ok((record, _)) = Record::parse(&Record::encode(RecordKind::Frame, &header, payload)) {
        decode(&record);
    }
}

fn decode(record: &Record) {
    let Ok(frame) = Decoder::new().decode(record) else { return };
    assert!(frame.raw.len() <= FRAME_RAW_BYTES_MAX);
    let bytes: usize = frame.extents().filter_map(|(_, data)| data).map(|data| data.len()).sum();
    assert_eq!(bytes, frame.raw.len());
}

/// Bytes as each of the messages that a peer sends.
pub fn control_message(bytes: &[u8]) {
    reencodes::<SourceMessage>(bytes);
    reencodes::<TargetMessage>(bytes);
    reencodes::<PartBegin>(bytes);
}

fn reencodes<M: WireMessage>(bytes: &[u8]) {
    if let Ok(message) = message::decode::<M>(bytes) {
        assert_eq!(message::decode::<M>(&message.encode_to_vec()), Ok(message));
    }
}

/// Text as a time.
pub fn timestamp(bytes: &[u8]) {
    if let Ok(Ok(time)) = std::str::from_utf8(bytes).map(str::parse::<crate::time::Timestamp>) {
        assert_eq!(time.to_string().parse(), Ok(time));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Compression, Encoder, RawContent, RawExtent};
    use crate::ids::DiskIndex;

    /// A record, and the same frame as [`frame`] takes it.
    fn seeds() -> [Vec<u8>; 2] {
        let bytes = Bytes::from(vec![7; 8192]);
        let data = RawContent::Data { crc: crc32fast::hash(&bytes), bytes };
        let contents = [data, RawContent::Zero { sectors: 9 }, RawContent::Unreadable { sectors: 1 }];
        let extents = contents.map(|content| RawExtent { disk: DiskIndex(1), sector: 3, content });
        let encoded = Encoder::new().encode(5, 6, &extents, Compression::Zstd(1)).unwrap();
        let header = &encoded.head[24..];
        let len = u8::try_from(header.len()).unwrap();
        let plain = [&[len][..], header, &encoded.payload[..]].concat();
        [[&encoded.head[..], &encoded.payload[..]].concat(), plain]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn valid_bytes_with_some_changed_are_parsed_or_refused_without_a_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut: prop::sample::Index,
            is_cut: bool,
        ) {
            for mut bytes in seeds() {
                for (at, byte) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                if is_cut {
                    bytes.truncate(cut.index(bytes.len()));
                }
                record(&bytes);
                frame(&bytes);
                control_message(&bytes);
                timestamp(&bytes);
            }
        }
    }

    #[test]
    fn the_seeds_reach_the_content() {
        let [whole, plain] = seeds();
        let (parsed, _) = Record::parse(&Bytes::from(whole)).unwrap();
        assert_eq!(Decoder::new().decode(&parsed).unwrap().raw.len(), 8192);
        frame(&plain);
    }
}
