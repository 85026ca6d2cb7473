//! A journal on a simulated volume with simulated disks, that can be crashed and opened again.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::frame::{Compression, Decoder, Encoder, RawContent, RawExtent};
use proto::ids::{Counter, DiskIndex, Lineage, Phase};
use proto::record::Record;
use proto::replication::{DiskSpec, PartEnd, SealSet};
use proto::time::Timestamp;

use crate::apply::{Applier, MemDisks, Progress, Put};
use crate::journal::{
    Accepted, Fuse, History, Journal, JournalResult, MemVolume, Options, PhaseOpened, RecoveryRecord, Seeded, Sum,
    Turn, Verdict, Volume,
};
use crate::recover::{PointReader, Ranges};
use crate::retention::PointInfo;

pub const INSTANCE: [u8; 16] = [3; 16];

pub type MemReader = PointReader<MemVolume, MemDisks>;

pub struct Rig {
    pub fuse: Fuse,
    pub volume: MemVolume,
    pub disks: MemDisks,
    pub sizes: Vec<u64>,
    pub options: Options,
    pub journal: Arc<Journal<MemVolume>>,
    pub applier: Applier<MemVolume, MemDisks>,
    pub now: Timestamp,
    pub encoder: Encoder,
}

pub fn specs(sizes: &[u64]) -> Vec<DiskSpec> {
    let spec = |(i, size): (usize, &u64)| DiskSpec { name: format!("d{i}"), size: *size, logical_block: 512 };
    sizes.iter().enumerate().map(spec).collect()
}

pub fn options() -> Options {
    Options {
        generation_age: Duration::from_secs(3600),
        generation_bytes: 1 << 40,
        segment_bytes: 64 << 10,
        reserve_bytes: 0,
        identity: Some([5; 32]),
        ..Options::default()
    }
}

/// One extent of bytes that all have this value.
pub fn filled(disk: u32, sector: u64, sectors: u64, value: u8) -> RawExtent {
    data(disk, sector, vec![value; sectors as usize * 512])
}

pub fn data(disk: u32, sector: u64, bytes: Vec<u8>) -> RawExtent {
    let crc = blockio::crc32(&bytes);
    RawExtent { disk: DiskIndex(disk), sector, content: RawContent::Data { bytes: bytes.into(), crc } }
}

/// Bytes that do not compress, different for each seed.
pub fn noise_bytes(sectors: u64, seed: u64) -> Vec<u8> {
    let mut random = Seeded::new(seed);
    (0..sectors * 512).map(|_| random.below(256) as u8).collect()
}

/// One extent of such bytes.
pub fn noise(disk: u32, sector: u64, sectors: u64, seed: u64) -> RawExtent {
    data(disk, sector, noise_bytes(sectors, seed))
}

pub fn zeroes(disk: u32, sector: u64, sectors: u32) -> RawExtent {
    RawExtent { disk: DiskIndex(disk), sector, content: RawContent::Zero { sectors } }
}

pub fn sectors_of(extent: &RawExtent) -> u64 {
    match &extent.content {
        RawContent::Data { bytes, .. } => bytes.len() as u64 / 512,
        RawContent::Zero { sectors } | RawContent::Unreadable { sectors } => u64::from(*sectors),
    }
}

impl Rig {
    pub fn new(seed: u64, sizes: &[u64], options: Options) -> Self {
        let fuse = Fuse::default();
        let volume = MemVolume::new(seed, fuse.clone());
        let disks = MemDisks::new(sizes, seed ^ 77, fuse.clone());
        let now = Timestamp(1_000_000_000);
        let journal = Arc::new(Journal::open(volume.clone(), &specs(sizes), now, options.clone()).unwrap());
        let applier = Applier::over(journal.clone(), disks.clone());
        let sizes = sizes.to_vec();
        Self { fuse, volume, disks, sizes, options, journal, applier, now, encoder: Encoder::default() }
    }

    /// One disk of 1 MiB, and a phase that is open.
    pub fn streaming() -> Self {
        let rig = Self::new(1, &[1 << 20], options());
        rig.open(1);
        rig
    }

    pub fn open(&self, phase: u64) -> PhaseOpened {
        let opened = self.journal.open_phase(Phase(phase), 1, &INSTANCE).unwrap();
        self.journal.greet(Counter(0)).unwrap();
        opened
    }

    pub fn reopened(&self) -> JournalResult<Journal<MemVolume>> {
        self.volume.fail_syncs(0);
        self.volume.drop_cache();
        Journal::open(self.volume.clone(), &specs(&self.sizes), self.now, self.options.clone())
    }

    /// The process ends and another one opens the journal; with `power`, what was not synced is lost in part.
    pub fn crash(&mut self, power: bool) {
        if power {
            self.volume.lose_power();
            self.disks.lose_power();
        }
        self.fuse.replace();
        self.journal = Arc::new(self.reopened().unwrap());
        self.applier = Applier::over(self.journal.clone(), self.disks.clone());
    }

