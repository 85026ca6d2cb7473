//! Can this machine run the configuration? Looks at files and folders, changes nothing.
//!
//! That a source is free and has a usable size is found out when it is opened and locked; this is
//! about mistakes in the file, told with their line.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use proto::config::{ConfigError, NbdAddress, Source, Spanned};

use super::{file, values};

/// Checks everything that exists, or should.
pub(super) fn check(file: &file::File, source: &Source) -> Result<(), ConfigError> {
    for tls in std::iter::once(&file.tls).chain(&file.nbd_tls) {
        for (path, key) in [(&tls.ca, "ca"), (&tls.cert, "cert"), (&tls.key, "key")] {
            check_pem(source, path, key)?;
        }
    }
    let state = check_folder(source, &file.state_dir, file.state_dir.get_ref(), "state_dir")?;
    let mut own = vec![("state_dir", file.state_dir.get_ref().as_path(), state)];
    if let Some(at) = &file.cache_dir {
        own.push(("cache_dir", at.get_ref(), check_folder(source, at, at.get_ref(), "cache_dir")?));
    }
    check_parent(source, &file.control, file.control.get_ref(), "control")?;

    let mut identities = HashMap::new();
    for (_, disk) in file.group.iter().flat_map(file::Group::disks) {
        let found = check_source(source, &disk.source)?;
        let path = disk.source.get_ref();
        let twice = || format!("{} is the source of two disks", path.display());
        values::unique(source, &mut identities, Identity::of(&found), &disk.source, twice)?;
        for (key, folder, on) in &own {
            check_apart(source, &disk.source, &found, (key, folder, on))?;
        }
        if let NbdAddress::Unix(socket) = disk.nbd.get_ref() {
            check_parent(source, &disk.nbd, socket, "nbd")?;
        }
    }
    Ok(())
}

/// What tells one disk from another, whatever the path.
#[derive(PartialEq, Eq, Hash)]
enum Identity {
    Device(u64),
    File { device: u64, inode: u64 },
}

impl Identity {
    fn of(found: &Metadata) -> Self {
        if found.file_type().is_block_device() {
            Self::Device(found.rdev())
        } else {
            Self::File { device: found.dev(), inode: found.ino() }
        }
    }
}

fn check_pem(source: &Source, at: &Spanned<PathBuf>, key: &str) -> Result<(), ConfigError> {
    let path = at.get_ref();
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(source.invalid(at, format!("{key}: {} is not a file", path.display()), "name a PEM file")),
        Err(error) => {
            let remedy = "make it with `master-target pki`, or correct the path";
            Err(source.invalid(at, format!("{key}: {}: {error}", path.display()), remedy))
        }
    }
}

fn check_source(source: &Source, at: &Spanned<PathBuf>) -> Result<Metadata, ConfigError> {
    let path = at.get_ref();
    let found = fs::metadata(path).map_err(|error| {
        let remedy = "correct the path, or attach the disk before the agent starts";
        source.invalid(at, format!("source: {}: {error}", path.display()), remedy)
    })?;
    if found.is_file() || found.file_type().is_block_device() {
        return Ok(found);
    }
    let what = format!("source: {} is neither a file nor a block device", path.display());
    Err(source.invalid(at, what, "name the disk itself, such as /dev/sdb or /path/disk.raw"))
}

/// The folder, or the nearest one above it that exists: the agent makes the rest.
fn check_folder<T>(source: &Source, at: &Spanned<T>, path: &Path, key: &str) -> Result<Metadata, ConfigError> {
    let refused = |what: String, remedy: &str| Err(source.invalid(at, what, remedy));
    for folder in path.ancestors() {
        match fs::metadata(folder) {
            Ok(found) if !found.is_dir() => {
                return refused(format!("{key}: {} is not a folder", folder.display()), "choose another path");
            }
            Ok(found) if found.permissions().readonly() => {
                let remedy = "give the agent's user the right to write there, or choose another path";
                return refused(format!("{key}: {} can't be written to", folder.display()), remedy);
            }
            Ok(found) => return Ok(found),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                let remedy = "correct the path or its permissions";
                return refused(format!("{key}: {}: {error}", folder.display()), remedy);
            }
        }
    }
    refused(format!("{key}: {} has no folder above it", path.display()), "write an absolute path")
}

fn check_parent<T>(source: &Source, at: &Spanned<T>, path: &Path, key: &str) -> Result<(), ConfigError> {
    match path.parent() {
        Some(parent) => check_folder(source, at, parent, key).map(drop),
        None => Err(source.invalid(at, format!("{key}: {} is not a file name", path.display()), "add a file name")),
    }
}

/// Rule S21: what the agent writes must not change a disk that it protects.
fn check_apart(
    source: &Source,
    at: &Spanned<PathBuf>,
    found: &Metadata,
    (key, folder, on): (&str, &Path, &Metadata),
) -> Result<(), ConfigError> {
    let path = at.get_ref();
    if found.file_type().is_block_device() && found.rdev() == on.dev() {
        let what = format!("{key} {} lies on the protected disk {}", folder.display(), path.display());
        return Err(source.invalid(at, what, format!("put {key} on another disk")));
    }
    if path.starts_with(folder) {
        let what = format!("the protected disk {} lies in {key}", path.display());
        return Err(source.invalid(at, what, "keep disks out of the agent's own folders"));
    }
    Ok(())
}
