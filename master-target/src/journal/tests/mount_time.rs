//! What it takes to open a point and read from it: pages of indexes, not the journal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proto::frame::{Compression, Encoder, RawExtent};
use proto::ids::Phase;
use proto::record::Record;
use proto::replication::{PartEnd, SealSet};
use proto::time::Timestamp;

use super::rig::{INSTANCE, data, noise_bytes, options, specs};
use crate::agent::Clock;
use crate::apply::{Applier, MemDisks, Progress};
use crate::journal::{DirVolume, Fuse, Journal, MemVolume, Options, Volume, VolumeResult};
use crate::recover::PointReader;

const DISK_BYTES: u64 = 256 << 20;
/// What each set writes, where nothing else is said.
const WRITE_BYTES: usize = 8192;

/// A volume that counts what is read.
struct Counting<V> {
    inner: V,
    reads: Arc<AtomicU64>,
}

impl<V: Volume> Volume for Counting<V> {
    fn create(&self, name: &str) -> VolumeResult<()> {
        self.inner.create(name)
    }
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> VolumeResult<()> {
        self.inner.write_at(name, offset, bytes)
    }
    fn append(&self, name: &str, bytes: &[u8]) -> VolumeResult<()> {
        self.inner.append(name, bytes)
    }
    fn sync(&self, name: &str) -> VolumeResult<()> {
        self.inner.sync(name)
    }
    fn finish(&self, name: &str) {
        self.inner.finish(name);
    }
    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> VolumeResult<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read_at(name, offset, buf)
    }
    fn len(&self, name: &str) -> VolumeResult<u64> {
        self.inner.len(name)
    }
    fn list(&self) -> VolumeResult<Vec<String>> {
        self.inner.list()
    }
    fn remove(&self, name: &str) -> VolumeResult<()> {
        self.inner.remove(name)
    }
    fn replace(&self, name: &str, bytes: &[u8]) -> VolumeResult<()> {
        self.inner.replace(name, bytes)
    }
    fn free_bytes(&self) -> VolumeResult<u64> {
        self.inner.free_bytes()
    }
    fn describe(&self, name: &str) -> String {
        self.inner.describe(name)
    }
}

/// A journal of so many sets, each a point that writes so much somewhere; all are applied, and all indexes are made.
struct Long<V> {
    journal: Arc<Journal<Counting<V>>>,
    disks: MemDisks,
    reads: Arc<AtomicU64>,
}

impl<V: Volume> Long<V> {
    fn new(inner: V, (sets, write_bytes): (u64, usize), options: Options) -> Self {
        let reads = Arc::new(AtomicU64::new(0));
        let volume = Counting { inner, reads: reads.clone() };
        let disks = MemDisks::new(&[DISK_BYTES], 1, Fuse::default());
        let mut now = Timestamp(1_000_000_000);
        let journal = Arc::new(Journal::open(volume, &specs(&[DISK_BYTES]), now, options).unwrap());
        let mut applier = Applier::over(journal.clone(), disks.clone());
        journal.open_phase(Phase(1), 1, &INSTANCE).unwrap();
        let noise = noise_bytes(4096, 1);
        let mut encoder = Encoder::default();
        for number in 1..=sets {
            let record = frame(&mut encoder, number, &noise, write_bytes);
            journal.append_frame(Phase(1), number, &record).unwrap();
            let sectors = (write_bytes / 512) as u64;
            journal.end_part(Phase(1), number, 0, PartEnd { frames: 1, sectors }).unwrap();
            let cut_time_us = now.0 + number * 1_000_000;
            let seal = SealSet {
                phase: 1,
                number,
                parent: number - 1,
                parts: 1,
                sectors,
                cut_time_us,
                is_point: true,
                ..Default::default()
            };
            journal.seal(seal).unwrap();
            if number.is_multiple_of(50) || number == sets {
                journal.sync().unwrap();
                while applier.apply_next().unwrap() != Progress::Idle {}
                now = now.plus(Duration::from_secs(50));
                journal.rotate_if_due(now).unwrap();
            }
        }
        while journal.build_index(|| false).unwrap() {}
        Self { journal, disks, reads }
    }

