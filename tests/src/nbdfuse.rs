//! An NBD export as a file on this host, for kernels without an NBD client. Needs root; it goes away on drop.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{tool, wait};

/// How long it may take to show its file.
const APPEARS_WITHIN: Duration = Duration::from_secs(20);

/// See the module's documentation.
#[derive(Debug)]
pub struct NbdFuse {
    folder: PathBuf,
    process: Child,
}

impl NbdFuse {
    /// Shows the export at `uri` in `folder`, which is made where it is missing.
    ///
    /// # Panics
    /// If it can't.
    #[track_caller]
    #[must_use]
    pub fn show(uri: &str, folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("a folder");
        let process = Command::new("nbdfuse").arg(folder).arg(uri).stdin(Stdio::null()).spawn();
        let mut shown = Self { folder: folder.to_owned(), process: process.expect("nbdfuse") };
        wait::until("nbdfuse to show the export", APPEARS_WITHIN, || {
            assert!(shown.process.try_wait().expect("its state").is_none(), "nbdfuse has ended");
            std::fs::metadata(shown.folder.join("nbd"))
        });
        shown
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.join("nbd")
    }
}

impl Drop for NbdFuse {
    fn drop(&mut self) {
        // SIGTERM makes it unmount itself.
        tool::end(&mut self.process);
    }
}
