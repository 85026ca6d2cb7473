//! What each guest write costs on the tap's thread besides I/O: a request is parsed and checked, its content takes a CRC,
//! and it goes into the change set of its epoch.

use blockio::crc32;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nbd::{Replies, Request, Session};
use process_server::changeset::{Captured, ChangeSet, Content};
use proto::ids::{DiskIndex, Epoch};

const WRITES: u64 = 10_000;
const DISK_BYTES: u64 = 1 << 40;
const SECTORS: u64 = 8;

fn request(offset: u64) -> [u8; Request::BYTES] {
    let mut bytes = [0; Request::BYTES];
    bytes[0..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
    bytes[6..8].copy_from_slice(&1u16.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..28].copy_from_slice(&4096u32.to_be_bytes());
    bytes
}

/// Spread over the disk without a pattern, the same in every run.
fn block(index: u64) -> u64 {
    index.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (DISK_BYTES / 4096)
}

fn stages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("capture");
    let requests: Vec<[u8; Request::BYTES]> = (0..WRITES).map(|index| request(block(index) * 4096)).collect();
    let session = Session {
        size: DISK_BYTES,
        block_max: 32 << 20,
        read_only: false,
        replies: Replies::Simple,
        meta_base_allocation: false,
    };
    group.throughput(Throughput::Elements(WRITES));
    group.bench_function("nbd parse and check", |bencher| {
        bencher.iter(|| {
            let parsed = requests.iter().map(|bytes| Request::parse(bytes).expect("a request"));
            parsed.filter(|request| request.check(&session).is_ok()).count()
        });
    });

    let content = Captured::checksummed(Bytes::from(vec![7; 4096]));
    for (name, spread) in [("random", true), ("sequential", false)] {
        group.bench_function(format!("set insert, {name} 4 KiB"), |bencher| {
            bencher.iter_batched(
                || ChangeSet::new(Epoch(1), 1),
                |mut set| {
                    for index in 0..WRITES {
                        let at = if spread { block(index) } else { index };
                        set.insert(DiskIndex(0), at * SECTORS, SECTORS, Content::Captured(content.clone()));
                    }
                    set
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("content");
    let piece = vec![0x5a; 1 << 20];
    let zero = vec![0; 1 << 20];
    group.throughput(Throughput::Bytes(1 << 20));
    group.bench_function("crc, 1 MiB", |bencher| bencher.iter(|| crc32(&piece)));
    group.bench_function("crc, 256 x 4 KiB", |bencher| {
        bencher.iter(|| piece.chunks(4096).map(crc32).fold(0, |all, crc| all ^ crc));
    });
    group.bench_function("zero scan, 1 MiB of zeroes", |bencher| bencher.iter(|| blockio::is_zero(&zero)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = stages
}
criterion_main!(benches);
