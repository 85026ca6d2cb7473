//! Makes a new VMDK. Of a flat one the data files first, then the descriptor that makes them a disk; a sparse one is one
//! file and made by `sparse::create`.
//!
//! In this order a crash leaves at worst a data file that nothing names. The next attempt takes it over if it is
//! empty (no byte was ever allocated in it) and of the right size; one with content may be all that is left of
//! somebody's disk and is refused. The data files are locked while the descriptor appears.

use std::path::{Path, PathBuf};

use blockio::{Access, BlockFile, IoError, LockError, LockRole, durable};

use super::{
    DESCRIPTOR_BYTES_MAX, DiskKind, ExtentName, Header, NameError, NewDisk, NewExtent, compose::RANDOM_BYTES,
    sparse::create_sparse, split::extents_of_new_disk,
};

/// Why a VMDK can't be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is a file already.
    #[error("{0} exists already: a new disk never replaces a file; choose another name, or remove it yourself")]
    Exists(PathBuf),
    /// The path can't be a VMDK's.
    #[error("{path} can't be the name of a VMDK: {why}")]
    Name {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The name of the data file can't stand in a descriptor.
    #[error("{path} can't be the name of a VMDK: it {why}")]
    Flat {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: NameError,
    },
    /// A disk of no sectors, or of a broken one.
    #[error("a disk of {0} bytes can't be made: the size must be a multiple of 512, and not 0")]
    Size(u64),
    /// A kind that doesn't hold as much.
    #[error(
        "a {kind} disk of {size} bytes can't be made: it ends at about 2 TiB; choose the kind \"vmfs\" or \"monolithicFlat\""
    )]
    TooLarge {
        /// The kind.
        kind: DiskKind,
        /// What it should hold, in bytes.
        size: u64,
    },
    /// The file system refuses.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The new data file is used by somebody else.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No random numbers for the disk's ids.
    #[error("no random numbers for the new disk's ids: {0}")]
    Random(getrandom::Error),
}

/// Makes a monolithicFlat VMDK of `size` bytes that reads as zeroes: `path` and, beside it, `-flat.vmdk`.
///
/// # Errors
/// [`CreateError`]; no file that was there is touched.
pub fn create_vmdk(path: &Path, size: u64) -> Result<(), CreateError> {
    create(path, size, DiskKind::MonolithicFlat)
}

/// Makes a VMDK of a kind that can be a target; of these ESXi runs only [`DiskKind::Vmfs`].
///
/// # Errors
/// [`CreateError`]; no file that was there is touched.
pub fn create(path: &Path, size: u64, kind: DiskKind) -> Result<(), CreateError> {
    if size == 0 || !size.is_multiple_of(blockio::SECTOR) {
        return Err(CreateError::Size(size));
    }
    let stem = stem_of(path)?;
    if path.symlink_metadata().is_ok() {
        return Err(CreateError::Exists(path.to_owned()));
    }
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(CreateError::Random)?;
    let unfit = |why| CreateError::Flat { path: path.to_owned(), why };
    let too_large = || CreateError::TooLarge { kind, size };
    let sectors = size / blockio::SECTOR;
    let one = |name: String| -> Result<Vec<NewExtent>, CreateError> {
        Ok(vec![NewExtent { name: ExtentName::parse(&name).map_err(unfit)?, sectors }])
    };
    let extents = match kind {
        DiskKind::Vmfs | DiskKind::MonolithicFlat => one(format!("{stem}-flat.vmdk"))?,
        DiskKind::TwoGbMaxExtentFlat => extents_of_new_disk(stem, sectors).map_err(unfit)?.ok_or_else(too_large)?,
        DiskKind::MonolithicSparse => one(format!("{stem}.vmdk"))?,
        DiskKind::StreamOptimized => panic!("a streamOptimized disk is written as a whole, never as a target"),
    };
    let text = NewDisk::of_extents(kind, extents.clone(), random).text();
    if text.len() > DESCRIPTOR_BYTES_MAX {
        return Err(too_large());
    }
    if kind == DiskKind::MonolithicSparse {
        let header = Header::of_new_disk(sectors).ok_or_else(too_large)?;
        return create_sparse(path, &header, &text);
    }
    let mut data = Vec::with_capacity(extents.len());
    for extent in &extents {
        let file = path.with_file_name(extent.name.as_path());
        let file = create_or_adopt(&file, extent.sectors * blockio::SECTOR)?;
        file.lock(LockRole::TargetExtent)?;
        data.push(file);
    }
    // Looked at again under the locks, which exclude every other agent of this kind.
    if path.symlink_metadata().is_ok() {
        return Err(CreateError::Exists(path.to_owned()));
    }
    durable::replace(path, text.as_bytes())?;
    Ok(())
}

