//! A small file system in place of a site's retention folder: to be filled, to fail, to be taken away. Needs root.

use std::path::Path;

use crate::site::{SYNC_MAX, Site};
use crate::{image, tool, wait};

/// An ext4 file system in a file, mounted for as long as this lives.
pub struct SmallVolume {
    folder: String,
    image: String,
}

impl SmallVolume {
    /// Makes one and mounts it, before the site is started.
    ///
    /// # Panics
    /// If it can't be mounted.
    #[track_caller]
    #[must_use]
    pub fn on(site: &Site, mebibytes: u64) -> Self {
        let text = |name: &str| site.path().join(name).to_string_lossy().into_owned();
        let volume = Self { folder: text("retention"), image: text("retention.image") };
        image::create(Path::new(&volume.image), mebibytes << 20);
        tool::run("mkfs.ext4", ["-q", "-m", "0", &volume.image]).ok();
        volume.mount();
        volume
    }

    /// Mounts it.
    ///
    /// # Panics
    /// If it can't be mounted.
    #[track_caller]
    pub fn mount(&self) {
        tool::run("mount", ["-o", "loop", &self.image, &self.folder]).ok();
    }

    /// The file system meets an error and stays read-only until it is mounted again.
    #[track_caller]
    pub fn fail(&self) {
        tool::run("mount", ["-o", "remount,abort", &self.folder]).ok();
    }

    /// Waits until nobody has a file of it open, and takes it away.
    #[track_caller]
    pub fn unmount(&self) {
        wait::until("the volume to be let go", SYNC_MAX, || {
            let done = tool::run("umount", [&self.folder]);
            if done.code == Some(0) { Ok(()) } else { Err(done) }
        });
    }
}

impl Drop for SmallVolume {
    fn drop(&mut self) {
        // Detached at once and gone with its last user: agents may still run when a test has failed.
        let _ = tool::run("umount", ["--lazy", &self.folder]);
    }
}
