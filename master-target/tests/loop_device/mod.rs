//! A loop device for the tests that need a block device; detached when it is dropped.

use std::{path::PathBuf, process::Command};

/// A loop device with sectors of 4 KiB, on which no single sector of 512 bytes can be written directly.
pub struct LoopDevice {
    /// The device.
    pub path: PathBuf,
    _folder: tempfile::TempDir,
}

impl LoopDevice {
    /// A device of `size` bytes that reads as zeroes; needs root.
    pub fn new(size: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        let losetup = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", "4096", "--direct-io=on"])
            .arg(&image)
            .output()
            .expect("losetup is needed: install util-linux");
        let error = String::from_utf8_lossy(&losetup.stderr);
        assert!(losetup.status.success(), "a loop device is needed, as root: {error}");
        LoopDevice { path: String::from_utf8(losetup.stdout).unwrap().trim().into(), _folder: folder }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays attached", self.path.display());
    }
}
