//! Makes a new sparse disk: one file, whole before it has its name.
//!
//! A crash leaves at worst a temporary file that the next attempt starts anew.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use blockio::{IoError, SECTOR, durable};

use super::{Header, map::Directory};

/// Durably makes the disk of `header` at `path`, with `descriptor` inside; never replaces a file.
///
/// # Errors
/// There is a file at `path`, or the file system refuses.
pub fn create_sparse(path: &Path, header: &Header, descriptor: &str) -> Result<(), IoError> {
    let fresh = durable::unpublished(path)?;
    let made = write(&fresh, header, descriptor)
        .map_err(|source| IoError::new("write", &fresh, source))
        .and_then(|()| durable::publish(path));
    if made.is_err() {
        // Nobody reads it, and the next attempt starts it anew: a failure to remove it is harmless.
        let _ = std::fs::remove_file(&fresh);
    }
    made
}

fn write(fresh: &Path, header: &Header, descriptor: &str) -> io::Result<()> {
    assert!(descriptor.len() as u64 <= header.descriptor_sectors * SECTOR, "the descriptor of one file is small");
    match std::fs::remove_file(fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(fresh)?;
    file.set_len(header.overhead * SECTOR)?;
    let [directory, redundant] = Directory::of_new_disk(header).to_bytes();
    file.write_all(&header.to_bytes())?;
    let mut put = |sector: u64, bytes: &[u8]| {
        file.seek(SeekFrom::Start(sector * SECTOR))?;
        file.write_all(bytes)
    };
    put(header.descriptor_at, descriptor.as_bytes())?;
    if let Some(at) = header.redundant_at {
        put(at, &redundant)?;
    }
    put(header.directory_at, &directory)?;
    file.sync_all()
}
