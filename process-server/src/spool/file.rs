//! Makes the file of a group's spool: new, empty, without a name.
//!
//! It loses its name as soon as it is open, so nothing of it is left when the agent ends, however it does. Making it may
//! block on a volume that hangs: it is done on a thread of its own, never on that of a group.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockio::{BlockFile, IoError, durable};
use proto::ids::GroupName;

use super::limits::SPOOL_UNIT;

/// Why there is no spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolFileError {
    /// The folder can't be made.
    #[error("{0}")]
    Folder(IoError),
    /// The file can't be made, opened, written or read back.
    #[error("{0}")]
    Io(#[from] IoError),
    /// The file can't lose its name, or an old one can't be removed.
    #[error("can't remove {}: {source}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// What was written is not what is read.
    #[error("{} gives back other bytes than were written to it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// Makes the spool of `group` in `cache_dir`, `size` bytes at most, and shows that it can be written and read.
///
/// # Errors
/// `SpoolFileError` when the volume is not usable.
pub fn make_file(cache_dir: &Path, group: &GroupName, size: u64) -> Result<Arc<BlockFile>, SpoolFileError> {
    durable::create_dir_all(cache_dir).map_err(SpoolFileError::Folder)?;
    let path = cache_dir.join(format!("{group}.spool"));
    remove(&path)?;
    let made = BlockFile::create(&path, size / SPOOL_UNIT * SPOOL_UNIT).map_err(SpoolFileError::Io);
    let removed = remove(&path);
    let file = made?;
    removed?;
    try_out(&file)?;
    Ok(Arc::new(file))
}

/// Removes the file if it is there: an agent that was killed at the wrong moment has left it.
fn remove(path: &Path) -> Result<(), SpoolFileError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SpoolFileError::Remove { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// A full or failing volume shows at the first write, not when a file is made.
fn try_out(file: &BlockFile) -> Result<(), SpoolFileError> {
    let written = [0x5a; SPOOL_UNIT as usize];
    let mut read = [0; SPOOL_UNIT as usize];
    file.write_all_at(&written, 0)?;
    file.sync()?;
    file.read_exact_at(&mut read, 0)?;
    if read != written {
        return Err(SpoolFileError::Damaged { path: file.path().to_owned() });
    }
    file.punch_hole(0, SPOOL_UNIT).or_else(|_| file.zero_range(0, SPOOL_UNIT))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> GroupName {
        "web".parse().unwrap()
    }

    #[test]
    fn the_file_has_no_name_and_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        std::fs::create_dir(&cache).unwrap();
        std::fs::write(cache.join("web.spool"), "of an earlier life").unwrap();
        let file = make_file(&cache, &group(), 1 << 20).unwrap();
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0);
        assert_eq!(file.size(), 1 << 20);
        let mut bytes = vec![1; 1 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_folder_that_is_none_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        std::fs::write(&path, "a file").unwrap();
        let error = make_file(&path, &group(), 1 << 20).unwrap_err().to_string();
        assert!(error.contains("cache"), "{error}");
    }
}
