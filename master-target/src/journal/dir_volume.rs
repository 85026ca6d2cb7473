//! The volume of a running agent: one folder of the retention volume per group.
//!
//! It holds a lock on the file `lock` in the folder for as long as it lives, so that two agents never write one
//! journal. At open every file is synced and dropped from the page cache: what a journal then reads is what the disk
//! holds, not what an earlier process hoped to have written (rules J8 and J13).

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::Advice;

use super::volume::{PLACED, Volume, VolumeError, VolumeResult};

/// Files kept open at a time: far below the usual limit of 1,024 descriptors of a process, above what a mount touches.
const OPEN_FILES_MAX: usize = 128;

const LOCK_FILE: &str = "lock";

/// A folder as a [`Volume`].
#[derive(Debug)]
pub struct DirVolume {
    folder: PathBuf,
    files: Mutex<HashMap<String, Arc<File>>>,
    _lock: File,
}

impl DirVolume {
    /// Opens the folder, which is made where it is missing, and locks it.
    pub fn open(folder: &Path) -> VolumeResult<Self> {
        let failed = |op, source| VolumeError { op, file: folder.display().to_string(), offset: None, source };
        blockio::durable::create_dir_all(folder)
            .map_err(|error| failed("make", io::Error::new(error.kind(), error)))?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(folder.join(LOCK_FILE)).map_err(|source| failed("lock", source))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => failed("lock", io::Error::other("another master-target is using this folder")),
            TryLockError::Error(source) => failed("lock", source),
        })?;
        let volume = Self { folder: folder.to_owned(), files: Mutex::default(), _lock: lock };
        volume.settle()?;
        Ok(volume)
    }

    /// Syncs what an earlier process left and forgets the cached copy of it.
    fn settle(&self) -> VolumeResult<()> {
        for name in self.list()? {
            let file = self.file(&name, "open")?;
            file.sync_all().map_err(|source| self.failed("sync", &name, None, source))?;
            rustix::fs::fadvise(&*file, 0, None, Advice::DontNeed)
                .map_err(|error| self.failed("drop the cache of", &name, None, error.into()))?;
        }
        Ok(())
    }

    fn failed(&self, op: &'static str, name: &str, offset: Option<u64>, source: io::Error) -> VolumeError {
        VolumeError { op, file: self.describe(name), offset, source }
    }

    fn file(&self, name: &str, op: &'static str) -> VolumeResult<Arc<File>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(name) {
            return Ok(file.clone());
        }
        let opened = options_of(name).open(self.folder.join(name));
        let file = Arc::new(opened.map_err(|source| self.failed(op, name, None, source))?);
        self.keep(&mut files, name, &file);
        Ok(file)
    }

    /// Makes room among those that are only read. A file that is being written stays open until it is finished: the
    /// kernel reports a failed write-back to the descriptors that were open when it happened.
    fn keep(&self, files: &mut HashMap<String, Arc<File>>, name: &str, file: &Arc<File>) {
        if files.len() >= OPEN_FILES_MAX {
            let idle = files.iter().find(|(name, file)| Arc::strong_count(file) == 1 && !is_written(name, file));
            if let Some(name) = idle.map(|(name, _)| name.clone()) {
                files.remove(&name);
            }
        }
        files.insert(name.to_owned(), file.clone());
    }

    fn sync_folder(&self, name: &str) -> VolumeResult<()> {
        let folder =
            File::open(&self.folder).map_err(|source| self.failed("sync the folder of", name, None, source))?;
        folder.sync_all().map_err(|source| self.failed("sync the folder of", name, None, source))
    }
}

/// Whether the file may have been written through this descriptor: its position moves with each append. Tables are
/// few, one for each disk, and stay open.
fn is_written(name: &str, file: &File) -> bool {
    use std::io::Seek;
    let mut file = file;
    name.starts_with(PLACED) || file.stream_position().map_or(true, |position| position > 0)
}

/// How a file is opened. What is appended to can't be overwritten by mistake.
fn options_of(name: &str) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).mode(0o600);
    if name.starts_with(PLACED) {
        options.write(true)
    } else {
        options.append(true)
    };
    options
}

impl Volume for DirVolume {
    fn create(&self, name: &str) -> VolumeResult<()> {
        let file = options_of(name)
            .create_new(true)
            .open(self.folder.join(name))
            .map_err(|source| self.failed("make", name, None, source))?;
        self.sync_folder(name)?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        self.keep(&mut files, name, &Arc::new(file));
        Ok(())
    }

