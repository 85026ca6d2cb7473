//! A small file system of its own for the tests that fill a volume, make it fail or take it away; unmounted when it is
//! dropped. It needs root: tests that use it say so with `#[ignore = "needs root: loop devices"]`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::folder::unmount;
use crate::site::SYNC_MAX;
use crate::{image, tool, wait};

/// An ext4 file system in a file, mounted at a folder.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    image: PathBuf,
}

impl Mounted {
    /// Makes one of `mib` MiB in the file `image` and mounts it at `path`, which is made where it is missing.
    ///
    /// # Panics
    /// If it can't be made or mounted.
    #[track_caller]
    #[must_use]
    pub fn new(image: &Path, path: &Path, mib: u64) -> Self {
        fs::create_dir_all(path).expect("a folder");
        image::create(image, mib << 20);
        tool::run("mkfs.ext4", ["-q", "-m", "0", &image.to_string_lossy()]).ok();
        let mounted = Self { path: path.to_owned(), image: image.to_owned() };
        mounted.mount();
        mounted
    }

    /// Mounts it.
    #[track_caller]
    pub fn mount(&self) {
        tool::run("mount", ["-o", "loop", &self.image.to_string_lossy(), &self.path.to_string_lossy()]).ok();
    }

    /// Takes it out of sight; it is gone when nobody has a file of it open any more.
    #[track_caller]
    pub fn unmount(&self) {
        tool::run("umount", ["--lazy", &self.path.to_string_lossy()]).ok();
    }

    /// Waits until nobody has a file of it open, and takes it away.
    #[track_caller]
    pub fn unmount_when_free(&self) {
        wait::until("the volume to be let go", SYNC_MAX, || {
            let done = tool::run("umount", [&self.path]);
            if done.code == Some(0) { Ok(()) } else { Err(done) }
        });
    }

    /// The file system meets an error: from now on it is read-only, until it is mounted again.
    #[track_caller]
    pub fn fail(&self) {
        tool::run("mount", ["-o", "remount,abort", &self.path.to_string_lossy()]).ok();
    }

    /// Leaves only so many bytes free; the file that takes the others is removed with [`Mounted::make_room`].
    ///
    /// # Panics
    /// If the file can't be made.
    pub fn fill(&self, leave: u64) {
        let stat = rustix::fs::statvfs(&self.path).expect("a file system");
        let ballast = fs::File::create(self.path.join("ballast")).expect("a file");
        // The file's own records take blocks as well: as many bytes as there is room for.
        let mut len = (stat.f_bavail * stat.f_frsize).saturating_sub(leave);
        while let Err(error) = rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, len) {
            assert_eq!(error, rustix::io::Errno::NOSPC, "the ballast can't be made");
            len = len.checked_sub(stat.f_frsize).expect("room for one block");
        }
    }

    /// Removes what [`Mounted::fill`] put there.
    ///
    /// # Panics
    /// If it can't be removed.
    pub fn make_room(&self) {
        fs::remove_file(self.path.join("ballast")).expect("the ballast goes");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}
