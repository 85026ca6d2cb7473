//! Frames: what is encoded decodes to the same, and nothing else decodes.

mod deltas;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::limits::{
    DATA_SECTORS_MAX, DISK_SECTORS_MAX, FRAME_EXTENTS_MAX, FRAME_GATHER_BYTES, FRAME_RAW_BYTES_MAX, RANGE_SECTORS_MAX,
};
use crate::record::{Record, RecordKind};
use crate::replication::{Content, Encoding, Extent, FrameHeader};

fn data(disk: u32, sector: u64, bytes: impl Into<Bytes>) -> RawExtent {
    let bytes = bytes.into();
    let crc = crc32fast::hash(&bytes);
    RawExtent { disk: DiskIndex(disk), sector, content: RawContent::Data { bytes, crc } }
}

fn zero(sector: u64, sectors: u32) -> RawExtent {
    RawExtent { disk: DiskIndex(0), sector, content: RawContent::Zero { sectors } }
}

/// Bytes that zstd can't shrink.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

fn record_of(frame: &EncodedFrame) -> Record {
    let bytes = Bytes::from([&frame.head[..], &frame.payload[..]].concat());
    let (record, len) = Record::parse(&bytes).unwrap();
    assert_eq!(len as u64, frame.wire_bytes());
    record
}

fn encode(extents: &[RawExtent], level: Compression) -> EncodedFrame {
    Encoder::new().encode(7, 3, extents, level).unwrap()
}

fn decode(frame: &EncodedFrame) -> DecodedFrame {
    Decoder::new().decode(&record_of(frame)).unwrap()
}

/// What was encoded, told from what was decoded.
fn back(frame: &DecodedFrame) -> Vec<RawExtent> {
    frame.to_raw()
}

/// A record with a header and payload of the test's choice, its CRCs right.
fn forged(header: &FrameHeader, payload: &[u8]) -> Record {
    Record::parse(&Record::encode(RecordKind::Frame, header, payload)).unwrap().0
}

fn header_of(extents: Vec<Extent>, encoding: Encoding, raw_length: u32) -> FrameHeader {
    FrameHeader { number: 1, part: 0, encoding: encoding.into(), raw_length, extents, ..FrameHeader::default() }
}

fn extent_of(bytes: &[u8]) -> Extent {
    let sectors = u32::try_from(bytes.len() / 512).unwrap();
    Extent { disk: 0, sector: 0, sectors, crc: crc32fast::hash(bytes), content: Content::Data.into(), is_delta: false }
}

#[test]
fn a_frame_of_every_content_round_trips() {
    let extents = [
        data(0, 8, vec![7; 4096]),
        zero(100, RANGE_SECTORS_MAX),
        data(63, DISK_SECTORS_MAX - 1, noise(512)),
        RawExtent { disk: DiskIndex(2), sector: 0, content: RawContent::Unreadable { sectors: 8 } },
    ];
    for level in [Compression::Off, Compression::Zstd(1), Compression::Zstd(9)] {
        let encoded = encode(&extents, level);
        let decoded = decode(&encoded);
        assert_eq!(back(&decoded), extents);
        assert_eq!((decoded.header.number, decoded.header.part), (7, 3));
        assert_eq!((encoded.raw_bytes, encoded.sectors), (4608, decoded.sectors()));
    }
}

#[test]
fn content_that_shrinks_is_compressed_and_other_content_is_sent_from_its_own_memory() {
    let soft = encode(&[data(0, 0, vec![1; 1 << 20])], Compression::Zstd(1));
    assert!(soft.payload.len() < 1000);
    let bytes = Bytes::from(noise(1 << 20));
    let hard = encode(&[data(0, 0, bytes.clone())], Compression::Zstd(1));
    assert_eq!(hard.payload.as_ptr(), bytes.as_ptr(), "not copied");
    let off = encode(&[data(0, 0, bytes.clone())], Compression::Off);
    assert_eq!(off.payload.as_ptr(), bytes.as_ptr(), "not copied");
}

