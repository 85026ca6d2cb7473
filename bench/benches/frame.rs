//! What a frame costs: compression at the levels in use, the header and checksums around it, and the way back.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use proto::frame::{Compression, Decoder, Encoder, RawContent, RawExtent};
use proto::ids::DiskIndex;
use proto::record::Record;
use tests::random::Random;

const EXTENTS: u64 = 32;
const BYTES: u64 = EXTENTS * 4096;

/// Half noise and half a repeated word: it shrinks to about half.
fn extents(noise_percent: u64) -> Vec<RawExtent> {
    let mut random = Random::new(1);
    let extent = |index: u64| {
        let mut bytes = b"backhaul".repeat(512);
        for word in bytes.chunks_exact_mut(8).take((noise_percent * 512 / 100) as usize) {
            word.copy_from_slice(&random.next_u64().to_le_bytes());
        }
        let crc = blockio::crc32(&bytes);
        RawExtent { disk: DiskIndex(0), sector: index * 64, content: RawContent::Data { bytes: bytes.into(), crc } }
    };
    (0..EXTENTS).map(extent).collect()
}

fn stages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Bytes(BYTES));
    let (mixed, noise) = (extents(50), extents(100));
    let cases = [
        ("encode, raw", &mixed, Compression::Off),
        ("encode, zstd 1", &mixed, Compression::Zstd(1)),
        ("encode, zstd 3", &mixed, Compression::Zstd(3)),
        ("encode, zstd 1, noise", &noise, Compression::Zstd(1)),
    ];
    for (name, extents, compression) in cases {
        let mut encoder = Encoder::new();
        group.bench_function(name, |bencher| {
            bencher.iter(|| encoder.encode(1, 0, extents, compression).expect("a frame"));
        });
    }
    for (name, compression) in [("decode, raw", Compression::Off), ("decode, zstd 1", Compression::Zstd(1))] {
        let frame = Encoder::new().encode(1, 0, &mixed, compression).expect("a frame");
        let bytes = Bytes::from([&frame.head[..], &frame.payload[..]].concat());
        let mut decoder = Decoder::new();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let (record, _) = Record::parse(&bytes).expect("a record");
                decoder.decode(&record).expect("a frame")
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = stages
}
criterion_main!(benches);
