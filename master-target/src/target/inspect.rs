//! Looks at a target without opening it for writing or locking it: [`inspect`]. For the preflight, which must not disturb
//! who has it open.
//!
//! What it says can be another thing a moment later; [`super::open_or_create`] looks again under the locks.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use blockio::{Access, BlockFile};

use super::{
    Datastore, TargetFault, TargetSpec,
    folder::inside,
    open::{check_kind, datastore_named, read_error},
};
use crate::vmdk::{self, Descriptor, FileKind, FlatLayout, Header};

/// A target as it was found.
#[derive(Debug)]
pub struct Inspected {
    /// The descriptor, raw file or device; where it would be made if it doesn't exist.
    pub path: PathBuf,
    /// Every file that holds a lock while the disk is open.
    pub files: Vec<PathBuf>,
    /// Size in bytes; none if it doesn't exist. Or why it can't be used.
    pub size: Result<Option<u64>, TargetFault>,
    /// What a VMDK's descriptor says, also where the disk can't be used.
    pub descriptor: Option<Descriptor>,
    /// It is the delta of a snapshot on ESXi.
    pub is_delta: bool,
}

/// Looks at a target.
///
/// # Errors
/// It has no path: its datastore isn't there, or a link leads out of it.
pub fn inspect(spec: &TargetSpec, datastores: &[Datastore]) -> Result<Inspected, TargetFault> {
    match spec {
        TargetSpec::Path(path) => Ok(inspect_path(path)),
        TargetSpec::Vmdk { datastore, name } => {
            let root = datastore_named(datastores, datastore)?;
            let path = inside(root, root, name)?;
            let mut found = Inspected::at(&path);
            match path.symlink_metadata() {
                Err(missing) if missing.kind() == io::ErrorKind::NotFound => found.files.clear(),
                _ => found.size = inspect_vmdk(root, &mut found).map(Some),
            }
            Ok(found)
        }
    }
}

impl Inspected {
    fn at(path: &Path) -> Inspected {
        let files = vec![path.to_owned()];
        Inspected { path: path.to_owned(), files, size: Ok(None), descriptor: None, is_delta: false }
    }
}

fn inspect_path(path: &Path) -> Inspected {
    let mut found = Inspected::at(path);
    found.size = match fs::metadata(path) {
        Ok(there) if there.is_file() && there.len() == 0 => Ok(None),
        // A block device says its size only to who opens it; reading disturbs nobody.
        Ok(there) if there.is_file() || there.file_type().is_block_device() => {
            BlockFile::open(path, Access::ReadOnly).map(|file| Some(file.size())).map_err(TargetFault::from)
        }
        Ok(_) => Err(TargetFault::NotADisk(path.to_owned())),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => missing_path(path),
        Err(source) => Err(read_error(path, source)),
    };
    found
}

/// A raw file can be made where its folder is; a device can't.
fn missing_path(path: &Path) -> Result<Option<u64>, TargetFault> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if path.starts_with("/dev") {
        return Err(TargetFault::NoDevice(path.to_owned()));
    }
    if folder.is_dir() { Ok(None) } else { Err(TargetFault::NoFolder(folder.to_owned())) }
}

fn inspect_vmdk(root: &Path, found: &mut Inspected) -> Result<u64, TargetFault> {
    let path = found.path.clone();
    let (head, size) = vmdk::head_of(&path).map_err(|source| read_error(&path, source))?;
    let kind = FileKind::of(&head, size);
    found.is_delta = kind == FileKind::Delta;
    let header = match kind {
        FileKind::Sparse { .. } => Some(Header::parse(&head)),
        _ => None,
    };
    let text = match &header {
        // The first bytes reach as far as a descriptor may.
        Some(Ok(header)) => {
            let start = (header.descriptor_at * blockio::SECTOR) as usize;
            head.get(start..(start + (header.descriptor_sectors * blockio::SECTOR) as usize).min(head.len()))
        }
        Some(Err(_)) => None,
        None => Some(head.as_slice()),
    };
    let parsed = text.map(Descriptor::parse);
    found.descriptor = parsed.as_ref().and_then(|parsed| parsed.as_ref().ok().cloned());
    check_kind(&path)?;
    let unsupported = |why| TargetFault::Unsupported { path: path.clone(), why };
    let header = header.transpose().map_err(|why| TargetFault::Sparse { path: path.clone(), why: why.into() })?;
    let descriptor = match parsed {
        Some(Ok(descriptor)) => descriptor,
        Some(Err(error)) => return Err(vmdk::StampError::Descriptor { path, error }.into()),
        None => return Err(TargetFault::NotADisk(path)),
    };
    if let Some(header) = header {
        vmdk::check_sparse(&descriptor, header.capacity).map_err(unsupported)?;
        return Ok(header.capacity * blockio::SECTOR);
    }
    let layout = FlatLayout::of(&descriptor).map_err(unsupported)?;
    for extent in &layout.extents {
        let file = inside(root, path.parent().unwrap_or(root), &extent.name)?;
        let needed = extent.offset + extent.size;
        match file.metadata() {
            Ok(there) if there.len() >= needed => found.files.push(file),
            Ok(there) => return Err(TargetFault::ShortExtent { path: file, size: there.len(), needed }),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Err(TargetFault::NoExtent(file)),
            Err(source) => return Err(read_error(&file, source)),
        }
    }
    Ok(layout.size)
}