#[test]
fn a_saving_of_less_than_a_sixteenth_is_not_worth_decoding() {
    for (soft_bytes, expected) in [(512, Encoding::Raw), (1 << 14, Encoding::Zstd)] {
        let mut bytes = noise(1 << 16);
        bytes[..soft_bytes].fill(0);
        let frame = encode(&[data(0, 0, bytes)], Compression::Zstd(1));
        assert_eq!(decode(&frame).header.encoding(), expected, "{soft_bytes}");
    }
}

#[test]
fn a_raw_frame_is_decoded_without_a_copy() {
    let record = record_of(&encode(&[data(0, 0, noise(4096)), data(0, 8, noise(512))], Compression::Off));
    let decoded = Decoder::new().decode(&record).unwrap();
    assert_eq!(decoded.raw.as_ptr(), record.payload.as_ptr());
}

#[test]
fn an_encoder_is_reused_across_levels_and_frames() {
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new();
    for (i, level) in
        [Compression::Zstd(1), Compression::Zstd(3), Compression::Off].into_iter().cycle().take(9).enumerate()
    {
        let extents = [data(0, i as u64, noise(512 * (i + 1))), data(1, 0, vec![3; 4096])];
        let frame = encoder.encode(1, 0, &extents, level).unwrap();
        assert_eq!(back(&decoder.decode(&record_of(&frame)).unwrap()), extents);
    }
}

#[test]
fn content_that_changed_since_its_capture_is_refused_by_the_encoder() {
    let mut extent = data(4, 99, vec![7; 512]);
    extent.content = RawContent::Data { bytes: vec![8; 512].into(), crc: crc32fast::hash(&[7; 512]) };
    let error = Encoder::new().encode(1, 0, &[extent], Compression::Off).unwrap_err();
    assert!(matches!(error, FrameError::ExtentCrc { disk: DiskIndex(4), sector: 99, .. }));
    assert!(error.to_string().starts_with("disk 4, sector 99: content is damaged"));
}

#[test]
fn extents_beyond_their_bounds_are_refused_by_the_encoder() {
    let refused = |extents: &[RawExtent]| Encoder::new().encode(1, 0, extents, Compression::Off).is_err();
    assert!(refused(&[]), "no extents");
    assert!(refused(&vec![zero(0, 1); FRAME_EXTENTS_MAX + 1]), "too many extents");
    assert!(refused(&[data(0, 0, vec![0; 511])]), "not whole sectors");
    assert!(refused(&[data(0, 0, vec![])]), "empty");
    assert!(refused(&[data(0, 0, vec![0; FRAME_RAW_BYTES_MAX + 512])]), "larger than a frame");
    assert!(refused(&[data(0, 0, vec![0; FRAME_RAW_BYTES_MAX]), data(0, 9999, vec![0; 512])]), "together too large");
    assert!(refused(&[data(64, 0, vec![0; 512])]), "no such disk");
    assert!(refused(&[zero(0, 0)]), "empty range");
    assert!(refused(&[zero(0, RANGE_SECTORS_MAX + 1)]), "long range");
    assert!(refused(&[zero(DISK_SECTORS_MAX, 1)]), "beyond the largest disk");
    assert!(refused(&[zero(u64::MAX, 1)]), "overflow");
}

