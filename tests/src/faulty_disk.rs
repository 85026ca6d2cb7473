//! A disk of the source that fails when it is told to: nbdkit's error filter below, nbdfuse makes a file of it.
//!
//! Unlike a device that is full or too short, it fails any request, at random, and is well again when the fault is over.
//! Needs root; everything goes away on drop, in reverse order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::nbdfuse::NbdFuse;
use crate::{image, tool, wait};

const APPEARS_WITHIN: Duration = Duration::from_secs(20);

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reads.
    Read,
    /// Writes of data.
    Write,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct FaultyDisk {
    folder: PathBuf,
    fuse: NbdFuse,
    /// Ends after it.
    _server: Server,
}

#[derive(Debug)]
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        tool::end(&mut self.0);
    }
}

impl FaultyDisk {
    /// One of `size` bytes in `folder`, which must not exist. While a fault lasts, `percent` of its requests fail with EIO.
    ///
    /// # Panics
    /// If it can't be made.
    #[track_caller]
    #[must_use]
    pub fn new(folder: &Path, size: u64, percent: u32) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        image::create(&folder.join("backing.img"), size);
        let socket = folder.join("socket");
        let mut server = Command::new("nbdkit");
        server.args(["--foreground", "--exit-with-parent", "--filter=error", "--unix"]).arg(&socket);
        server.arg("file").arg(folder.join("backing.img"));
        for request in [Request::Read, Request::Write] {
            let name = request.name();
            server.arg(format!("error-{name}=EIO")).arg(format!("error-{name}-rate={percent}%"));
            server.arg(format!("error-{name}-file={}", trigger(folder, request).display()));
        }
        let mut server = server.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("nbdkit");
        wait::until("nbdkit to listen", APPEARS_WITHIN, || {
            assert!(server.try_wait().expect("its state").is_none(), "nbdkit has ended");
            fs::metadata(&socket)
        });
        let fuse = NbdFuse::show(&format!("nbd+unix:///?socket={}", socket.display()), &folder.join("shown"));
        Self { folder: folder.to_owned(), fuse, _server: Server(server) }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.fuse.path()
    }

    /// Requests of this kind fail from now on.
    ///
    /// # Panics
    /// If it can't be said.
    pub fn fail(&self, request: Request) {
        fs::write(trigger(&self.folder, request), "").expect("the trigger");
    }

    /// And do no more.
    ///
    /// # Panics
    /// If it can't be said.
    pub fn mend(&self, request: Request) {
        fs::remove_file(trigger(&self.folder, request)).expect("the trigger goes");
    }
}

impl Request {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "pread",
            Self::Write => "pwrite",
        }
    }
}

fn trigger(folder: &Path, request: Request) -> PathBuf {
    folder.join(request.name())
}