    /// Opens a point, reads 4 KiB of it, and says how many reads of the volume that took.
    fn open(&self, set: u64) -> u64 {
        let before = self.reads.load(Ordering::Relaxed);
        let point = self.journal.resolve(&set.to_string()).unwrap();
        let mut reader = PointReader::over(self.journal.clone(), self.disks.clone(), &point).unwrap();
        reader.read(0, 4096 * (set % 1000), &mut [0; 4096]).unwrap();
        self.reads.load(Ordering::Relaxed) - before
    }
}

fn frame(encoder: &mut Encoder, number: u64, noise: &[u8], write_bytes: usize) -> Record {
    let from = (number as usize * 4099) % (noise.len() - write_bytes);
    let block = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % ((DISK_BYTES - write_bytes as u64) / 4096);
    let extents: [RawExtent; 1] = [data(0, block * 8, noise[from..from + write_bytes].to_vec())];
    let frame = encoder.encode(number, 0, &extents, Compression::Off).unwrap();
    Record::parse(&Bytes::from([&frame.head[..], &frame.payload[..]].concat())).unwrap().0
}

#[test]
fn opening_a_point_reads_no_more_of_a_journal_that_is_ten_times_as_long() {
    let options = |sets| Options { generation_records: sets, segment_bytes: 1 << 20, ..options() };
    let volume = || MemVolume::new(1, Fuse::default());
    let (short, long) = (
        Long::new(volume(), (400, WRITE_BYTES), options(150)),
        Long::new(volume(), (4000, WRITE_BYTES), options(1500)),
    );
    let most = |long: &Long<MemVolume>, sets: u64| (1..5).map(|part| long.open(sets * part / 5)).max().unwrap();
    let (of_short, of_long) = (most(&short, 400), most(&long, 4000));
    // A segment has some 120 sets; the indexes of the long one have a page or two each.
    assert!(of_long <= of_short + 250, "{of_short} reads of 400 sets, {of_long} of 4,000");
    long.journal.state().indexes.clear();
    let without = most(&long, 4000);
    assert!(without > 4 * of_long, "without indexes it takes {without} reads, with them {of_long}");
}

/// `MOUNT_POINTS=100000 MOUNT_WRITE_KIB=100` with `--release --no-capture` measures: 100,000 points and 10 GiB of journal, in
/// the temporary folder. Then a point has to be there within a second.
#[test]
fn points_of_a_journal_in_a_folder_are_opened_with_and_without_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let sets = std::env::var("MOUNT_POINTS").map_or(2000, |text| text.parse().expect("a number"));
    let write_bytes =
        std::env::var("MOUNT_WRITE_KIB").map_or(WRITE_BYTES, |kib| kib.parse::<usize>().expect("KiB") << 10);
    let is_measured = std::env::var("MOUNT_POINTS").is_ok();
    let segment_bytes = (sets * (write_bytes as u64 + 1024) / 4).min(256 << 20);
    let options = Options { generation_records: sets / 10, segment_bytes, ..options() };
    let long = Long::new(DirVolume::open(folder.path()).unwrap(), (sets, write_bytes), options);
    let bytes = long.journal.stored_bytes();
    let generations = long.journal.state().manifest.generations.len();
    println!("{} MiB of journal, {sets} points, {generations} generations", bytes >> 20);
    let timed = |what: &str| -> u64 {
        let one = |set: u64| {
            let clock = Clock::start();
            let reads = long.open(set);
            let took = clock.elapsed();
            println!("{what}: point {set}: {took:?}, {reads} reads");
            assert!(!is_measured || !what.starts_with("with indexes") || took < Duration::from_secs(1), "{took:?}");
            reads
        };
        [sets / 100, sets / 2, sets - 5].map(one).into_iter().sum()
    };
    let with = timed("with indexes");
    assert!(timed("with indexes, again") <= with);
    long.journal.state().indexes.clear();
    assert!(timed("without indexes") > with);
}
