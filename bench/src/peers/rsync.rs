//! rsync to its daemon: with zstd at level 1 for a whole file, or in place with its rolling checksums for one that has
//! changed in part. It doesn't encrypt, which is to its advantage.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::link::Link;
use crate::outcome::Outcome;
use crate::peers::free_port;
use crate::process::{self, Server};

/// How it copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// A file that is not there yet, compressed.
    WholeCompressed,
    /// A file that is there, and differs a little.
    InPlace,
}

/// Copies `disk` to `copy`, which is durable then.
pub fn run(folder: &Path, disk: &Path, copy: &Path, how: How, link: &Link, within: Duration) -> Result<Outcome> {
    let place = copy.parent().unwrap_or(folder);
    let config = folder.join("rsyncd.conf");
    let user = if rustix::process::geteuid().is_root() { "uid = root\ngid = root\n" } else { "" };
    let text = format!("use chroot = no\n{user}[to]\npath = {}\nread only = no\n", place.display());
    fs::write(&config, text)?;
    let address = format!("{}:{}", link.target_address(), free_port()?);
    let (host, port) = address.rsplit_once(':').unwrap_or((&address, ""));
    let mut command = process::command(link.target(), "rsync");
    command.args(["--daemon", "--no-detach", "--address", host, "--port", port]);
    command.arg(format!("--config={}", config.display()));
    let server = Server::start(command)?.on_tcp(link.source(), &address)?;

    let mut command = process::command(link.source(), "rsync");
    match how {
        How::WholeCompressed => command.args(["--whole-file", "--compress-choice=zstd", "--compress-level=1"]),
        // Size and time may be the same after a change: content decides.
        How::InPlace => command.args(["--inplace", "--no-whole-file", "--ignore-times"]),
    };
    let name = copy.file_name().unwrap_or_default().to_string_lossy();
    command.arg("--fsync").arg(disk).arg(format!("rsync://{address}/to/{name}"));
    let (sent, started) = (link.sent_bytes(), Instant::now());
    process::run(command, within)?;
    let seconds = started.elapsed().as_secs_f64();
    let wire_bytes = link.sent_bytes().zip(sent).map(|(now, then)| now - then);
    drop(server);
    crate::agents::same(disk, "raw", copy, "raw")?;
    Ok(Outcome {
        seconds: Some(seconds),
        content_bytes: Some(disk.metadata()?.len()),
        wire_bytes,
        link_use: link.share(wire_bytes, seconds),
        ..Outcome::default()
    })
}
