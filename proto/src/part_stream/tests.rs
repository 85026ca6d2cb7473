//! Part streams as a reader meets them: whole, cut, damaged, and with records where they don't belong.

use bytes::Bytes;
use prost::Message;

use super::*;
use crate::frame::{Compression, Encoder, RawContent, RawExtent};
use crate::ids::DiskIndex;
use crate::limits::RECORD_PAYLOAD_BYTES_MAX;

fn begin() -> PartBegin {
    PartBegin { group: "web".to_owned(), phase: 2, kind: PartKind::Ordered.into(), number: 9, part: 1, marks: 0 }
}

fn begin_record(begin: &PartBegin) -> Vec<u8> {
    Record::encode(RecordKind::PartBegin, begin, &[]).to_vec()
}

fn frame_of(number: u64, part: u32) -> Vec<u8> {
    let bytes = Bytes::from(vec![number as u8; 1024]);
    let content = RawContent::Data { crc: crc32fast::hash(&bytes), bytes };
    let extents = [RawExtent { disk: DiskIndex(0), sector: 4, content }];
    let frame = Encoder::new().encode(number, part, &extents, Compression::Off).unwrap();
    [&frame.head[..], &frame.payload[..]].concat()
}

fn end_record(frames: u32, sectors: u64) -> Vec<u8> {
    Record::encode(RecordKind::PartEnd, &PartEnd { frames, sectors }, &[]).to_vec()
}

fn whole() -> Vec<u8> {
    [begin_record(&begin()), frame_of(9, 1), frame_of(9, 1), end_record(2, 4)].concat()
}

async fn read(bytes: &[u8]) -> Result<Vec<Record>, PartError> {
    let mut reader = PartReader::new(bytes);
    reader.begin().await?;
    let mut frames = Vec::new();
    while let Some(record) = reader.next().await? {
        frames.push(record);
    }
    assert_eq!(reader.end().unwrap().frames as usize, frames.len());
    assert_eq!(reader.wire_bytes(), bytes.len() as u64);
    Ok(frames)
}

#[tokio::test]
async fn a_whole_part_is_read_record_by_record() {
    let frames = read(&whole()).await.unwrap();
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[0].encoded()[..], frame_of(9, 1));
}

#[tokio::test]
async fn a_part_without_frames_is_legal() {
    assert!(read(&[begin_record(&begin()), end_record(0, 0)].concat()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_part_cut_anywhere_is_refused() {
    let bytes = whole();
    for cut in 0..bytes.len() {
        assert!(matches!(read(&bytes[..cut]).await, Err(PartError::Truncated)), "{cut}");
    }
}

#[tokio::test]
async fn a_part_with_any_byte_changed_is_refused() {
    let bytes = whole();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x40;
        assert!(read(&changed).await.is_err(), "{at}");
    }
}

#[tokio::test]
async fn records_out_of_place_are_refused() {
    let first = begin_record(&begin());
    let seal = Record::encode(RecordKind::Seal, &PartEnd::default(), &[]).to_vec();
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("a frame first", vec![frame_of(9, 1)]),
        ("an end first", vec![end_record(0, 0)]),
        ("a second begin", vec![first.clone(), first.clone()]),
        ("a frame of another set", vec![first.clone(), frame_of(8, 1), end_record(1, 2)]),
        ("a frame of another part", vec![first.clone(), frame_of(9, 0), end_record(1, 2)]),
        ("too few frames", vec![first.clone(), frame_of(9, 1), end_record(2, 4)]),
        ("too many frames", vec![first.clone(), frame_of(9, 1), end_record(0, 0)]),
        ("wrong sectors", vec![first.clone(), frame_of(9, 1), end_record(1, 3)]),
        ("a record after the end", vec![first.clone(), end_record(0, 0), end_record(0, 0)]),
        ("a record of the journal", vec![first.clone(), seal]),
        ("a begin with a payload", vec![Record::encode(RecordKind::PartBegin, &begin(), b"x").to_vec()]),
        ("an end with a payload", vec![first, Record::encode(RecordKind::PartEnd, &PartEnd::default(), b"x").to_vec()]),
    ];
    for (case, records) in cases {
        assert!(matches!(read(&records.concat()).await, Err(PartError::Sequence { .. })), "{case}");
    }
}

#[tokio::test]
async fn a_begin_with_illegal_values_is_refused() {
    for illegal in [
        PartBegin { group: "../x".to_owned(), ..begin() },
        PartBegin { number: 0, ..begin() },
        PartBegin { kind: 5, ..begin() },
    ] {
        assert!(matches!(read(&begin_record(&illegal)).await, Err(PartError::Begin(_))));
    }
}

#[tokio::test]
async fn a_declared_length_beyond_the_bound_is_refused_before_the_bytes_come() {
    let mut bytes = begin_record(&begin());
    bytes[12..16].copy_from_slice(&(u32::try_from(RECORD_PAYLOAD_BYTES_MAX).unwrap() + 1).to_le_bytes());
    assert!(matches!(read(&bytes).await, Err(PartError::Record(RecordError::TooLong { .. }))));
}

#[tokio::test]
async fn more_frames_than_a_part_may_have_are_refused() {
    let mut bytes = begin_record(&begin());
    let frame = frame_of(9, 1);
    (0..=PART_FRAMES_MAX).for_each(|_| bytes.extend(&frame));
    let error = read(&bytes).await.unwrap_err().to_string();
    assert!(error.contains("4096 frames"), "{error}");
}

#[tokio::test]
async fn a_read_that_is_given_up_loses_nothing() {
    let bytes = whole();
    let (mut near, far) = tokio::io::duplex(bytes.len());
    let mut reader = PartReader::new(far);
    for piece in bytes[..begin().encoded_len() + 1500].chunks(100) {
        tokio::io::AsyncWriteExt::write_all(&mut near, piece).await.unwrap();
    }
    reader.begin().await.unwrap();
    assert!(reader.next().await.unwrap().is_some());
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), reader.next()).await;
    assert!(waiting.is_err(), "the second frame is not whole yet");
    tokio::io::AsyncWriteExt::write_all(&mut near, &bytes[begin().encoded_len() + 1500..]).await.unwrap();
    drop(near);
    assert!(reader.next().await.unwrap().is_some());
    assert!(reader.next().await.unwrap().is_none());
}

#[test]
fn messages_go_before_ordered_parts_these_before_bulk_and_older_parts_before_newer_ones() {
    let turns = [0, 1, 2, 1000, TURNS, u32::MAX];
    let priorities: Vec<i32> =
        [PartKind::Ordered, PartKind::Bulk].iter().flat_map(|kind| turns.map(|turn| priority(*kind, turn))).collect();
    assert!(priorities.is_sorted_by(|first, second| first >= second), "{priorities:?}");
    assert!(priorities[..5].is_sorted_by(|first, second| first > second), "{priorities:?}");
    assert!(priority(PartKind::Ordered, u32::MAX) > priority(PartKind::Bulk, 0));
    assert!(crate::control_stream::CONTROL_PRIORITY > priority(PartKind::Ordered, 0));
}
