//! Servers that export a raw file over NBD on a unix socket: what a guest's writes cost elsewhere.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process::{self, Server};

/// A running server.
#[derive(Debug)]
pub struct Export {
    /// Its process.
    pub server: Server,
    socket: PathBuf,
}

impl Export {
    /// What fio connects to.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///web/disk0?socket={}", self.socket.display())
    }
}

/// qemu-nbd past the page cache, with io_uring: as close to the tap as it can be had.
pub fn qemu_nbd(folder: &Path, disk: &Path) -> Result<Export> {
    let socket = folder.join("qemu-nbd.sock");
    let mut command = process::command(None, "qemu-nbd");
    command.args(["--format=raw", "--cache=none", "--aio=io_uring", "--discard=unmap", "--persistent", "--shared=8"]);
    command.args(["--export-name=web/disk0", "--socket"]).arg(&socket).arg(disk);
    Ok(Export { server: Server::start(command)?.on_unix(&socket)?, socket })
}

/// nbdkit on the file, through the page cache.
pub fn nbdkit_file(folder: &Path, disk: &Path) -> Result<Export> {
    nbdkit(folder, &["file", &disk.to_string_lossy()])
}

/// nbdkit without a disk: the ceiling of the protocol.
pub fn nbdkit_null(folder: &Path, bytes: u64) -> Result<Export> {
    nbdkit(folder, &["null", &bytes.to_string()])
}

fn nbdkit(folder: &Path, plugin: &[&str]) -> Result<Export> {
    let (socket, ready) = (folder.join("nbdkit.sock"), folder.join("nbdkit.pid"));
    let mut command = process::command(None, "nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--pidfile"]).arg(&ready);
    command.arg("--unix").arg(&socket).args(plugin);
    // It complains of a connection that comes only to look; its file is there when it listens.
    let mut server = Server::start(command)?;
    server.wait_until("listens", || ready.exists())?;
    Ok(Export { server, socket })
}
