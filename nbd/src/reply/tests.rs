//! Replies byte by byte, against the numbers of the protocol.

use super::{Allocation, Last, Replies};
use crate::Errno;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};

/// A decoder of structured chunks, written from the protocol's document: (flags, type, cookie, payload).
fn chunks(mut bytes: &[u8]) -> Vec<(u16, u16, u64, Vec<u8>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[..4], [0x66, 0x8e, 0x33, 0xef]);
        let flags = u16::from_be_bytes(bytes[4..6].try_into().unwrap());
        let kind = u16::from_be_bytes(bytes[6..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(bytes[8..16].try_into().unwrap());
        let len = u32::from_be_bytes(bytes[16..20].try_into().unwrap()) as usize;
        all.push((flags, kind, cookie, bytes[20..20 + len].to_vec()));
        bytes = &bytes[20 + len..];
    }
    all
}

fn status(length: u32, one: bool, ranges: &[(u64, Allocation)]) -> Vec<(u32, u32)> {
    let mut out = b"before".to_vec();
    super::block_status(&mut out, 9, length, one, ranges.iter().copied());
    let chunks = chunks(&out[6..]);
    let [(1, 5, 9, payload)] = chunks.as_slice() else { panic!("{chunks:?}") };
    assert_eq!(payload[..4], [0, 0, 0, 1]);
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    payload[4..].chunks_exact(8).map(|pair| (number(&pair[..4]), number(&pair[4..]))).collect()
}

#[test]
fn a_simple_reply_is_magic_error_and_cookie() {
    let mut out = Vec::new();
    super::simple(&mut out, 0x0102_0304_0506_0708, 28);
    assert_eq!(out, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn the_head_of_a_read_depends_on_what_was_agreed() {
    let mut out = Vec::new();
    super::read_head(&mut out, Replies::Simple, 7, 4096, 3);
    assert_eq!(out.len(), 16);
    out.clear();
    super::read_head(&mut out, Replies::Structured, 7, 4096, 3);
    out.extend_from_slice(b"abc");
    assert_eq!(chunks(&out), [(1, 1, 7, [4096u64.to_be_bytes().as_slice(), b"abc"].concat())]);
}

#[test]
fn an_empty_structured_read_has_no_data_chunk() {
    let mut out = Vec::new();
    super::read_head(&mut out, Replies::Structured, 7, 4096, 0);
    assert_eq!(chunks(&out), [(1, 0, 7, vec![])]);
}

#[test]
fn a_read_in_pieces_ends_with_the_last_one_only() {
    let mut out = Vec::new();
    super::read_ok_structured(&mut out, 7, 0, 2, Last::No);
    out.extend_from_slice(b"ab");
    super::read_hole_structured(&mut out, 7, 2, 10, Last::No);
    super::error_at(&mut out, 7, Errno::Io, "bad sector", 12, Last::No);
    super::none(&mut out, 7);
    let chunks = chunks(&out);
    assert_eq!(chunks.iter().map(|chunk| (chunk.0, chunk.1)).collect::<Vec<_>>(), [(0, 1), (0, 2), (0, 32770), (1, 0)]);
    assert_eq!(chunks[1].3, [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 10]);
    assert_eq!(chunks[2].3, [&[0, 0, 0, 5, 0, 10], b"bad sector".as_slice(), &[0, 0, 0, 0, 0, 0, 0, 12]].concat());
}

#[test]
fn a_failure_carries_its_text_where_the_reply_has_room_for_it() {
    let mut out = Vec::new();
    super::failure(&mut out, Replies::Simple, 7, Errno::Shutdown, "fenced");
    assert_eq!((out.len(), out[7]), (16, 108));
    out.clear();
    super::failure(&mut out, Replies::Structured, 7, Errno::Shutdown, "fenced");
    assert_eq!(chunks(&out), [(1, 32769, 7, [&[0, 0, 0, 108, 0, 6], b"fenced".as_slice()].concat())]);
}

#[test]
fn a_long_error_text_is_cut_between_characters() {
    let mut out = Vec::new();
    super::error(&mut out, 7, Errno::Io, &format!("x{}", "ü".repeat(2000)));
    let payload = &chunks(&out)[0].3;
    assert_eq!(payload.len(), 6 + 511);
    assert!(std::str::from_utf8(&payload[6..]).is_ok());
}

#[test]
fn neighbouring_ranges_of_one_kind_are_one_descriptor() {
    use Allocation::{Data, Hole, Zero};
    let ranges = [(4, Data), (6, Data), (0, Hole), (10, Zero), (5, Hole), (5, Hole)];
    assert_eq!(status(30, false, &ranges), [(10, 0), (10, 2), (10, 3)]);
}

#[test]
fn one_extent_means_the_first_whole_extent_only() {
    use Allocation::{Data, Hole};
    assert_eq!(status(30, true, &[(4, Hole), (6, Hole), (20, Data)]), [(10, 3)]);
    assert_eq!(status(30, true, &[(30, Hole)]), [(30, 3)]);
}

#[test]
fn a_status_never_reaches_beyond_the_request() {
    assert_eq!(status(30, false, &[(u64::MAX, Allocation::Hole)]), [(30, 3)]);
    assert_eq!(
        status(30, false, &[(20, Allocation::Hole), (1 << 40, Allocation::Data), (1, Allocation::Hole)]),
        [(20, 3), (10, 0)]
    );
}

#[test]
fn where_nothing_is_known_everything_is_data() {
    assert_eq!(status(30, false, &[]), [(30, 0)]);
    assert_eq!(status(u32::MAX, false, &[(0, Allocation::Hole)]), [(u32::MAX, 0)]);
}

#[test]
fn a_fragmented_disk_gets_a_bounded_status() {
    let ranges: Vec<_> =
        (0..10_000).map(|i| (1, if i % 2 == 0 { Allocation::Data } else { Allocation::Hole })).collect();
    let descriptors = status(10_000, false, &ranges);
    assert_eq!(descriptors.len(), 4096);
    assert!(descriptors.iter().all(|(len, _)| *len == 1));
}

fn any_allocation() -> impl Strategy<Value = Allocation> {
    prop_oneof![
        proptest::strategy::Just(Allocation::Data),
        proptest::strategy::Just(Allocation::Hole),
        proptest::strategy::Just(Allocation::Zero)
    ]
}

proptest! {
    #[test]
    fn a_status_tells_of_each_byte_what_the_ranges_told(
        ranges in proptest::collection::vec((0u64..9, any_allocation()), 0..40), length in 1u32..200, one: bool,
    ) {
        let expected: Vec<u32> = ranges.iter().flat_map(|(len, kind)| vec![kind.bits(); *len as usize]).collect();
        let descriptors = status(length, one, &ranges);
        let told: Vec<u32> = descriptors.iter().flat_map(|(len, bits)| vec![*bits; *len as usize]).collect();
        assert!(!told.is_empty() && told.len() <= length as usize);
        if expected.is_empty() {
            assert_eq!(told, vec![0; length as usize]);
        } else {
            assert_eq!(told, expected[..told.len()]);
            assert!(one || told.len() == expected.len().min(length as usize));
        }
        assert!(descriptors.windows(2).all(|pair| pair[0].1 != pair[1].1));
        assert!(!one || descriptors.len() == 1);
    }

    #[test]
    fn errors_of_any_text_stay_well_formed(message: String, cookie in any::<u64>()) {
        let mut out = Vec::new();
        super::error(&mut out, cookie, Errno::Io, &message);
        super::error_at(&mut out, cookie, Errno::Io, &message, 5, Last::Yes);
        assert_eq!(chunks(&out).len(), 2);
    }
}
