//! The one place that replaces files: a file that is renamed is on the disk before its name is.
//!
//! For small state (configuration records, identity, marks). After a crash the file holds either
//! its old or its new content, never a mixture. A temporary file `.NAME.new` may be left behind; the
//! next replacement overwrites it. A symbolic link is replaced itself, not what it points to.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, LazyLock, Mutex, PoisonError};

use rustix::io::Errno;

use crate::error::IoError;
use crate::poison;

/// Durably gives `path` the content `bytes`: temporary file beside it, sync, rename, sync the folder.
///
/// Keeps mode and owner of the file that is replaced; a new file is readable by its owner alone.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), IoError> {
    let fresh = fresh_name(path)?;
    let _turn = Turn::of(&fresh);
    let written = write_fresh(path, &fresh, bytes).and_then(|()| rename(&fresh, path));
    if written.is_err() {
        // Nobody reads it, and the next replacement starts it anew: a failure to remove it is harmless.
        let _ = fs::remove_file(&fresh);
    }
    written?;
    sync_dir(parent(path))
}

/// Where a new file is made that [`publish`] then gives the name `path`.
pub fn unpublished(path: &Path) -> Result<PathBuf, IoError> {
    fresh_name(path)
}

/// Durably gives the file that was made at [`unpublished`] its name, never replacing another. Its content must be
/// synced: for files that are too large to be written by [`replace`].
pub fn publish(path: &Path) -> Result<(), IoError> {
    let fresh = fresh_name(path)?;
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(rustix::fs::CWD, &fresh, rustix::fs::CWD, path, flags) {
        Ok(()) => {}
        // A file system that can't promise it, such as NFS: the look before is the best there is.
        Err(Errno::INVAL | Errno::NOSYS) if path.symlink_metadata().is_err() => rename(&fresh, path)?,
        Err(Errno::INVAL | Errno::NOSYS) => return Err(IoError::new("create", path, Errno::EXIST)),
        Err(errno) => return Err(IoError::new("create", path, errno)),
    }
    sync_dir(parent(path))
}

/// Makes the names in the folder `path` durable: files created, renamed and removed in it.
pub fn sync_dir(path: &Path) -> Result<(), IoError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| IoError::new("sync the folder", path, source))
}

/// Durably creates the folder `path` and every missing one above it.
pub fn create_dir_all(path: &Path) -> Result<(), IoError> {
    let mut missing = Vec::new();
    let mut next = path;
    while !next.is_dir() {
        missing.push(next);
        next = parent(next);
    }
    for folder in missing.into_iter().rev() {
        match fs::create_dir(folder) {
            Ok(()) => {}
            // Another thread was first, or the path says "x/.".
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(error) => return Err(IoError::new("create the folder", folder, error)),
        }
        sync_dir(parent(folder))?;
    }
    Ok(())
}

/// The folder that holds `path`; for a bare name the current one.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

fn fresh_name(path: &Path) -> Result<PathBuf, IoError> {
    let Some(name) = path.file_name() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
        return Err(IoError::new("replace", path, source));
    };
    let mut fresh = std::ffi::OsString::from(".");
    fresh.push(name);
    fresh.push(".new");
    Ok(path.with_file_name(fresh))
}

fn write_fresh(path: &Path, fresh: &Path, bytes: &[u8]) -> Result<(), IoError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(fresh)?;
        match fs::symlink_metadata(path) {
            Ok(old) if old.is_file() => {
                let new = file.metadata()?;
                if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
                    fchown(&file, Some(old.uid()), Some(old.gid()))?;
                }
                file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
            }
            _ => file.set_permissions(fs::Permissions::from_mode(0o600))?,
        }
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| IoError::new("write", fresh, source))
}

#[expect(clippy::disallowed_methods, reason = "this is the durable rename")]
fn rename(fresh: &Path, path: &Path) -> Result<(), IoError> {
    fs::rename(fresh, path).map_err(|source| IoError::new("replace", path, source))
}

/// Two threads that replace one file take turns, because they share the temporary name.
struct Turn(PathBuf);

static BUSY: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);
static FREED: Condvar = Condvar::new();

impl Turn {
    fn of(fresh: &Path) -> Self {
        let mut busy = poison::lock(&BUSY);
        while !busy.insert(fresh.to_owned()) {
            busy = FREED.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        Self(fresh.to_owned())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        poison::lock(&BUSY).remove(&self.0);
        FREED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_replaced_file_has_the_new_content_its_old_mode_and_no_neighbour() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        replace(&path, b"one").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        replace(&path, b"two, longer").unwrap();
        replace(&path, b"3").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"3");
        assert_eq!(mode(&path), 0o644);
        assert_eq!(names_in(folder.path()), ["state"]);
    }

    #[test]
    fn what_a_crash_left_behind_does_not_leak_into_the_next_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::write(folder.path().join(".state.new"), b"half of something longer").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names_in(folder.path()), ["state"]);
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file_and_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x"), b"x").unwrap();
        let error = replace(&path, b"new").unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(names_in(folder.path()), ["taken"]);
        assert!(replace(&folder.path().join("no/such/folder"), b"").is_err());
        assert!(replace(Path::new("/"), b"").is_err());
    }

    #[test]
    fn a_link_planted_at_the_temporary_name_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, b"precious").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join(".state.new")).unwrap();
        assert!(replace(&folder.path().join("state"), b"new").is_err());
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn a_published_file_never_replaces_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(unpublished(&path).unwrap(), b"first").unwrap();
        publish(&path).unwrap();
        assert_eq!((names_in(folder.path()), fs::read(&path).unwrap()), (vec!["disk".to_owned()], b"first".to_vec()));
        fs::write(unpublished(&path).unwrap(), b"second").unwrap();
        assert_eq!(publish(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn threads_replacing_one_file_leave_one_whole_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        std::thread::scope(|scope| {
            for writer in 0..4u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..5 {
                        replace(path, &vec![writer; 1000 * (1 + usize::from(writer))]).unwrap();
                    }
                });
            }
        });
        let content = fs::read(&path).unwrap();
        assert_eq!(content.len(), 1000 * (1 + usize::from(content[0])));
        assert!(content.iter().all(|&byte| byte == content[0]));
    }

    #[test]
    fn folders_are_created_down_to_the_last_and_existing_ones_are_fine() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        create_dir_all(&deep).unwrap();
        create_dir_all(&deep).unwrap();
        assert!(deep.is_dir());
        fs::write(folder.path().join("file"), b"").unwrap();
        assert!(create_dir_all(&folder.path().join("file/x")).is_err());
    }
}