    pub fn record(&mut self, number: u64, part: u32, extents: &[RawExtent]) -> Record {
        let frame = self.encoder.encode(number, part, extents, Compression::Zstd(1)).unwrap();
        let whole = Bytes::from([&frame.head[..], &frame.payload[..]].concat());
        Record::parse(&whole).unwrap().0
    }

    pub fn seal_of(&self, phase: u64, number: u64, parts: u32, sectors: u64) -> SealSet {
        SealSet {
            group: "g".to_owned(),
            phase,
            number,
            parent: number - 1,
            parts,
            sectors,
            cut_time_us: self.now.0 + number * 1_000_000,
            is_point: true,
            ..Default::default()
        }
    }

    pub fn send_part(&mut self, phase: u64, number: u64, part: u32, extents: &[RawExtent]) -> Accepted {
        let record = self.record(number, part, extents);
        self.journal.append_frame(Phase(phase), number, &record).unwrap();
        let end = PartEnd { frames: 1, sectors: extents.iter().map(sectors_of).sum() };
        self.journal.end_part(Phase(phase), number, part, end).unwrap()
    }

    /// Sends a whole set in one part.
    pub fn send(&mut self, phase: u64, number: u64, extents: &[RawExtent]) {
        self.send_part(phase, number, 0, extents);
        let seal = self.seal_of(phase, number, 1, extents.iter().map(sectors_of).sum());
        self.journal.seal(seal).unwrap();
    }

    /// Sends a whole set and makes it durable.
    pub fn set(&mut self, phase: u64, number: u64, extents: &[RawExtent]) -> u64 {
        self.send(phase, number, extents);
        self.journal.sync().unwrap().last_set
    }

    /// Sends the set that ends a catching-up.
    pub fn rest(&mut self, phase: u64, number: u64, extents: &[RawExtent]) -> u64 {
        self.send_part(phase, number, 0, extents);
        let seal = self.seal_of(phase, number, 1, extents.iter().map(sectors_of).sum());
        self.journal.seal(SealSet { closes_bulk: true, ..seal }).unwrap();
        self.applier.sync_bulk().unwrap();
        self.journal.sync().unwrap().last_set
    }

    pub fn bulk(&mut self, extents: &[RawExtent]) {
        let record = self.record(0, 0, extents);
        let frame = Decoder::new().decode(&record).unwrap();
        self.applier.apply_bulk(&[frame]).unwrap();
    }

    pub fn apply_all(&mut self) {
        while self.applier.apply_next().unwrap() != Progress::Idle {}
    }

    /// Leaves only so many bytes free.
    pub fn fill(&self, leave: u64) {
        let used: u64 = self.volume.list().unwrap().iter().map(|name| self.volume.len(name).unwrap()).sum();
        self.volume.set_capacity(used + leave);
        self.journal.state().room = 0;
    }

    /// Puts a point onto the disks, for a rollback that was begun.
    pub fn put(&mut self, reader: &mut MemReader) {
        let put = self.applier.put_point(reader, &Ranges::default(), |_, _| ControlFlow::Continue(()));
        assert_eq!(put.unwrap(), Put::Done);
    }

    /// Leaves a failback, as one whose request was 77.
    pub fn turn(&self, record: Option<RecoveryRecord>, lineage: Option<Lineage>, history: History) {
        self.journal.turn(Turn { record, lineage, cancelled: Some(77), history }, self.now).unwrap();
    }

    pub fn rotate(&mut self) {
        self.now = self.now.plus(Duration::from_secs(7200));
        assert!(self.journal.rotate_if_due(self.now).unwrap());
    }

    pub fn point(&self, set: u64) -> PointInfo {
        self.journal.resolve(&set.to_string()).unwrap()
    }

    pub fn reader(&self, set: u64) -> MemReader {
        PointReader::over(self.journal.clone(), self.disks.clone(), &self.point(set)).unwrap()
    }

    /// A disk as it was at a point.
    pub fn image(&self, set: u64, disk: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.sizes[disk as usize] as usize];
        self.reader(set).read(disk, 0, &mut bytes).unwrap();
        bytes
    }

    /// The first byte of a sector of disk 0 as it was at a point.
    pub fn byte(&self, set: u64, sector: u64) -> u8 {
        let mut bytes = [0; 512];
        self.reader(set).read(0, sector * 512, &mut bytes).unwrap();
        bytes[0]
    }

    /// No block is taken for damaged, whatever was lost: each sum is that of what its disk holds (rule J11). Gives the blocks
    /// of which nothing is known.
    pub fn check_sums(&self) -> usize {
        let mut unknown = 0;
        for (disk, size) in (0..).zip(&self.sizes) {
            let sums = self.journal.sums(disk, 0, size.div_ceil(4096)).unwrap();
            let content = self.disks.content(disk);
            for (block, (sum, content)) in sums.iter().zip(content.chunks(4096)).enumerate() {
                assert_ne!(sum.judge(content), Verdict::Damaged, "block {block} of disk {disk} is taken for damaged");
                unknown += usize::from(*sum == Sum::UNKNOWN);
            }
        }
        unknown
    }

    pub fn point_sets(&self) -> Vec<u64> {
        self.journal.points().iter().map(|point| point.set.0).collect()
    }
}
