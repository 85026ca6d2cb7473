//! The target's stages on a real folder: append to the redo and sync, save undo, apply, look a point up.
//!
//! The disks are in memory, so that what is seen is the journal's own cost and its syncs.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use master_target::apply::{Applier, MemDisks, Progress};
use master_target::journal::{DirVolume, Fuse, Journal, Options};
use master_target::recover::PointReader;
use proto::frame::{Compression, Encoder, RawContent, RawExtent};
use proto::ids::{DiskIndex, Phase};
use proto::record::Record;
use proto::replication::{DiskSpec, PartEnd, SealSet};
use proto::time::Timestamp;
use tempfile::TempDir;
use tests::random::Random;

const DISK_BYTES: u64 = 256 << 20;
const FRAMES: u64 = 32;
const EXTENTS: u64 = 32;
const SET_BYTES: u64 = FRAMES * EXTENTS * 4096;

/// A journal in a new folder with a phase that is open.
struct Rig {
    journal: Arc<Journal<DirVolume>>,
    disks: MemDisks,
    applier: Applier<DirVolume, MemDisks>,
    sets: u64,
    _folder: TempDir,
}

/// Where the 4 KiB extents of a set lie: each in a stretch of its own, since extents of a set never overlap.
fn places(seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    let stretch = DISK_BYTES / 512 / (FRAMES * EXTENTS);
    (0..FRAMES * EXTENTS).map(|index| index * stretch + random.below(stretch / 8 - 1) * 8).collect()
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let volume = DirVolume::open(folder.path()).expect("a volume");
        let specs = [DiskSpec { name: "d0".to_owned(), size: DISK_BYTES, logical_block: 512 }];
        let options = Options { generation_bytes: 1 << 40, identity: Some([5; 32]), ..Options::default() };
        let journal = Journal::open(volume, &specs, Timestamp(1_000_000_000), options).expect("a journal");
        let journal = Arc::new(journal);
        journal.open_phase(Phase(1), 1, &[3; 16]).expect("a phase");
        let disks = MemDisks::new(&[DISK_BYTES], 7, Fuse::default());
        let applier = Applier::over(Arc::clone(&journal), disks.clone());
        Self { journal, disks, applier, sets: 0, _folder: folder }
    }

    /// Records of the next set, with content that doesn't compress.
    fn records(&self, seed: u64) -> Vec<Record> {
        let (mut encoder, mut random) = (Encoder::new(), Random::new(!seed));
        let mut record = |places: &[u64]| {
            let extents = places.iter().map(|&sector| {
                let bytes: Vec<u8> = (0..512).flat_map(|_| random.next_u64().to_le_bytes()).collect();
                let crc = blockio::crc32(&bytes);
                RawExtent { disk: DiskIndex(0), sector, content: RawContent::Data { bytes: bytes.into(), crc } }
            });
            let extents: Vec<RawExtent> = extents.collect();
            let frame = encoder.encode(self.sets + 1, 0, &extents, Compression::Off).expect("a frame");
            Record::parse(&Bytes::from([&frame.head[..], &frame.payload[..]].concat())).expect("a record").0
        };
        places(seed).chunks(EXTENTS as usize).map(&mut record).collect()
    }

    fn append(&mut self, records: &[Record]) {
        self.sets += 1;
        let number = self.sets;
        for record in records {
            self.journal.append_frame(Phase(1), number, record).expect("appended");
        }
        let sectors = FRAMES * EXTENTS * 8;
        let end = PartEnd { frames: FRAMES as u32, sectors };
        self.journal.end_part(Phase(1), number, 0, end).expect("a whole part");
        let seal = SealSet {
            group: "g".to_owned(),
            phase: 1,
            number,
            parent: number - 1,
            parts: 1,
            sectors,
            cut_time_us: 1_000_000_000 + number * 1_000_000,
            is_point: true,
            ..SealSet::default()
        };
        self.journal.seal(seal).expect("sealed");
    }

    /// A durable set.
    fn set(&mut self, seed: u64) {
        let records = self.records(seed);
        self.append(&records);
        self.journal.sync().expect("durable");
    }

    fn apply(&mut self) {
        while self.applier.apply_next_at_once().expect("applied") != Progress::Idle {}
    }
}

/// The time of `stage` alone, each time after a fresh `prepared`.
fn alone<T>(times: u64, mut prepared: impl FnMut(u64) -> T, mut stage: impl FnMut(&mut T)) -> Duration {
    let one = |time| {
        let mut ready = prepared(time);
        let started = Instant::now();
        stage(&mut ready);
        started.elapsed()
    };
    (0..times).map(one).sum()
}

fn writing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal");
    group.throughput(Throughput::Bytes(SET_BYTES));
    group.bench_function("append 4 MiB in 4 KiB extents", |bencher| {
        let mut rig = Rig::new();
        bencher.iter_custom(|times| {
            let timed = (0..times).map(|seed| {
                let records = rig.records(seed);
                let started = Instant::now();
                rig.append(&records);
                started.elapsed()
            });
            timed.sum()
        });
    });
    group.bench_function("sync after 4 MiB", |bencher| {
        let prepared = |seed| {
            let mut rig = Rig::new();
            let records = rig.records(seed);
            rig.append(&records);
            rig
        };
        bencher.iter_custom(|times| alone(times, prepared, |rig| drop(rig.journal.sync().expect("durable"))));
    });
    group.bench_function("apply 4 MiB, all of it touched for the first time", |bencher| {
        let prepared = |seed| {
            let mut rig = Rig::new();
            rig.set(seed);
            rig
        };
        bencher.iter_custom(|times| alone(times, prepared, Rig::apply));
    });
    group.bench_function("apply 4 MiB, undo there already", |bencher| {
        let prepared = |seed| {
            let mut rig = Rig::new();
            rig.set(seed);
            rig.apply();
            rig.set(seed);
            rig
        };
        bencher.iter_custom(|times| alone(times, prepared, Rig::apply));
    });
    group.finish();
}

fn reading(criterion: &mut Criterion) {
    let mut rig = Rig::new();
    for seed in 0..8 {
        rig.set(seed);
        rig.apply();
    }
    let mut group = criterion.benchmark_group("point");
    let point = |set: &str| rig.journal.resolve(set).expect("a point");
    let open = |set| PointReader::over(Arc::clone(&rig.journal), rig.disks.clone(), &point(set)).expect("a reader");
    group.bench_function("map of 8 sets with 8192 extents", |bencher| bencher.iter(|| open("1")));
    group.throughput(Throughput::Elements(FRAMES * EXTENTS));
    // At point 1 the blocks of its own set come from the redo, those of later sets from the undo.
    for (name, seed) in [("look up and read 4 KiB, in the redo", 0), ("look up and read 4 KiB, in the undo", 7)] {
        let (mut reader, places) = (open("1"), places(seed));
        let mut block = [0; 4096];
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for &sector in &places {
                    reader.read(0, sector * 512, &mut block).expect("content");
                }
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3));
    targets = writing, reading
}
criterion_main!(benches);
