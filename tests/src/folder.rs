//! The folder of a test. It goes with all that is in it, file systems that are still mounted there included: a test that
//! fails, or whose site ends before its volumes, leaves nothing behind.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::tool;

/// See the module's documentation.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    /// A new one in `parent`.
    ///
    /// # Panics
    /// If it can't be made.
    #[track_caller]
    #[must_use]
    pub fn inside(parent: &Path) -> Self {
        Self(tempfile::Builder::new().prefix("backhaul-").tempdir_in(parent).expect("a temporary folder"))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for path in mounted_below(self.path()) {
            unmount(&path);
        }
    }
}

/// Takes a file system out of sight, if one is mounted there; it is gone when nobody has a file of it open any more.
pub fn unmount(path: &Path) {
    if mounted_below(path).iter().any(|mounted| mounted == path) {
        let done = tool::run("umount", ["--lazy", &path.to_string_lossy()]);
        if done.code != Some(0) {
            eprintln!("left behind: {done:?}");
        }
    }
}

/// Where file systems are mounted at or below a path without blanks, the innermost first.
fn mounted_below(path: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    let points = all.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(path)).collect();
    below.reverse();
    below
}
