//! The agent as a whole, with groups that do no more than answer: control socket, NBD listeners, orderly end.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use nbd::Export;
use process_server::cli::{GroupArgs, GroupThread, SpawnedGroup, run};
use process_server::config::load_for_run;
use process_server::control::{Command, GroupState, Snapshot};
use proto::control::{PointRequest, StatusRequest};
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(30);

/// A group that answers points with its label, shows a state, and stops when told to.
fn spawn_group(mut args: GroupArgs) -> Result<SpawnedGroup, String> {
    assert!(args.state_dir.is_dir());
    let exports = args.config.disks.iter().map(|disk| Export {
        name: format!("{}/{}", args.config.name, disk.name),
        size: std::fs::metadata(&disk.source).unwrap().len(),
        description: String::new(),
        block_min: 512,
        block_preferred: 4096,
        block_max: 32 << 20,
        read_only: false,
    });
    let exports = exports.collect();
    let work = move || {
        let (waker, woken) = mpsc::sync_channel(1);
        args.wake.set(move || _ = waker.try_send(()));
        let mut snapshot = Snapshot::starting(now());
        snapshot.state = GroupState::Streaming;
        args.inbox.publish(snapshot);
        loop {
            while let Some(command) = args.inbox.try_recv() {
                match command {
                    Command::Point { order, reply } if order.label.as_deref() == Some("lost") => {
                        drop(reply.send(Err("its set was merged: the link is behind".to_owned())));
                    }
                    Command::Point { order, reply } => {
                        if let Some(frozen) = order.frozen {
                            _ = frozen.cut.send(());
                        }
                        _ = reply.send(Ok(order.label.unwrap_or_else(|| "17".to_owned())));
                    }
                    Command::Connection { connected, .. } => drop(connected),
                    Command::Stop => return Ok(()),
                    // Dropping its reply is the answer of a group that has ended.
                    Command::Verify { .. } => {}
                }
            }
            woken.recv().map_err(|_| "the agent is gone".to_owned())?;
        }
    };
    let thread = GroupThread::start("group".to_owned(), work).map_err(|error| error.to_string())?;
    Ok(SpawnedGroup { exports, thread })
}

#[expect(clippy::disallowed_methods, reason = "any moment will do")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn config(folder: &Path) -> std::path::PathBuf {
    proto::pki::generate(folder, "ps-1", "mt-1", &[]).unwrap();
    std::fs::write(folder.join("os.raw"), vec![0; 1 << 20]).unwrap();
    let dir = folder.display();
    let text = format!(
        r#"name = "ps-1"
state_dir = "{dir}/state"
control = "{dir}/run/control.sock"
[tls]
ca = "{dir}/ca.pem"
cert = "{dir}/ps-1.pem"
key = "{dir}/ps-1.key"
[master_target]
address = "127.0.0.1:9"
name = "mt-1"
[[group]]
name = "web"
[[group.disk]]
name = "os"
source = "{dir}/os.raw"
nbd = "unix:{dir}/run/os.sock"
"#
    );
    let path = folder.join("process-server.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_agent_answers_status_and_points_and_stops_on_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let config = load_for_run(&config(folder.path())).unwrap();
    let control = config.control.clone();
    let agent = tokio::spawn(run(config, spawn_group));
    let client = async {
        loop {
            match proto::uds::process_server(&control).await {
                Ok(client) => return client,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let mut client = tokio::time::timeout(PATIENCE, client).await.unwrap();

    let point = |group: &str, label: Option<&str>| PointRequest {
        group: group.to_owned(),
        label: label.map(str::to_owned),
        app_consistent: false,
    };
    assert_eq!(client.point(point("web", None)).await.unwrap().into_inner().id, "17");
    assert_eq!(client.point(point("web", Some("before upgrade"))).await.unwrap().into_inner().id, "before upgrade");
    let unknown = client.point(point("db", None)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("it has: web"), "{}", unknown.message());
    let mistakable = client.point(point("web", Some("latest"))).await.unwrap_err();
    assert_eq!(mistakable.code(), Code::InvalidArgument);
    let lost = client.point(point("web", Some("lost"))).await.unwrap_err();
    assert!(lost.message().contains("group web: its set was merged"), "{}", lost.message());

    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.name.as_str(), status.groups[0].state.as_str()), ("ps-1", "streaming"));
    let peer = status.peer.unwrap();
    assert_eq!((peer.name.as_str(), peer.connected), ("mt-1", false));
    assert!(folder.path().join("run/os.sock").exists());

    let id = std::process::id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    tokio::time::timeout(PATIENCE, agent).await.unwrap().unwrap().unwrap();
    assert!(!control.exists(), "the control socket is removed");
    assert!(proto::uds::process_server(&control).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_certificate_has_another_name_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path());
    let text = std::fs::read_to_string(&path).unwrap().replacen("name = \"ps-1\"", "name = \"ps-2\"", 1);
    std::fs::write(&path, text).unwrap();
    let error = run(load_for_run(&path).unwrap(), spawn_group).await.unwrap_err().to_string();
    assert!(error.contains("ps-1.pem: is a certificate for ps-1, not for ps-2"), "{error}");
    assert!(!folder.path().join("state").exists(), "nothing was made before the check");
}