#[test]
fn headers_that_contradict_themselves_are_refused_by_the_decoder() {
    let bytes = [5; 1024];
    let good = header_of(vec![extent_of(&bytes)], Encoding::Raw, 1024);
    assert!(Decoder::new().decode(&forged(&good, &bytes)).is_ok());
    let with = |change: fn(&mut FrameHeader)| {
        let mut header = good.clone();
        change(&mut header);
        Decoder::new().decode(&forged(&header, &bytes))
    };
    let changes: [fn(&mut FrameHeader); 13] = [
        |h| h.extents.clear(),
        |h| h.raw_length = 512,
        |h| h.raw_length = u32::MAX,
        |h| h.encoding = 2,
        |h| h.extents[0].sectors = 1,
        |h| h.extents[0].sectors = 0,
        |h| h.extents[0].sectors = DATA_SECTORS_MAX + 1,
        |h| h.extents[0].disk = 64,
        |h| h.extents[0].sector = u64::MAX,
        |h| h.extents[0].sector = DISK_SECTORS_MAX - 1,
        |h| h.extents[0].content = 3,
        |h| h.extents[0].content = Content::Zero.into(),
        |h| h.extents[0].crc ^= 1,
    ];
    for (i, change) in changes.into_iter().enumerate() {
        assert!(with(change).is_err(), "change {i}");
    }
    let many = vec![extent_of(&bytes[..512]); FRAME_EXTENTS_MAX + 1];
    let declared = u32::try_from(many.len() * 512).unwrap();
    assert!(Decoder::new().decode(&forged(&header_of(many, Encoding::Raw, declared), &bytes)).is_err());
}

#[test]
fn a_range_with_a_crc_is_refused() {
    let range = Extent { disk: 0, sector: 0, sectors: 8, crc: 1, content: Content::Zero.into(), is_delta: false };
    assert!(Decoder::new().decode(&forged(&header_of(vec![range], Encoding::Raw, 0), &[])).is_err());
}

#[test]
fn a_payload_that_decodes_to_more_than_declared_is_refused() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    assert!(bomb.len() < 16 << 10);
    for declared in [512_usize, FRAME_RAW_BYTES_MAX] {
        let header = header_of(vec![extent_of(&vec![0; declared])], Encoding::Zstd, u32::try_from(declared).unwrap());
        let error = Decoder::new().decode(&forged(&header, &bomb)).unwrap_err();
        assert!(matches!(error, FrameError::Payload { .. }), "{error}");
    }
}

#[test]
fn a_payload_that_decodes_to_less_than_declared_or_not_at_all_is_refused() {
    let header = header_of(vec![extent_of(&[0; 4096])], Encoding::Zstd, 4096);
    for payload in [zstd::bulk::compress(&[0; 512], 1).unwrap(), b"not zstd".to_vec(), vec![]] {
        assert!(matches!(Decoder::new().decode(&forged(&header, &payload)), Err(FrameError::Payload { .. })));
    }
    let raw = header_of(vec![extent_of(&[0; 4096])], Encoding::Raw, 4096);
    assert!(matches!(Decoder::new().decode(&forged(&raw, &[0; 512])), Err(FrameError::Payload { .. })));
}

#[test]
fn another_kind_of_record_is_not_a_frame() {
    let bytes = Record::encode(RecordKind::PartEnd, &crate::replication::PartEnd::default(), &[]);
    let (record, _) = Record::parse(&bytes).unwrap();
    assert!(matches!(parse_header(&record), Err(FrameError::Kind { found: RecordKind::PartEnd })));
}

#[test]
fn extents_beyond_the_disks_of_their_group_are_refused() {
    let frame = decode(&encode(&[data(1, 6, vec![1; 1024])], Compression::Off));
    assert!(frame.check_disks(&[512, 8 * 512]).is_ok());
    assert!(frame.check_disks(&[512, 7 * 512]).is_err(), "beyond the end");
    assert!(frame.check_disks(&[1 << 20]).is_err(), "no such disk");
}

#[test]
fn small_extents_share_a_frame_and_large_ones_have_their_own() {
    let small: Vec<_> = (0..100).map(|i| data(0, i * 8, vec![1; 4096])).collect();
    let sizes = |frames: &[Vec<RawExtent>]| frames.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes(&split_frames(small.into_iter())), [32, 32, 32, 4]);
    let mixed =
        [data(0, 0, vec![1; 4096]), data(0, 8, vec![1; 1 << 20]), zero(1 << 20, 1), data(0, 1 << 30, vec![1; 512])];
    assert_eq!(sizes(&split_frames(mixed.into_iter())), [1, 2, 1]);
    let ranges = (0..FRAME_EXTENTS_MAX as u64 + 1).map(|i| zero(i * 2, 1));
    assert_eq!(sizes(&split_frames(ranges)), [FRAME_EXTENTS_MAX, 1]);
    assert!(split_frames(std::iter::empty()).is_empty());
}

