//! Opens a target for reading beside whoever has it: [`open_beside`]. For points of disks that were handed over.
//!
//! It takes no lock, writes nothing, and vouches for nothing: the machine may write while it is read. Who reads has to compare
//! what they got with what they know.

use std::path::Path;
use std::sync::Arc;

use blockio::{Access, BlockFile};

use super::error::TargetFault;
use super::folder::inside;
use super::open::{Found, check_kind, datastore_named, read_error};
use super::{Datastore, Disk, LinearDisk, TargetError, TargetSpec, Thickness};
use crate::vmdk::{self, Descriptor, FlatLayout, SparseDisk, SplitDisk, SplitPart};

/// Opens a target that somebody else may be using.
///
/// # Errors
/// [`TargetError`] says what is in the way and what to do.
pub fn open_beside(spec: &TargetSpec, datastores: &[Datastore]) -> Result<Arc<dyn Disk>, TargetError> {
    let name = spec.to_string();
    let opened = match spec {
        TargetSpec::Path(path) => raw(name, path),
        TargetSpec::Vmdk { datastore, name: file } => datastore_named(datastores, datastore)
            .and_then(|root| Ok((root, inside(root, root, file)?)))
            .and_then(|(root, path)| of_vmdk(name, root, &path)),
    };
    opened.map_err(|fault| TargetError { target: spec.to_string(), fault })
}

fn raw(name: String, path: &Path) -> Result<Arc<dyn Disk>, TargetFault> {
    let file = BlockFile::open(path, Access::ReadOnly)?;
    let size = file.size();
    Ok(Arc::new(LinearDisk::new(name, Arc::new(file), 0, size, Thickness::Thick)))
}

fn of_vmdk(name: String, root: &Path, path: &Path) -> Result<Arc<dyn Disk>, TargetFault> {
    if let Found::Sparse = check_kind(path)? {
        let sparse = |why| TargetFault::Sparse { path: path.to_owned(), why };
        let file = Arc::new(BlockFile::open(path, Access::ReadOnly)?);
        let header = vmdk::read_header(&file).map_err(sparse)?;
        let (disk, _) = SparseDisk::open(name, file, header).map_err(sparse)?;
        return Ok(Arc::new(disk));
    }
    let (head, _) = vmdk::head_of(path).map_err(|source| read_error(path, source))?;
    let descriptor =
        Descriptor::parse(&head).map_err(|error| vmdk::StampError::Descriptor { path: path.to_owned(), error })?;
    let unsupported = |why| TargetFault::Unsupported { path: path.to_owned(), why };
    let layout = FlatLayout::of(&descriptor).map_err(unsupported)?;
    let mut parts = Vec::with_capacity(layout.extents.len());
    for extent in &layout.extents {
        let file = inside(root, path.parent().unwrap_or(root), &extent.name)?;
        let file = Arc::new(BlockFile::open(&file, Access::ReadOnly)?);
        parts.push(SplitPart { file, start: extent.offset, size: extent.size });
    }
    Ok(match parts.as_slice() {
        [one] => Arc::new(LinearDisk::new(name, one.file.clone(), one.start, one.size, Thickness::Thick)),
        _ => Arc::new(SplitDisk::new(name, parts, Thickness::Thick)),
    })
}
