//! Keeps names inside a folder: [`inside`] turns a relative name into a path that lies below a datastore's folder, after
//! every symbolic link has been followed.
//!
//! The name's text has been checked (`vmdk::ExtentName`); this looks at what is on disk. A datastore is written by
//! administrators and hypervisors, not by the peers of this agent, so a link that is swapped between this check and the
//! open isn't guarded against.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::vmdk::ExtentName;

/// Why a name has no path below a folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A symbolic link leads out.
    #[error("{path} leads to {leads_to}, outside {folder}: replace the link by the file or folder itself")]
    LeadsOut {
        /// The named path.
        path: PathBuf,
        /// Where it leads.
        leads_to: PathBuf,
        /// The folder that it may not leave.
        folder: PathBuf,
    },
    /// A path can't be followed.
    #[error("can't follow {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
}

/// The path of `name` in `folder`, which lies below `root`; nothing on the way leads out of `root`.
///
/// What doesn't exist yet is returned below the deepest folder that does.
///
/// # Errors
/// A link leads out, dangles, or can't be followed.
pub fn inside(root: &Path, folder: &Path, name: &ExtentName) -> Result<PathBuf, FolderError> {
    let root = real_path(root)?;
    let mut path = real_path(folder)?;
    check(&root, folder, &path)?;
    for component in name.as_path().components() {
        let named = path.join(component);
        // A dangling link counts as existing: creating the file would create what it leads to.
        path = match fs::symlink_metadata(&named) {
            Ok(_) => real_path(&named)?,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => named.clone(),
            Err(source) => return Err(FolderError::Io { path: named, source }),
        };
        check(&root, &named, &path)?;
    }
    Ok(path)
}

fn check(root: &Path, named: &Path, real: &Path) -> Result<(), FolderError> {
    if real.starts_with(root) {
        return Ok(());
    }
    let (path, leads_to, folder) = (named.to_owned(), real.to_owned(), root.to_owned());
    Err(FolderError::LeadsOut { path, leads_to, folder })
}

fn real_path(path: &Path) -> Result<PathBuf, FolderError> {
    fs::canonicalize(path).map_err(|source| FolderError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn name(text: &str) -> ExtentName {
        ExtentName::parse(text).unwrap()
    }

    #[test]
    fn names_stay_below_the_folder_whether_they_exist_or_not() {
        let root = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(root.path()).unwrap();
        fs::create_dir(real.join("web")).unwrap();
        fs::write(real.join("web/os.vmdk"), "x").unwrap();
        for text in ["web/os.vmdk", "web/new.vmdk", "new/deep/os.vmdk", "os.vmdk"] {
            assert_eq!(inside(&real, &real, &name(text)).unwrap(), real.join(text));
        }
        assert_eq!(inside(&real, &real.join("web"), &name("x/y")).unwrap(), real.join("web/x/y"));
    }

    #[test]
    fn links_inside_the_folder_are_followed() {
        let root = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(root.path()).unwrap();
        fs::create_dir(real.join("5f3a")).unwrap();
        symlink("5f3a", real.join("web")).unwrap();
        assert_eq!(inside(&real, &real, &name("web/os.vmdk")).unwrap(), real.join("5f3a/os.vmdk"));
    }

    #[test]
    fn links_that_lead_out_of_the_folder_are_refused() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("os.vmdk"), "x").unwrap();
        symlink(outside.path(), root.path().join("web")).unwrap();
        symlink(outside.path().join("os.vmdk"), root.path().join("os.vmdk")).unwrap();
        for text in ["web/os.vmdk", "web/new.vmdk", "web/a/b.vmdk", "os.vmdk"] {
            let refused = inside(root.path(), root.path(), &name(text));
            assert!(matches!(refused, Err(FolderError::LeadsOut { .. })), "{text}: {refused:?}");
        }
        let folder_outside = inside(root.path(), outside.path(), &name("os.vmdk"));
        assert!(matches!(folder_outside, Err(FolderError::LeadsOut { .. })));
    }

    #[test]
    fn dangling_links_and_missing_folders_are_refused() {
        let root = tempfile::tempdir().unwrap();
        symlink("/nonexistent/os.vmdk", root.path().join("os.vmdk")).unwrap();
        assert!(matches!(inside(root.path(), root.path(), &name("os.vmdk")), Err(FolderError::Io { .. })));
        let missing = root.path().join("missing");
        assert!(matches!(inside(&missing, &missing, &name("os.vmdk")), Err(FolderError::Io { .. })));
        fs::write(root.path().join("file"), "x").unwrap();
        assert!(matches!(inside(root.path(), root.path(), &name("file/os.vmdk")), Err(FolderError::Io { .. })));
    }
}