#[test]
fn a_range_longer_than_an_extent_may_be_is_cut() {
    let long =
        RawExtent { disk: DiskIndex(0), sector: 10, content: RawContent::Zero { sectors: RANGE_SECTORS_MAX * 2 + 5 } };
    let step = u64::from(RANGE_SECTORS_MAX);
    let expected = [zero(10, RANGE_SECTORS_MAX), zero(10 + step, RANGE_SECTORS_MAX), zero(10 + 2 * step, 5)];
    assert_eq!(split_frames(std::iter::once(long)).concat(), expected);
}

fn any_extent() -> impl Strategy<Value = RawExtent> {
    let sector = 0..DISK_SECTORS_MAX - u64::from(RANGE_SECTORS_MAX);
    let bytes = (1_usize..300, any::<bool>(), any::<u8>()).prop_map(|(sectors, soft, byte)| {
        Bytes::from(if soft { vec![byte; sectors * 512] } else { noise(sectors * 512) })
    });
    let content = prop_oneof![
        4 => bytes.prop_map(|bytes| RawContent::Data { crc: crc32fast::hash(&bytes), bytes }),
        1 => (1..=RANGE_SECTORS_MAX).prop_map(|sectors| RawContent::Zero { sectors }),
        1 => (1..=RANGE_SECTORS_MAX).prop_map(|sectors| RawContent::Unreadable { sectors }),
    ];
    (0_u32..64, sector, content).prop_map(|(disk, sector, content)| RawExtent {
        disk: DiskIndex(disk),
        sector,
        content,
    })
}

fn any_level() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::Off), Just(Compression::Zstd(1)), Just(Compression::Zstd(3))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_extents_split_encoded_and_decoded_are_the_same(extents in proptest::collection::vec(any_extent(), 1..40), level in any_level()) {
        let mut encoder = Encoder::new();
        let mut decoder = Decoder::new();
        let mut decoded = Vec::new();
        for frame in split_frames(extents.iter().cloned()) {
            let bytes: usize = frame.iter().map(RawExtent::data_bytes).sum();
            let with_data = frame.iter().filter(|extent| extent.data_bytes() > 0).count();
            prop_assert!(bytes <= FRAME_GATHER_BYTES || with_data == 1);
            let encoded = encoder.encode(1, 0, &frame, level).unwrap();
            prop_assert!(encoded.payload.len() <= bytes);
            decoded.extend(back(&decoder.decode(&record_of(&encoded)).unwrap()));
        }
        prop_assert_eq!(decoded, extents);
    }

    #[test]
    fn a_changed_byte_under_right_record_checksums_is_refused_or_decodes_to_the_same_content(
        extents in proptest::collection::vec(any_extent(), 1..4),
        level in any_level(),
        at: prop::sample::Index,
        xor in 1_u8..,
    ) {
        let frame = Encoder::new().encode(1, 0, &extents, level).unwrap();
        let record = record_of(&frame);
        let mut payload = record.payload.to_vec();
        if !payload.is_empty() {
            let at = at.index(payload.len());
            payload[at] ^= xor;
            let header: FrameHeader = record.header_as().unwrap();
            if let Ok(decoded) = Decoder::new().decode(&forged(&header, &payload)) {
                prop_assert_eq!(back(&decoded), extents);
            }
        }
    }

    #[test]
    fn any_header_and_payload_are_decoded_or_refused_without_a_panic(
        header in proptest::collection::vec(any::<u8>(), 0..100),
        payload in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        crate::fuzz::frame(&[&[u8::try_from(header.len()).unwrap()], &header[..], &payload[..]].concat());
    }
}

