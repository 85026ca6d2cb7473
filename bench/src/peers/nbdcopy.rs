//! nbdcopy to nbdkit over TLS with client certificates, and an fsync at the end: a full copy over an encrypted link.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::link::Link;
use crate::outcome::Outcome;
use crate::peers::{free_port, sparse, sync, tls};
use crate::process::{self, Server};

/// Copies `disk` into a new file in `folder`.
pub fn run(folder: &Path, disk: &Path, link: &Link, within: Duration) -> Result<Outcome> {
    let (keys, copy, bytes) = (tls::keys(folder)?, folder.join("copy.img"), disk.metadata()?.len());
    sparse(&copy, bytes)?;
    let ready = folder.join("nbdkit.pid");
    let address = format!("{}:{}", link.target_address(), free_port()?);
    let (host, port) = address.rsplit_once(':').unwrap_or((&address, ""));
    let mut command = process::command(link.target(), "nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--ipaddr", host, "--port", port, "--pidfile"]).arg(&ready);
    command.args(["--tls=require", "--tls-verify-peer"]).arg(format!("--tls-certificates={}", keys.display()));
    command.arg("file").arg(&copy);
    let mut server = Server::start(command)?;
    server.wait_until("listens", || ready.exists())?;

    let mut command = process::command(link.source(), "nbdcopy");
    command.arg("--flush").arg(disk).arg(format!("nbds://{address}/?tls-certificates={}", keys.display()));
    let (sent, started) = (link.sent_bytes(), Instant::now());
    process::run(command, within)?;
    sync(&copy)?;
    let seconds = started.elapsed().as_secs_f64();
    let wire_bytes = link.sent_bytes().zip(sent).map(|(now, then)| now - then);
    drop(server);
    crate::agents::same(disk, "raw", &copy, "raw")?;
    Ok(Outcome {
        seconds: Some(seconds),
        content_bytes: Some(bytes),
        wire_bytes,
        link_use: link.share(wire_bytes, seconds),
        ..Outcome::default()
    })
}
