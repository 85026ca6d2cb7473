//! The harness judged first: its client, load and model against QEMU's NBD server, which nobody here wrote.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tests::guest::{Bounds, Model, Tick};
use tests::load::{Client, Load, Pace};
use tests::nbd::Address;
use tests::{image, random, wait};

const SIZE: u64 = 8 << 20;

/// Ends its server when it goes.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_model_accepts_a_disk_that_qemu_wrote_and_refuses_it_with_one_stale_sector() {
    let folder = tempfile::tempdir().expect("a folder");
    let (disk, socket) = (folder.path().join("disk.img"), folder.path().join("nbd.sock"));
    let file = image::create(&disk, SIZE);
    drop(file);
    let server = Command::new("qemu-nbd")
        .args(["--format=raw", "--persistent", "--shared=8", "--export-name=disk", "--detect-zeroes=off"])
        .arg(format!("--socket={}", socket.display()))
        .arg(&disk)
        .stdin(Stdio::null())
        .spawn();
    let server = Server(server.expect("qemu-nbd (Debian: qemu-utils)"));
    wait::until(
        "qemu-nbd to listen",
        Duration::from_secs(10),
        || if socket.exists() { Ok(()) } else { Err("no socket") },
    );

    let model = Arc::new(Model::new(&[SIZE]));
    let client = Client { address: Address::Unix(socket), export: "disk".into(), disk: 0, depth: 8 };
    let clients = vec![client; 3];
    // QEMU leaves the unaligned ends of a trim as they are.
    let pace = Pace { seed: random::seed(1), writes_per_second: 400, sectors_used: 4096, trims: false };
    let load = Load::start(&model, &clients, pace);
    load.wait_for_writes(400);
    let summary = load.stop();
    assert_eq!((summary.dropped, summary.refused.len()), (0, 0), "{summary:?}");
    drop(server);

    let mut bytes = image::read(&disk);
    let bounds = Bounds { must_hold_before: model.now(), nothing_after: Tick::MAX };
    let verdict = model.judge(&[&bytes], bounds).expect("QEMU keeps its promises");
    assert!(verdict.data_sectors > 100, "the load wrote something: {verdict:?}");

    let stale = bytes.chunks_exact(512).position(|sector| sector.iter().any(|&byte| byte != 0)).expect("data");
    bytes[stale * 512..][..512].fill(0);
    if model.judge(&[&bytes], bounds).is_ok() {
        // A zero may have been written beside it at the same time; then content from elsewhere must be refused.
        bytes[stale * 512..][..512].fill(7);
        model.judge(&[&bytes], bounds).expect_err("a sector that nobody wrote");
    }
}
