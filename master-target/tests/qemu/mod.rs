//! QEMU's tools, and a datastore with one target for them to judge.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::{
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use blockio::{BufPool, EngineKind};
use master_target::{
    target::{Datastore, DiskIo, Opened, TargetError, TargetSpec, open_or_create_within},
    vmdk::DiskKind,
};

pub fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program} is needed (qemu-utils): {e}"))
}

/// Runs a tool that must succeed, and returns what it prints.
pub fn succeeds(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

pub struct Fixture {
    folder: tempfile::TempDir,
    kind: DiskKind,
}

impl Fixture {
    /// Missing targets are made of this kind.
    pub fn of(kind: DiskKind) -> Self {
        Fixture { folder: tempfile::tempdir().unwrap(), kind }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn open(&self, size: Option<u64>) -> Result<Opened, TargetError> {
        let datastores = [Datastore { name: "ds1".to_owned(), path: self.folder.path().to_owned() }];
        let spec = TargetSpec::parse("[ds1] os.vmdk").unwrap();
        open_or_create_within(&spec, &datastores, size, self.kind, Duration::ZERO)
    }

    /// What `qemu-io` says to a write of 4 KiB to the image; `None` when it has written.
    pub fn refusal_of_a_write(&self, image: &str, format: &str) -> Option<String> {
        let output = run("qemu-io", &["-f", format, "-c", "write -P 0x77 0 4k", &self.text(image)]);
        if output.status.success() { None } else { Some(String::from_utf8(output.stderr).unwrap()) }
    }
}

pub fn io() -> DiskIo {
    DiskIo::new(EngineKind::Auto, 8, BufPool::new(1 << 20)).unwrap()
}
