//! A peer with the right keys that sends damaged or lying parts: each is refused, nothing of it reaches the disk, and a
//! true source is served afterwards (P6, A3).

use bytes::Bytes;
use proto::frame::{Compression, EncodedFrame, Encoder, RawContent, RawExtent};
use proto::ids::DiskIndex;
use proto::record::{Record, RecordKind};
use proto::replication::{Content, Encoding, Extent, FrameHeader};
use tests::rogue::{self, Answer};
use tests::site::Site;
use tests::verdict::{assert_targets_equal_sources, model_with_content};
use tests::{image, sector};

const MIB: u64 = 1 << 20;

fn good_frame(compression: Compression) -> EncodedFrame {
    let bytes = Bytes::from(sector::content(2, 0, 64, 32));
    let crc = blockio::crc32(&bytes);
    let extent = RawExtent { disk: DiskIndex(0), sector: 64, content: RawContent::Data { bytes, crc } };
    Encoder::new().encode(0, 0, &[extent], compression).expect("a frame")
}

fn joined(frame: &EncodedFrame) -> Vec<u8> {
    [&frame.head[..], &frame.payload[..]].concat()
}

/// A frame with right checksums of its record around whatever header and payload say.
fn lying_frame(extent: Extent, encoding: Encoding, raw_length: u32, payload: &[u8]) -> Bytes {
    let header = FrameHeader {
        number: 0,
        part: 0,
        encoding: encoding.into(),
        raw_length,
        extents: vec![extent],
        ..FrameHeader::default()
    };
    Record::encode(RecordKind::Frame, &header, payload)
}

fn extent(disk: u32, first: u64, sectors: u32, crc: u32) -> Extent {
    Extent { disk, sector: first, sectors, crc, content: Content::Data.into(), is_delta: false }
}

/// What a refused part may have changed on the target disk.
#[derive(PartialEq)]
enum Trace {
    /// Its only frame was refused.
    None,
    /// Its frames are good and the lie comes after them: bulk is written frame by frame, and counts for nothing until
    /// the part is acknowledged.
    GoodFrames,
}

#[track_caller]
fn assert_refused(what: &str, records: Vec<Bytes>) {
    assert_refused_leaving(what, records, &Trace::None);
}

#[track_caller]
fn assert_refused_leaving(what: &str, records: Vec<Bytes>, trace: &Trace) {
    let mut site = Site::new(&[8 * MIB]);
    let _model = model_with_content(&site);
    site.start_target();
    let answer = rogue::send_part(&site, records);
    assert!(matches!(answer, Answer::Refused(_)), "{what}: {answer:?}");
    let told = site.target.alarms(&[]);
    assert!(!told.is_empty(), "{what}: damage is worth a line in the log:\n{}", site.target.log());
    site.target.clear_log();

    // Nothing that was refused has reached the disk, and the true source is served.
    let extent = site.vmdk(0).with_file_name("disk0-flat.vmdk");
    if *trace == Trace::None && extent.exists() {
        assert!(image::read(&extent).iter().all(|&byte| byte == 0), "{what}: it was written to the VMDK");
    }
    site.start_source();
    site.wait_protected();
    site.point(None);
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn an_undamaged_part_is_taken_so_that_the_refusals_mean_something() {
    let mut site = Site::new(&[8 * MIB]);
    site.start_target();
    for compression in [Compression::Off, Compression::Zstd(1)] {
        let frame = Bytes::from(joined(&good_frame(compression)));
        let answer = rogue::send_part(&site, rogue::part(vec![frame], 32));
        assert_eq!(answer, Answer::Durable, "{compression:?}");
    }
    site.finish(&[]);
}

#[test]
fn a_flipped_bit_in_a_frame_is_refused() {
    for compression in [Compression::Off, Compression::Zstd(1)] {
        let mut bytes = joined(&good_frame(compression));
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_refused("a bit of the payload", rogue::part(vec![bytes.into()], 32));
    }
}

#[test]
fn content_that_is_not_what_was_captured_is_refused() {
    let bytes = sector::content(2, 0, 64, 32);
    let crc = blockio::crc32(&bytes);
    let frame = lying_frame(extent(0, 64, 32, !crc), Encoding::Raw, 32 * 512, &bytes);
    assert_refused("an extent with another CRC", rogue::part(vec![frame], 32));
}

#[test]
fn a_frame_beyond_the_end_of_the_disk_is_refused() {
    let bytes = sector::content(2, 0, 64, 32);
    let crc = blockio::crc32(&bytes);
    for (disk, first) in [(0, 16384 - 16), (0, u64::MAX - 40), (1, 64), (u32::MAX, 64)] {
        let frame = lying_frame(extent(disk, first, 32, crc), Encoding::Raw, 32 * 512, &bytes);
        assert_refused(&format!("disk {disk}, sector {first}"), rogue::part(vec![frame], 32));
    }
}

#[test]
fn a_frame_that_decompresses_to_more_than_it_says_is_refused() {
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 1).expect("zeroes compress");
    let crc = blockio::crc32(&vec![0; 32 * 512]);
    let frame = lying_frame(extent(0, 64, 32, crc), Encoding::Zstd, 32 * 512, &bomb);
    assert_refused("256 MiB in a frame of 16 KiB", rogue::part(vec![frame], 32));
}

#[test]
fn lengths_beyond_all_bounds_are_refused_before_memory_is_taken() {
    let mut bytes = joined(&good_frame(Compression::Off));
    bytes[8..16].fill(0xff);
    assert_refused("a header and a payload of 4 GiB", rogue::part(vec![bytes.into()], 32));
}

#[test]
fn a_part_whose_counts_are_wrong_is_refused() {
    let frame = Bytes::from(joined(&good_frame(Compression::Off)));
    assert_refused_leaving("a wrong number of sectors", rogue::part(vec![frame], 31), &Trace::GoodFrames);
}