/// A record with one data extent that is sent as it is, whose header says `crc` of it.
fn lone_raw(bytes: &Bytes, crc: u32) -> Record {
    let sectors = u32::try_from(bytes.len() / 512).unwrap();
    let extent = Extent { disk: 0, sector: 8, sectors, crc, content: Content::Data.into(), is_delta: false };
    let raw_length = u32::try_from(bytes.len()).unwrap();
    let encoding = Encoding::Raw.into();
    let header =
        FrameHeader { number: 7, part: 3, encoding, raw_length, extents: vec![extent], ..FrameHeader::default() };
    Record::parse(&Record::encode(RecordKind::Frame, &header, bytes)).unwrap().0
}

#[test]
fn a_lone_extent_with_another_sum_than_its_payload_is_refused() {
    let bytes = Bytes::from(noise(8192));
    let crc = crc32fast::hash(&bytes);
    assert_eq!(Decoder::new().decode(&lone_raw(&bytes, crc)).unwrap().raw, bytes);
    let error = Decoder::new().decode(&lone_raw(&bytes, crc ^ 1)).unwrap_err();
    assert!(
        matches!(error, FrameError::ExtentCrc { sector: 8, expected, found, .. } if expected == crc ^ 1 && found == crc)
    );
}

#[test]
fn a_payload_that_is_no_longer_what_was_parsed_is_summed_again() {
    let bytes = Bytes::from(noise(8192));
    let mut record = lone_raw(&bytes, crc32fast::hash(&bytes));
    record.payload = Bytes::from(noise(8191).into_iter().chain([1]).collect::<Vec<_>>());
    let spoilt = record.payload != bytes;
    assert!(spoilt && matches!(Decoder::new().decode(&record), Err(FrameError::ExtentCrc { .. })));
}

#[test]
fn the_sum_in_a_head_is_that_of_its_payload_however_it_was_made() {
    let long = noise(64 << 10);
    for (extents, level) in [
        (vec![data(0, 0, long.clone())], Compression::Off),
        (vec![data(0, 0, long.clone())], Compression::Zstd(1)),
        (vec![data(0, 0, vec![7; 64 << 10])], Compression::Zstd(1)),
        (vec![data(0, 0, long.clone()), data(0, 500, long)], Compression::Off),
        (vec![zero(0, 8)], Compression::Off),
    ] {
        // `record_of` parses it, which compares the sums.
        assert_eq!(back(&decode(&encode(&extents, level))), extents);
    }
}

#[test]
fn what_is_sent_raw_says_about_how_much_zstd_would_leave_of_it() {
    // Half of each extent is noise, so that about half is left.
    let half = |len: usize| [noise(len / 2), vec![7; len / 2]].concat();
    let mixed = |len: usize| half(4096).repeat(len / 4096);
    for len in [4096, 128 << 10, 1 << 20] {
        let header = decode(&encode(&[data(0, 0, mixed(len))], Compression::Off)).header;
        assert_eq!((header.encoding(), header.raw_length as usize), (Encoding::Raw, len));
        assert!((header.packed_length as usize) < len * 2 / 3 && header.packed_length > 0, "{len}: {header:?}");
        for level in [Compression::Off, Compression::Zstd(1)] {
            let header = decode(&encode(&[data(0, 0, noise(len))], level)).header;
            assert_eq!((header.encoding(), header.packed_length as usize), (Encoding::Raw, len), "{level:?}");
        }
    }
    let header = decode(&encode(&[data(0, 0, mixed(4096))], Compression::Zstd(1))).header;
    assert_eq!((header.encoding(), header.packed_length), (Encoding::Zstd, 0), "its length says it");
    assert_eq!(decode(&encode(&[zero(0, 8)], Compression::Off)).header.packed_length, 0, "there is no data");
    let bulk = Encoder::new().encode(0, 3, &[data(0, 0, mixed(4096))], Compression::Off).unwrap();
    assert_eq!(decode(&bulk).header.packed_length, 0, "what is part of no point costs nothing");
}

#[test]
fn an_estimate_of_more_than_the_content_is_refused() {
    let mut header = decode(&encode(&[data(0, 0, noise(512))], Compression::Off)).header;
    header.packed_length = header.raw_length + 1;
    assert!(Decoder::new().decode(&forged(&header, &noise(512))).is_err());
}
