//! The peers, as a good administrator would run them. Each is started for one run and is gone after it.
//!
//! `exports` serve a disk to fio as the tap does; `nbdcopy`, `mirror`, `rsync` and `zstd_pipe` bring a disk to another place
//! as the agents do, over the same link and until it is durable there. `tls` gives them the agents' kind of keys.

pub mod exports;
pub mod mirror;
pub mod nbdcopy;
pub mod rsync;
pub mod tls;
pub mod zstd_pipe;

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result};

/// A file of this size, all holes, for a peer that wants its target to be there.
fn sparse(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(bytes).with_context(|| format!("{bytes} bytes for {}", path.display()))
}

/// What all copies end with: the target is durable.
fn sync(path: &Path) -> Result<()> {
    File::open(path)?.sync_all().with_context(|| format!("sync {}", path.display()))
}

/// A port that nobody uses. In a namespace made for this run every port is free as well.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
