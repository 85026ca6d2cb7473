//! Makes a new sparse disk: one file, whole before it has its name.
//!
//! A crash leaves at worst a temporary file that the next attempt starts anew. It is locked while it is made, so that of two
//! agents that make one disk neither publishes what the other has half written.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom, Write as _},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
};

use blockio::{IoError, LockRole, SECTOR, durable, lock_file};

use super::{Header, map::Directory};
use crate::vmdk::CreateError;

/// Durably makes the disk of `header` at `path`, with `descriptor` inside; never replaces a file.
///
/// # Errors
/// There is a file at `path`, another agent makes one, or the file system refuses.
pub fn create_sparse(path: &Path, header: &Header, descriptor: &str) -> Result<(), CreateError> {
    let fresh = durable::unpublished(path)?;
    let failed = |op| {
        let fresh = &fresh;
        move |source: io::Error| IoError::new(op, fresh, source)
    };
    remove_leftover(&fresh)?;
    let file =
        File::options().read(true).write(true).create_new(true).mode(0o600).open(&fresh).map_err(failed("create"))?;
    lock_file(file.as_fd(), &fresh, LockRole::TargetExtent)?;
    let made = write(&file, header, descriptor).map_err(failed("write")).and_then(|()| durable::publish(path));
    if made.is_err() {
        // It is ours, nobody reads it, and the next attempt starts it anew: a failure to remove it is harmless.
        let _ = std::fs::remove_file(&fresh);
    }
    made.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CreateError::Exists(path.to_owned()),
        _ => CreateError::Io(error),
    })
}

/// Removes what a crash has left, unless somebody is at it.
fn remove_leftover(fresh: &Path) -> Result<(), CreateError> {
    let failed = |source| IoError::new("remove the leftover", fresh, source);
    // Not followed if it is a link: then opening it fails, and it stays.
    let opened =
        File::options().read(true).write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(fresh);
    match opened {
        Ok(file) => {
            lock_file(file.as_fd(), fresh, LockRole::TargetExtent)?;
            match std::fs::remove_file(fresh) {
                // Published by whoever had it a moment ago.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => Ok(removed.map_err(failed)?),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error).into()),
    }
}

fn write(mut file: &File, header: &Header, descriptor: &str) -> io::Result<()> {
    assert!(descriptor.len() as u64 <= header.descriptor_sectors * SECTOR, "the descriptor of one file is small");
    file.set_len(header.overhead * SECTOR)?;
    let [directory, redundant] = Directory::of_new_disk(header).to_bytes();
    let mut put = |sector: u64, bytes: &[u8]| {
        file.seek(SeekFrom::Start(sector * SECTOR))?;
        file.write_all(bytes)
    };
    put(0, &header.to_bytes())?;
    put(header.descriptor_at, descriptor.as_bytes())?;
    if let Some(at) = header.redundant_at {
        put(at, &redundant)?;
    }
    put(header.directory_at, &directory)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_is_started_anew_and_one_that_is_being_made_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("os.vmdk");
        let header = Header::of_new_disk(2048).unwrap();
        let fresh = durable::unpublished(&path).unwrap();
        std::fs::write(&fresh, "half of a disk").unwrap();
        let maker = File::options().read(true).write(true).open(&fresh).unwrap();
        lock_file(maker.as_fd(), &fresh, LockRole::TargetExtent).unwrap();
        assert!(matches!(create_sparse(&path, &header, "text"), Err(CreateError::Lock(_))));
        assert_eq!(std::fs::read(&fresh).unwrap(), b"half of a disk");
        drop(maker);
        create_sparse(&path, &header, "text").unwrap();
        assert_eq!(Header::parse(&std::fs::read(&path).unwrap()).unwrap(), header);
        assert!(matches!(create_sparse(&path, &header, "text"), Err(CreateError::Exists(_))));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
