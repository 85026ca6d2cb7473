//! A file system on a protected disk, mounted on this host: nbdfuse makes the export a file, a loop device a block device.
//!
//! For kernels without an NBD client. Needs root; everything goes away on drop, in reverse order.

use std::path::{Path, PathBuf};

use crate::nbdfuse::NbdFuse;
use crate::tool;

/// See the module's documentation.
pub struct FileSystem {
    folder: PathBuf,
    device: PathBuf,
    is_mounted: bool,
    /// Ends last.
    _fuse: NbdFuse,
}

impl FileSystem {
    /// Makes an ext4 file system on the export at `uri` and mounts it. `folder` must not exist.
    ///
    /// # Panics
    /// If it can't.
    #[track_caller]
    #[must_use]
    pub fn make(uri: &str, folder: &Path) -> Self {
        let made = Self::attach(uri, folder);
        let device = made.device.to_string_lossy().into_owned();
        tool::run("mkfs.ext4", ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", &device]).ok();
        made.mounted()
    }

    /// Mounts the file system that is on the export at `uri`.
    ///
    /// # Panics
    /// If it can't.
    #[track_caller]
    #[must_use]
    pub fn open(uri: &str, folder: &Path) -> Self {
        Self::attach(uri, folder).mounted()
    }

    #[track_caller]
    fn mounted(mut self) -> Self {
        tool::run("mount", [&*self.device, &*self.path()]).ok();
        self.is_mounted = true;
        self
    }

    fn attach(uri: &str, folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join("mounted")).expect("a folder");
        let fuse = NbdFuse::show(uri, &folder.join("export"));
        let shown = tool::run("losetup", ["--find", "--show", &fuse.path().to_string_lossy()]).ok();
        let device = PathBuf::from(shown.stdout.trim());
        Self { folder: folder.to_owned(), device, is_mounted: false, _fuse: fuse }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.join("mounted")
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let say = |output: tool::Output| {
            if output.code != Some(0) {
                eprintln!("left behind: {output:?}");
            }
        };
        if self.is_mounted {
            say(tool::run("umount", [self.path()]));
        }
        say(tool::run("losetup", [Path::new("--detach"), &self.device]));
    }
}
