//! A process-server for tests: speaks the protocol with a master-target, as far as one group needs it.
//!
//! It injects what a source sends, right or wrong; it judges nothing.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::Path;
use std::time::Duration;

use blockio::crc32;
use bytes::Bytes;
use proto::control_stream::{self, Receiver, Sender};
use proto::digest::{self, Differs};
use proto::frame::{Compression, EncodedFrame, Encoder, RawContent, RawExtent, split_frames};
use proto::ids::DiskIndex;
use proto::limits::PROTOCOL_VERSION;
use proto::part_stream::write_part;
use proto::replication::target_message::Body;
use proto::replication::{
    BeginBulk, CompareBlocks, CompareRun, DiskSpec, Fenced, GroupOpened, GroupRefused, Hello, OpenGroup, PartBegin,
    PartKind, SealSet, SourceMessage, TargetMessage,
};
use proto::tls::TlsPaths;

/// No answer takes longer on a loaded machine.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// Content for a disk.
pub fn data(disk: u32, sector: u64, bytes: Vec<u8>) -> RawExtent {
    let crc = crc32(&bytes);
    RawExtent { disk: DiskIndex(disk), sector, content: RawContent::Data { bytes: Bytes::from(bytes), crc } }
}

/// Zeroes for a disk.
pub fn zero(disk: u32, sector: u64, sectors: u32) -> RawExtent {
    RawExtent { disk: DiskIndex(disk), sector, content: RawContent::Zero { sectors } }
}

/// Does to a copy of the disks what the target has to do to its own.
pub fn apply(disks: &mut [Vec<u8>], extents: &[RawExtent]) {
    for extent in extents {
        let at = extent.sector as usize * 512;
        let disk = &mut disks[extent.disk.position()];
        match &extent.content {
            RawContent::Data { bytes, .. } => disk[at..at + bytes.len()].copy_from_slice(bytes),
            RawContent::Zero { sectors } => disk[at..at + *sectors as usize * 512].fill(0),
            RawContent::Unreadable { .. } => {}
        }
    }
}

/// A connected source.
pub struct Source {
    pub connection: quinn::Connection,
    pub greeting: Body,
    endpoint: quinn::Endpoint,
    sender: Sender<SourceMessage>,
    receiver: Receiver<TargetMessage>,
    pub phase: u64,
    /// The group that is spoken of.
    pub group: String,
    /// What the next seals say of the marks.
    pub marks: u64,
}

impl Source {
    /// Connects with the certificate of `name` in `pki` and says that it is `says`.
    pub async fn connect(pki: &Path, name: &str, says: &str, port: u16) -> Self {
        let paths = TlsPaths {
            ca: pki.join("ca.pem"),
            cert: pki.join(format!("{name}.pem")),
            key: pki.join(format!("{name}.key")),
        };
        let endpoint = proto::endpoint::client(&paths).unwrap();
        let connection = proto::endpoint::connect(&endpoint, &format!("127.0.0.1:{port}"), "mt-1").await.unwrap();
        let (mut sender, mut receiver) = control_stream::open(&connection).await.unwrap();
        let hello = Hello { version: PROTOCOL_VERSION, name: says.to_owned(), time_us: 0 };
        sender.send(hello).await.unwrap();
        let greeting = receiver.recv().await.unwrap().unwrap().body.unwrap();
        Self { connection, greeting, endpoint, sender, receiver, phase: 0, group: "web".to_owned(), marks: 0 }
    }

    pub async fn send(&mut self, message: impl Into<SourceMessage>) {
        self.sender.send(message).await.unwrap();
    }

    /// The next answer that `pick` wants; others are dropped. `None` when the connection ends first.
    pub async fn answer<T>(&mut self, mut pick: impl FnMut(Body) -> Option<T>) -> Option<T> {
        let picked = async {
            loop {
                let body = self.receiver.recv().await.ok()??.body?;
                if let Some(found) = pick(body) {
                    return Some(found);
                }
            }
        };
        tokio::time::timeout(ANSWER_TIME_MAX, picked).await.expect("an answer in time")
    }

    /// Opens the group in a phase.
    pub async fn open(&mut self, sizes: &[u64], phase: u64, start: u64) -> Result<GroupOpened, GroupRefused> {
        self.phase = phase;
        let spec = |(index, &size): (usize, &u64)| DiskSpec { name: format!("d{index}"), size, logical_block: 512 };
        let open = OpenGroup {
            group: self.group.clone(),
            phase,
            source_start: start,
            source_instance: vec![start as u8; 16],
            disks: sizes.iter().enumerate().map(spec).collect(),
            ..OpenGroup::default()
        };
        self.send(open).await;
        let answer = self.answer(|body| match body {
            Body::GroupOpened(opened) => Some(Ok(opened)),
            Body::GroupRefused(refused) => Some(Err(refused)),
            _ => None,
        });
        answer.await.expect("the connection stays")
    }

    /// Begins a catching-up.
    pub async fn begin_bulk(&mut self) {
        self.send(BeginBulk { group: self.group.clone(), phase: self.phase }).await;
        self.answer(|body| matches!(body, Body::BulkBegun(_)).then_some(())).await.unwrap();
    }