    fn append(&self, name: &str, bytes: &[u8]) -> VolumeResult<()> {
        let file = self.file(name, "append to")?;
        (&*file).write_all(bytes).map_err(|source| self.failed("append to", name, None, source))
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> VolumeResult<()> {
        let file = self.file(name, "write to")?;
        file.write_all_at(bytes, offset).map_err(|source| self.failed("write to", name, Some(offset), source))
    }

    fn sync(&self, name: &str) -> VolumeResult<()> {
        let file = self.file(name, "sync")?;
        file.sync_data().map_err(|source| self.failed("sync", name, None, source))
    }

    fn finish(&self, name: &str) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn uncache(&self, name: &str, offset: u64, len: u64) {
        if let (Ok(file), Some(len)) = (self.file(name, "open"), NonZeroU64::new(len)) {
            // A hint: where it is not taken, the kernel drops the pages when it needs their memory.
            let _ = rustix::fs::fadvise(&*file, offset, Some(len), Advice::DontNeed);
        }
    }

    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> VolumeResult<()> {
        let file = self.file(name, "read")?;
        file.read_exact_at(buf, offset).map_err(|source| self.failed("read", name, Some(offset), source))
    }

    fn len(&self, name: &str) -> VolumeResult<u64> {
        let file = self.file(name, "measure")?;
        Ok(file.metadata().map_err(|source| self.failed("measure", name, None, source))?.len())
    }

    fn list(&self) -> VolumeResult<Vec<String>> {
        let failed = |source| self.failed("list", "", None, source);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_file = entry.file_type().map_err(failed)?.is_file();
            if let (true, Ok(name)) = (is_file, entry.file_name().into_string())
                && name != LOCK_FILE
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn remove(&self, name: &str) -> VolumeResult<()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        std::fs::remove_file(self.folder.join(name)).map_err(|source| self.failed("remove", name, None, source))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> VolumeResult<()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        blockio::durable::replace(&self.folder.join(name), bytes)
            .map_err(|error| self.failed("replace", name, None, io::Error::new(error.kind(), error)))
    }

    fn free_bytes(&self) -> VolumeResult<u64> {
        let stat = rustix::fs::statvfs(&self.folder)
            .map_err(|error| self.failed("measure the free space of", "", None, error.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn describe(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_read_back_and_listed_after_a_reopen() {
        let folder = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(folder.path()).unwrap();
        volume.create("redo-1").unwrap();
        volume.append("redo-1", b"one").unwrap();
        volume.append("redo-1", b"two").unwrap();
        volume.sync("redo-1").unwrap();
        volume.replace("manifest", b"m").unwrap();
        drop(volume);
        let volume = DirVolume::open(folder.path()).unwrap();
        let mut names = volume.list().unwrap();
        names.sort();
        assert_eq!(names, ["manifest", "redo-1"]);
        let mut buf = [0; 4];
        volume.read_at("redo-1", 1, &mut buf).unwrap();
        assert_eq!(&buf, b"netw");
        assert_eq!(volume.len("redo-1").unwrap(), 6);
        volume.remove("redo-1").unwrap();
        assert!(volume.read_at("redo-1", 0, &mut buf).is_err());
    }

    #[test]
    fn a_table_is_written_in_place_and_its_gaps_read_as_zeroes() {
        let folder = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(folder.path()).unwrap();
        let name = format!("{PLACED}1");
        volume.create(&name).unwrap();
        volume.write_at(&name, 6, b"six").unwrap();
        volume.write_at(&name, 1, b"one").unwrap();
        volume.sync(&name).unwrap();
        drop(volume);
        let volume = DirVolume::open(folder.path()).unwrap();
        volume.write_at(&name, 2, b"N").unwrap();
        let mut buf = [9; 9];
        volume.read_at(&name, 0, &mut buf).unwrap();
        assert_eq!(&buf, b"\0oNe\0\0six");
    }

    #[test]
    fn a_name_that_is_taken_is_not_created_again() {
        let folder = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(folder.path()).unwrap();
        volume.create("a").unwrap();
        assert!(volume.create("a").unwrap_err().to_string().contains("can't make"));
    }

    #[test]
    fn a_read_beyond_the_end_names_file_and_offset() {
        let folder = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(folder.path()).unwrap();
        volume.create("a").unwrap();
        let error = volume.read_at("a", 7, &mut [0; 1]).unwrap_err().to_string();
        assert!(error.contains("/a at offset 7"), "{error}");
    }

    #[test]
    fn a_second_agent_is_refused_until_the_first_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let first = DirVolume::open(folder.path()).unwrap();
        assert!(DirVolume::open(folder.path()).unwrap_err().to_string().contains("another master-target"));
        drop(first);
        DirVolume::open(folder.path()).unwrap();
    }

    #[test]
    fn more_files_than_descriptors_are_kept_can_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(folder.path()).unwrap();
        for i in 0..OPEN_FILES_MAX + 20 {
            volume.create(&i.to_string()).unwrap();
            volume.append(&i.to_string(), &[i as u8]).unwrap();
        }
        let mut byte = [0];
        volume.read_at("3", 0, &mut byte).unwrap();
        assert_eq!(byte, [3]);
    }
}
