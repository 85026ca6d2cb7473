//! A small file system of its own for the tests that fill a volume, make it read-only or take it away; unmounted when it
//! is dropped.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// An ext4 file system in a file, mounted at a folder; needs root.
pub struct Mounted {
    /// Where it is mounted.
    pub path: PathBuf,
    image: PathBuf,
    _folder: tempfile::TempDir,
}

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {args:?} is needed, as root: {error}");
}

impl Mounted {
    /// Makes one of `mib` MiB and mounts it at `path`, which is made where it is missing.
    pub fn new(path: &Path, mib: u64) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        run("mkfs.ext4", &["-q", "-m", "0", &image.to_string_lossy()]);
        let mounted = Self { path: path.to_owned(), image, _folder: folder };
        mounted.mount();
        mounted
    }

    /// Mounts it.
    pub fn mount(&self) {
        run("mount", &["-o", "loop", &self.image.to_string_lossy(), &self.path.to_string_lossy()]);
    }

    /// Takes it away. Nobody may have a file of it open.
    pub fn unmount(&self) {
        run("umount", &[&self.path.to_string_lossy()]);
    }

    /// The file system meets an error and stays read-only until it is mounted again.
    pub fn fail(&self) {
        run("mount", &["-o", "remount,abort", &self.path.to_string_lossy()]);
    }

    /// Bytes that can still be written.
    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.path).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Leaves only so many bytes free; the file that takes the others is removed with [`Mounted::make_room`].
    pub fn fill(&self, leave: u64) {
        let ballast = std::fs::File::create(self.path.join("ballast")).unwrap();
        let len = self.free_bytes().saturating_sub(leave);
        rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, len).unwrap();
    }

    /// Removes what [`Mounted::fill`] put there.
    pub fn make_room(&self) {
        std::fs::remove_file(self.path.join("ballast")).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazy: a test that fails leaves an agent behind that still has files open.
        let done = Command::new("umount").arg("--lazy").arg(&self.path).output();
        if !std::thread::panicking() {
            assert!(done.is_ok_and(|done| done.status.success()), "{} stays mounted", self.path.display());
        }
    }
}