    /// Asks which units of these contents (disk, sector, bytes) differ; gives them with the counter of the answer. `None`
    /// where the connection is closed instead.
    pub async fn compare(&mut self, request: u32, contents: &[(u32, u64, &[u8])]) -> Option<(Vec<usize>, u64)> {
        let run = |&(disk, sector, bytes): &(u32, u64, &[u8])| CompareRun {
            disk,
            sector,
            sectors: (bytes.len() / 512) as u32,
            digests: digest::of_run(bytes),
        };
        let runs: Vec<CompareRun> = contents.iter().map(run).collect();
        let units = digest::units_of(&runs);
        let phase = self.phase;
        self.send(CompareBlocks { group: "web".to_owned(), phase, request, runs }).await;
        let answer = self.answer(|body| match body {
            Body::BlocksCompared(compared) if compared.request == request => Some(compared),
            _ => None,
        });
        let compared = answer.await?;
        let differs = Differs::from_bits(compared.differs, units).unwrap();
        Some(((0..units).filter(|unit| differs.contains(*unit)).collect(), compared.counter))
    }

    pub fn part_begin(&self, kind: PartKind, number: u64, part: u32) -> PartBegin {
        PartBegin { group: self.group.clone(), phase: self.phase, kind: kind.into(), number, part, marks: 0 }
    }

    pub async fn send_frames(&self, begin: &PartBegin, frames: Vec<EncodedFrame>) {
        let mut stream = self.connection.open_uni().await.unwrap();
        // The target may refuse it half-way; the tests look at what it says.
        let _ = write_part(&mut stream, begin, frames.into_iter()).await;
        let _ = stream.stopped().await;
    }

    /// Sends a part and waits until it is durable.
    pub async fn send_part(&mut self, begin: &PartBegin, extents: Vec<RawExtent>) {
        self.send_frames(begin, encode(begin, extents)).await;
        let part = begin.part;
        let wanted = begin.kind();
        let durable = |body| match body {
            Body::PartDurable(durable) => (durable.kind() == wanted && durable.part == part).then_some(()),
            _ => None,
        };
        self.answer(durable).await.expect("the part becomes durable");
    }

    /// Sends a whole set in one part and waits until it is durable.
    pub async fn send_set(&mut self, number: u64, extents: Vec<RawExtent>, label: &str, closes_bulk: bool) {
        let begin = self.part_begin(PartKind::Ordered, number, 0);
        let sectors = extents.iter().map(RawExtent::sectors).sum();
        let frames = encode(&begin, extents);
        let seal = SealSet {
            group: self.group.clone(),
            phase: self.phase,
            number,
            parent: number - 1,
            parts: 1,
            sectors,
            cut_time_us: 1_700_000_000_000_000 + number * 1_000_000,
            label: label.to_owned(),
            closes_bulk,
            is_point: true,
            marks: self.marks,
            ..SealSet::default()
        };
        // The seal may overtake its parts: every other set shows that.
        if number.is_multiple_of(2) {
            self.send(seal.clone()).await;
            self.send_frames(&begin, frames).await;
        } else {
            self.send_frames(&begin, frames).await;
            self.send(seal).await;
        }
        let durable = |body| match body {
            Body::SetDurable(durable) => (durable.number >= number).then_some(()),
            _ => None,
        };
        self.answer(durable).await.expect("the set becomes durable");
    }

    /// First synchronisation: bulk content, then the set that ends it.
    pub async fn synchronise(&mut self, bulk: Vec<RawExtent>, rest: Vec<RawExtent>) {
        self.begin_bulk().await;
        let begin = self.part_begin(PartKind::Bulk, 0, 0);
        self.send_part(&begin, bulk).await;
        self.send_set(1, rest, "", true).await;
    }

    /// Waits for a fence and answers it.
    pub async fn fence(&mut self, last_set: u64) {
        let request = self.answer(|body| match body {
            Body::FenceRequest(fence) => Some(fence.request),
            _ => None,
        });
        let request = request.await.expect("a fence is asked for");
        let fenced = Fenced { group: self.group.clone(), request, last_set, fenced_at_us: 1_700_000_000_000_000 };
        self.send(fenced).await;
    }

    /// Why the target closed the connection.
    pub async fn close_reason(&self) -> String {
        let closed = tokio::time::timeout(ANSWER_TIME_MAX, self.connection.closed()).await;
        proto::endpoint::explain(&closed.expect("it closes"), "127.0.0.1", "mt-1").to_string()
    }

    pub async fn close(self) {
        self.connection.close(0u32.into(), b"");
        self.endpoint.wait_idle().await;
    }
}

/// Frames of a part.
pub fn encode(begin: &PartBegin, extents: Vec<RawExtent>) -> Vec<EncodedFrame> {
    let mut encoder = Encoder::new();
    let frames = split_frames(extents.into_iter());
    let encode =
        |frame: &Vec<RawExtent>| encoder.encode(begin.number, begin.part, frame, Compression::Zstd(1)).unwrap();
    frames.iter().map(encode).collect()
}
