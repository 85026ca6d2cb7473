//! Loop devices that go away with their test. They need root: tests that use them say so with
//! `#[ignore = "needs root: loop devices"]`, and `make test` runs them when it is root.

use std::path::{Path, PathBuf};

use crate::tool;

/// An attached loop device; detached on drop.
#[derive(Debug)]
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// Attaches `file` to a free device with sectors of `sector_bytes`.
    ///
    /// # Panics
    /// If losetup can't.
    #[track_caller]
    #[must_use]
    pub fn attach(file: &Path, sector_bytes: u32) -> Self {
        let size = sector_bytes.to_string();
        let arguments = ["--find", "--show", "--direct-io=on", "--sector-size", &size, &file.to_string_lossy()];
        let shown = tool::run("losetup", arguments).ok();
        Self(PathBuf::from(shown.stdout.trim()))
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = tool::run("losetup", ["--detach", &self.0.to_string_lossy()]);
        if detached.code != Some(0) {
            eprintln!("left behind: {detached:?}");
        }
    }
}
