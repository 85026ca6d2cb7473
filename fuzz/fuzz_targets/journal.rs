//! A journal whose files were changed: it opens or says why not, and never panics or takes memory by a file's word.
//!
//! The input is a list of changes to a small valid journal: a byte overwritten, a file cut, or a record with right
//! checksums, but any kind, header and payload, appended.

#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use master_target::journal::{Fuse, Journal, JournalError, MemVolume, Options, Volume};
use proto::frame::{Compression, Encoder, RawContent, RawExtent};
use proto::ids::{DiskIndex, Phase};
use proto::record::Record;
use proto::replication::{DiskSpec, PartEnd, SealSet};
use proto::time::Timestamp;

const NOW: Timestamp = Timestamp(1_000_000_000);

/// The files of a journal with one phase and three sets.
static FILES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let volume = MemVolume::new(1, Fuse::default());
    let journal = open(&volume).expect("a new journal opens");
    journal.open_phase(Phase(1), 1, &[3; 16]).expect("a phase opens");
    let mut encoder = Encoder::new();
    for number in 1..=3u64 {
        let bytes = Bytes::from(vec![number as u8; 8192]);
        let crc = blockio::crc32(&bytes);
        let data = RawExtent { disk: DiskIndex(0), sector: number * 8, content: RawContent::Data { bytes, crc } };
        let zero = RawExtent { disk: DiskIndex(0), sector: 1024, content: RawContent::Zero { sectors: 8 } };
        let frame = encoder.encode(number, 0, &[data, zero], Compression::Zstd(1)).expect("a frame");
        let whole = Bytes::from([&frame.head[..], &frame.payload[..]].concat());
        let (record, _) = Record::parse(&whole).expect("a record");
        journal.append_frame(Phase(1), number, &record).expect("a frame is taken");
        journal.end_part(Phase(1), number, 0, PartEnd { frames: 1, sectors: 24 }).expect("a part ends");
        let seal = SealSet {
            group: "g".into(),
            phase: 1,
            number,
            parent: number - 1,
            parts: 1,
            sectors: 24,
            cut_time_us: NOW.0 + number,
            is_point: true,
            marks: 0,
            ..SealSet::default()
        };
        journal.seal(seal).expect("a set is sealed");
        journal.sync().expect("it is durable");
    }
    drop(journal);
    let mut names = volume.list().expect("its files");
    names.sort();
    let content = |name: String| {
        let mut bytes = vec![0; volume.len(&name).expect("a length") as usize];
        volume.read_at(&name, 0, &mut bytes).expect("its bytes");
        (name, bytes)
    };
    names.into_iter().map(content).collect()
});

fn open(volume: &MemVolume) -> Result<Journal<MemVolume>, JournalError> {
    let disks = [DiskSpec { name: "d0".into(), size: 1 << 20, logical_block: 512 }];
    let options = Options {
        generation_bytes: 1 << 40,
        segment_bytes: 16 << 10,
        reserve_bytes: 0,
        identity: Some([5; 32]),
        ..Options::default()
    };
    Journal::open(volume.clone(), &disks, NOW, options)
}

/// A record around any bytes, with right checksums.
fn record(kind: u8, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"BHR1".to_vec();
    bytes.extend([kind, 1, 0, 0]);
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(blockio::crc32(payload).to_le_bytes());
    let crc = blockio::crc32(&[&bytes[..], header].concat());
    bytes.extend(crc.to_le_bytes());
    bytes.extend(header);
    bytes.extend(payload);
    bytes
}

/// Takes `count` bytes from the front, fewer where the input ends.
fn take<'a>(input: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (front, rest) = input.split_at(count.min(input.len()));
    *input = rest;
    front
}

fn number(input: &mut &[u8]) -> usize {
    take(input, 2).iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut input = input;
    let mut files = FILES.clone();
    let count = files.len();
    while let [what, rest @ ..] = input {
        input = rest;
        let (_, bytes) = &mut files[usize::from(what >> 2) % count];
        match what & 3 {
            0 | 1 => {
                let at = number(&mut input);
                if let (Some(old), [new]) = (bytes.get_mut(at), take(&mut input, 1)) {
                    *old = *new;
                }
            }
            2 => bytes.truncate(number(&mut input)),
            _ => {
                let kind = take(&mut input, 1).first().map_or(0, |kind| kind % 24);
                let lengths = (number(&mut input) % 512, number(&mut input) % 512);
                let (header, payload) = (take(&mut input, lengths.0), take(&mut input, lengths.1));
                bytes.extend(record(kind, header, payload));
            }
        }
    }
    let volume = MemVolume::new(1, Fuse::default());
    for (name, bytes) in &files {
        volume.replace(name, bytes).expect("a file in memory");
    }
    match open(&volume) {
        Ok(journal) => {
            let points = journal.points();
            assert!(points.iter().all(|point| point.set <= journal.last_durable_set()));
            // What was opened can be opened again, to the same end.
            let durable = journal.last_durable_set();
            drop(journal);
            let again = open(&volume).unwrap_or_else(|error| panic!("it opened once, then: {error}"));
            assert_eq!(again.last_durable_set(), durable);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
