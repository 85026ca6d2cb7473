//! The near end: a link with groups that say what a test tells them.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use process_server::config::Schedule;
use process_server::control::WakeCell;
use process_server::send::{FromLink, GroupPort, Link, LinkConfig, PartJob, PeerView, ToLink, port};
use proto::control::PeerStatus;
use proto::frame::{Bases, Compression, Keep, RawContent, RawExtent};
use proto::ids::DiskIndex;
use proto::replication::{DiskSpec, OpenGroup, PartBegin, PartKind, SealSet};
use proto::tls::TlsPaths;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// Nothing in these tests takes this long unless it never happens.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct TestLink {
    pub peer: PeerView,
    pub stop: watch::Sender<bool>,
    pub task: JoinHandle<()>,
}

pub struct TestGroup {
    pub port: GroupPort,
    woken: Arc<Notify>,
}

/// Starts a link from "ps-1" to "mt-1" without a cap.
pub fn start<const N: usize>(tls: TlsPaths, address: &str, names: [&str; N]) -> (TestLink, [TestGroup; N]) {
    start_with(Schedule::default(), tls, address, names)
}

/// As [`start`], capped.
pub fn start_with<const N: usize>(
    schedule: Schedule,
    tls: TlsPaths,
    address: &str,
    names: [&str; N],
) -> (TestLink, [TestGroup; N]) {
    let mut ends = Vec::new();
    let groups = names.map(|name| {
        let (wake, woken) = (WakeCell::default(), Arc::new(Notify::new()));
        let notify = Arc::clone(&woken);
        wake.set(move || notify.notify_one());
        let (port, end) = port(name.parse().unwrap(), wake);
        ends.push(end);
        TestGroup { port, woken }
    });
    let config = LinkConfig {
        name: "ps-1".parse().unwrap(),
        address: address.parse().unwrap(),
        peer_name: "mt-1".parse().unwrap(),
        tls,
        schedule,
    };
    let link = Link::new(config, ends, || 0).unwrap();
    let peer = link.peer();
    let (stop, stopped) = watch::channel(false);
    (TestLink { peer, stop, task: tokio::spawn(link.run(stopped)) }, groups)
}

impl TestLink {
    /// The status, once it satisfies `wanted`.
    pub async fn status_when(&self, wanted: impl Fn(&PeerStatus) -> bool) -> PeerStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.peer.to_status(Instant::now());
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn error(&self) -> String {
        self.status_when(|status| status.last_error.is_some()).await.last_error.unwrap()
    }
}

impl TestGroup {
    pub async fn recv(&mut self) -> FromLink {
        let wait = async {
            loop {
                if let Some(message) = self.port.try_recv() {
                    return message;
                }
                self.woken.notified().await;
            }
        };
        timeout(PATIENCE, wait).await.expect("a message of the link")
    }

    /// Waits for a session, past the end of the old one.
    pub async fn up(&mut self) {
        while self.recv().await != FromLink::Up {}
    }

    pub async fn down(&mut self) -> String {
        loop {
            if let FromLink::Down { reason } = self.recv().await {
                return reason;
            }
        }
    }

    pub fn send(&mut self, message: ToLink) {
        self.port.try_send(message).unwrap();
    }
}

pub fn open(group: &str, phase: u64) -> OpenGroup {
    OpenGroup {
        group: group.to_owned(),
        phase,
        source_start: 1,
        source_instance: vec![7; 16],
        disks: vec![DiskSpec { name: "os".to_owned(), size: 1 << 30, logical_block: 512 }],
        lineage: Vec::new(),
        counter: 0,
    }
}

pub fn seal(group: &str, phase: u64, number: u64) -> SealSet {
    SealSet { group: group.to_owned(), phase, number, parent: number - 1, parts: 1, ..SealSet::default() }
}

/// One part whose content does not compress.
pub fn part(group: &str, kind: PartKind, phase: u64, number: u64, part: u32, bytes: usize) -> PartJob {
    let begin = PartBegin { group: group.to_owned(), phase, kind: kind.into(), number, part, marks: 0 };
    let extents = (0..bytes.div_ceil(1 << 20)).map(|index| {
        let len = (bytes - (index << 20)).min(1 << 20);
        data(index as u64 * 2048, noise().slice(..len))
    });
    PartJob { begin, extents: extents.collect(), level: Compression::Off, bases: Bases::default(), keep: Keep::Nothing }
}

pub fn data(sector: u64, bytes: Bytes) -> RawExtent {
    let crc = blockio::crc::crc32(&bytes);
    RawExtent { disk: DiskIndex(0), sector, content: RawContent::Data { bytes, crc } }
}

/// 1 MiB that does not compress, the same memory in each part.
fn noise() -> Bytes {
    static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut word = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        (0..(1 << 20) / 8).flat_map(|_| word()).collect()
    });
    NOISE.clone()
}
