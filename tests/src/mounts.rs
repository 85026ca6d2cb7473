//! Mounts of a site's points, as an operator makes and ends them.

use std::path::PathBuf;

use serde_json::Value;

use crate::nbd::{Address, Connection};
use crate::site::{GROUP, Site};
use crate::tool;

/// A mount as its command told.
pub struct Mounted {
    /// What `unmount` takes.
    pub id: String,
    /// For each disk.
    pub uris: Vec<String>,
    /// Of its listener.
    pub socket: PathBuf,
}

/// Where a mount of this name listens.
#[must_use]
pub fn socket(site: &Site, name: &str) -> PathBuf {
    site.path().join("run").join(format!("{name}.sock"))
}

/// Mounts a point at the socket of this name.
///
/// # Panics
/// If it is refused.
#[track_caller]
#[must_use]
pub fn mount(site: &Site, point: &str, name: &str, more: &[&str]) -> Mounted {
    let socket = socket(site, name);
    let nbd = format!("unix:{}", socket.display());
    let words = [&["mount", "--group", GROUP, "--point", point, "--nbd", &nbd], more].concat();
    let output = site.target.ask(&words).ok();
    let mut lines = output.stdout.lines().map(str::to_owned);
    let id = lines.next().expect("the id, in the first line");
    Mounted { id, uris: lines.collect(), socket }
}

/// Ends a mount; its socket goes.
///
/// # Panics
/// If it is refused, or leaves something behind.
#[track_caller]
pub fn unmount(site: &Site, mounted: &Mounted) {
    site.target.ask(&["unmount", &mounted.id]).ok();
    assert!(!mounted.socket.exists(), "the socket stays behind");
}

/// Copies an export into a file.
#[track_caller]
#[must_use]
pub fn copy(site: &Site, uri: &str, name: &str) -> PathBuf {
    let file = site.path().join(format!("{name}.raw"));
    tool::run("nbdcopy", [uri, &file.to_string_lossy()]).ok();
    file
}

/// A client of a mount.
///
/// # Panics
/// If it is not let in.
#[must_use]
pub fn open(mounted: &Mounted, export: &str) -> Connection {
    Connection::open(&Address::Unix(mounted.socket.clone()), export).expect("a mount can be opened")
}

/// `mounts` of `status --json`.
///
/// # Panics
/// If there is no such list.
#[track_caller]
#[must_use]
pub fn listed(site: &Site) -> Vec<Value> {
    site.target.status()["mounts"].as_array().expect("mounts is a list").clone()
}
