//! A running agent for tests, with its folders, keys and configuration, and a history to judge it by.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use master_target::agent::RunError;
use proto::control::master_target_client::MasterTargetClient;
use proto::control::{
    FailbackReport, FailbackRequest, Point, PointsRequest, RestoreReport, RestoreRequest, StatusRequest,
    TargetGroupStatus,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::source::{Source, apply, data, zero};

pub const SIZES: [u64; 2] = [8 << 20, (1 << 20) + 512];

/// Folders, keys and configuration of one agent.
pub struct Site {
    folder: tempfile::TempDir,
    pub port: u16,
}

/// A port that is free, and that the kernel does not give to sockets that ask for any: sources do, between a stop and a
/// start of the agent.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id().wrapping_mul(31).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + (step % 20_000) as u16;
        if std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Site {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["retention", "ds1"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let pki = folder.path().join("pki");
        proto::pki::generate(&pki, "ps-1", "mt-1", &[]).unwrap();
        let port = free_port();
        let site = Self { folder, port };
        site.write_config("");
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the configuration: the group "web" with these further lines, and what `other_groups` says.
    pub fn write_config(&self, of_web: &str) {
        self.write_config_with(of_web, "");
    }

    /// As [`Site::write_config`], with further groups.
    pub fn write_config_with(&self, of_web: &str, other_groups: &str) {
        let here = self.folder.path().display();
        let text = format!(
            r#"name = "mt-1"
listen = "127.0.0.1:{port}"
state_dir = "{here}/state"
control = "{here}/control.sock"
retention = "{here}/retention"
[tls]
ca = "{here}/pki/ca.pem"
cert = "{here}/pki/mt-1.pem"
key = "{here}/pki/mt-1.key"
[[datastore]]
name = "ds1"
path = "{here}/ds1"
[[group]]
name = "web"
process_server = "ps-1"
retention = "24h"
{of_web}
[[group.disk]]
name = "d0"
target = "[ds1] web/d0.vmdk"
[[group.disk]]
name = "d1"
target = "{here}/d1.raw"
{other_groups}
"#,
            port = self.port
        );
        std::fs::write(self.path("mt.toml"), text).unwrap();
    }

    pub async fn start(&self) -> Agent {
        for _ in 0..500 {
            if let Some(agent) = self.try_start().await {
                return agent;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the agent does not start");
    }

    /// `None` while the socket of an agent that has just stopped in this process is not closed yet.
    pub async fn try_start(&self) -> Option<Agent> {
        let (stop, stops) = oneshot::channel();
        let config = self.path("mt.toml");
        let task = tokio::spawn(async move {
            let run = master_target::agent::run(&config, async {
                let _ = stops.await;
            });
            run.await
        });
        let socket = self.path("control.sock");
        loop {
            if task.is_finished() {
                let error = task.await.unwrap().unwrap_err();
                assert!(matches!(&error, RunError::Endpoint(_)), "{error}");
                return None;
            }
            match proto::uds::master_target(&socket).await {
                Ok(client) => return Some(Agent { client, stop, task }),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    pub async fn source(&self) -> Source {
        Source::connect(&self.path("pki"), "ps-1", "ps-1", self.port).await
    }

    pub fn target(&self, disk: usize) -> Vec<u8> {
        let name = ["ds1/web/d0-flat.vmdk", "d1.raw"][disk];
        std::fs::read(self.path(name)).unwrap()
    }
}

/// A running agent.
pub struct Agent {
    pub client: MasterTargetClient<Channel>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), RunError>>,
}

impl Agent {
    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }

    /// The group "web".
    pub async fn group(&mut self) -> TargetGroupStatus {
        let groups = self.client.status(StatusRequest {}).await.unwrap().into_inner().groups;
        groups.into_iter().find(|group| group.name == "web").unwrap()
    }

    /// Waits until the group is as `is` wants it.
    pub async fn until(&mut self, what: &str, is: impl Fn(&TargetGroupStatus) -> bool) -> TargetGroupStatus {
        let mut group = self.group().await;
        for _ in 0..3000 {
            if is(&group) {
                return group;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            group = self.group().await;
        }
        panic!("never {what}: {group:?}");
    }

    pub async fn points(&mut self) -> Vec<Point> {
        let request = PointsRequest { group: "web".to_owned() };
        self.client.points(request).await.unwrap().into_inner().points
    }

    pub async fn restore(&mut self, disk: &str, point: &str, to: &Path, format: &str) -> Result<RestoreReport, String> {
        let request = RestoreRequest {
            group: "web".to_owned(),
            disk: disk.to_owned(),
            point: point.to_owned(),
            to: to.to_string_lossy().into_owned(),
            format: format.to_owned(),
        };
        let stream = self.client.restore(request).await.map_err(|status| status.message().to_owned())?.into_inner();
        report_of(stream, |message| message.report).await
    }

    pub async fn failback(&mut self, point: Option<&str>, without_source: bool) -> Result<FailbackReport, String> {
        let request = FailbackRequest { group: "web".to_owned(), point: point.map(str::to_owned), without_source };
        let stream = self.client.failback(request).await.map_err(|status| status.message().to_owned())?.into_inner();
        report_of(stream, |message| message.report).await
    }
}

/// The report that ends the stream of a long command.
async fn report_of<M, R>(mut stream: tonic::Streaming<M>, report: impl Fn(M) -> Option<R>) -> Result<R, String> {
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                if let Some(report) = report(message) {
                    return Ok(report);
                }
            }
            Ok(None) => return Err("it ended without a report".to_owned()),
            Err(status) => return Err(status.message().to_owned()),
        }
    }
}

pub fn random_bytes(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u32::from(seed).wrapping_mul(2_654_435_761) + 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(next).collect()
}

pub fn empty() -> Vec<Vec<u8>> {
    SIZES.map(|size| vec![0; size as usize]).into()
}

/// Synchronises and sends four more sets; returns what the disks hold at each of the five points.
pub async fn history(source: &mut Source) -> Vec<Vec<Vec<u8>>> {
    source.open(&SIZES, 1, 1).await.unwrap();
    let mut disks = empty();
    let mut points = Vec::new();
    let bulk = vec![data(0, 0, random_bytes(1, 1 << 20)), data(0, 8192, random_bytes(2, 64 << 10)), zero(1, 0, 2048)];
    let rest = vec![data(0, 100, random_bytes(3, 1024)), data(1, 2048, random_bytes(4, 512))];
    apply(&mut disks, &bulk);
    apply(&mut disks, &rest);
    source.synchronise(bulk, rest).await;
    points.push(disks.clone());
    for number in 2..=5u8 {
        let extents = vec![
            data(0, 8 * u64::from(number), random_bytes(10 + number, 4096)),
            data(0, 8192 + u64::from(number), random_bytes(20 + number, 1536)),
            data(1, 0, random_bytes(30 + number, 8192)),
            zero(0, 512 * u64::from(number), 64),
        ];
        apply(&mut disks, &extents);
        let label = if number == 3 { "before upgrade" } else { "" };
        source.send_set(u64::from(number), extents, label, false).await;
        points.push(disks.clone());
    }
    points
}