/// The data file of a new disk: `os.vmdk` gives `os-flat.vmdk`.
///
/// # Errors
/// The path doesn't end in `.vmdk`, or is that of a data file.
pub fn flat_path(path: &Path) -> Result<PathBuf, CreateError> {
    Ok(path.with_file_name(format!("{}-flat.vmdk", stem_of(path)?)))
}

/// The name of a descriptor without its ending.
fn stem_of(path: &Path) -> Result<&str, CreateError> {
    let refused = |why| CreateError::Name { path: path.to_owned(), why };
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| refused("it is no text"))?;
    let stem = name.strip_suffix(".vmdk").ok_or_else(|| refused("it must end in \".vmdk\""))?;
    if stem.is_empty() || stem.ends_with("-flat") {
        return Err(refused("it is the name of a disk's data file"));
    }
    Ok(stem)
}

/// Durably creates a sparse file; one of no bytes, which a crash in the midst of this leaves, is replaced.
///
/// # Errors
/// There is a file with a size, or the file system refuses.
pub(crate) fn create_file(path: &Path, size: u64) -> Result<BlockFile, IoError> {
    if path.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() == 0) {
        std::fs::remove_file(path).map_err(|source| IoError::new("replace the empty file", path, source))?;
    }
    BlockFile::create(path, size)
}

fn create_or_adopt(flat: &Path, size: u64) -> Result<BlockFile, CreateError> {
    match create_file(flat, size) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let file = BlockFile::open(flat, Access::ReadWrite)?;
            let empty = file.size() == size && file.allocated(0, size)?.iter().all(|run| !run.is_data);
            if empty { Ok(file) } else { Err(CreateError::Exists(flat.to_owned())) }
        }
        created => Ok(created?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_new_disk_is_a_descriptor_and_a_sparse_file_of_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("os.vmdk");
        create_vmdk(&path, 3 << 20).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("RW 6144 FLAT \"os-flat.vmdk\" 0"));
        assert_eq!(fs::metadata(folder.path().join("os-flat.vmdk")).unwrap().len(), 3 << 20);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn nothing_that_exists_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("os.vmdk");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(create_vmdk(&path, 512), Err(CreateError::Exists(p)) if p == path));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert!(!folder.path().join("os-flat.vmdk").exists());
    }

    #[test]
    fn an_empty_data_file_of_a_crashed_attempt_is_taken_over_and_one_with_content_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let flat = folder.path().join("os-flat.vmdk");
        drop(BlockFile::create(&flat, 1 << 20).unwrap());
        create(&folder.path().join("os.vmdk"), 1 << 20, DiskKind::Vmfs).unwrap();
        fs::remove_file(folder.path().join("os.vmdk")).unwrap();
        let other_size = create_vmdk(&folder.path().join("os.vmdk"), 2 << 20);
        assert!(matches!(other_size, Err(CreateError::Exists(p)) if p == flat));
        fs::write(&flat, "").unwrap();
        create_vmdk(&folder.path().join("os.vmdk"), 2 << 20).unwrap();
        fs::remove_file(folder.path().join("os.vmdk")).unwrap();
        fs::write(&flat, vec![1; 1 << 20]).unwrap();
        let with_content = create_vmdk(&folder.path().join("os.vmdk"), 1 << 20);
        assert!(matches!(with_content, Err(CreateError::Exists(p)) if p == flat));
        assert!(!folder.path().join("os.vmdk").exists());
    }

    #[test]
    fn names_and_sizes_that_can_not_be_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["os.raw", "os", "-flat.vmdk", "os-flat.vmdk", ".vmdk"] {
            let refused = create_vmdk(&folder.path().join(name), 512);
            assert!(matches!(refused, Err(CreateError::Name { .. })), "{name}");
        }
        let refused = create_vmdk(&folder.path().join("a|b.vmdk"), 512);
        assert!(matches!(refused, Err(CreateError::Flat { .. })));
        for size in [0, 1, 513] {
            assert!(matches!(create_vmdk(&folder.path().join("os.vmdk"), size), Err(CreateError::Size(_))));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
