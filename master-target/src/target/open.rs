//! Opens a target, or creates it: [`open_or_create`].
//!
//! Every check that can refuse comes before the first change, and all that is read of a VMDK is read under its lock.
//! A missing file is created with its source's size; a missing device never is.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use blockio::{Access, BlockFile, LockRole, durable};

use super::{
    Datastore, Disk, Identity, LinearDisk, Opened, TargetError, TargetSpec, Thickness, error::TargetFault,
    folder::inside,
};
use crate::vmdk::{
    self, Descriptor, DescriptorFile, DiskKind, FileKind, FlatExtent, FlatLayout, SparseDisk, SplitDisk, SplitPart,
};

/// How long [`open_or_create`] waits for a lock: the writes of an agent that was killed can take seconds to land, and
/// hold its locks until then (rule S14).
pub const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Opens and locks a target; creates a file that is missing when `source_size` is known, a VMDK as one of `kind`.
///
/// # Errors
/// [`TargetError`] says what is in the way and what to do.
pub fn open_or_create(
    spec: &TargetSpec,
    datastores: &[Datastore],
    source_size: Option<u64>,
    kind: DiskKind,
) -> Result<Opened, TargetError> {
    open_or_create_within(spec, datastores, source_size, kind, LOCK_PATIENCE)
}

/// As [`open_or_create`], but waits only up to `patience` for each lock.
///
/// # Errors
/// As of [`open_or_create`].
pub fn open_or_create_within(
    spec: &TargetSpec,
    datastores: &[Datastore],
    source_size: Option<u64>,
    kind: DiskKind,
    patience: Duration,
) -> Result<Opened, TargetError> {
    let attempt = Attempt { spec, source_size, kind, patience };
    let opened = match spec {
        TargetSpec::Vmdk { datastore, name } => datastore_named(datastores, datastore)
            .and_then(|root| Ok((root, inside(root, root, name)?)))
            .and_then(|(root, path)| attempt.open_vmdk(root, &path)),
        TargetSpec::Path(path) => attempt.open_path(path),
    };
    opened.map_err(|fault| TargetError { target: spec.to_string(), fault })
}

/// One opening: what was asked for.
struct Attempt<'a> {
    spec: &'a TargetSpec,
    source_size: Option<u64>,
    kind: DiskKind,
    patience: Duration,
}

impl Attempt<'_> {
    fn open_vmdk(&self, root: &Path, path: &Path) -> Result<Opened, TargetFault> {
        let created = !path.exists();
        if created {
            let size = self.source_size.ok_or_else(|| TargetFault::Missing(path.to_owned()))?;
            if let Some(folder) = path.parent() {
                durable::create_dir_all(folder)?;
            }
            vmdk::create(path, size, self.kind)?;
        }
        match check_kind(path)? {
            Found::Descriptor => self.open_flat(root, path, created),
            Found::Sparse => self.open_sparse(path, created),
        }
    }

    /// Opens a disk whose descriptor is a file of its own, beside one or more flat files.
    fn open_flat(&self, root: &Path, path: &Path, created: bool) -> Result<Opened, TargetFault> {
        let descriptor = DescriptorFile::open(path, self.patience)?;
        let unsupported = |why| TargetFault::Unsupported { path: path.to_owned(), why };
        let layout = FlatLayout::of(descriptor.descriptor()).map_err(unsupported)?;
        let notices = self.check_vmdk(path, descriptor.descriptor(), layout.size)?;
        let mut seen = vec![inode_of(path)?];
        let mut data = Vec::with_capacity(layout.extents.len());
        let mut thickness = Thickness::Thick;
        for extent in &layout.extents {
            let file = self.open_extent(root, path, extent, &mut seen)?;
            // One file with holes makes a thin disk.
            if thickness_of(file.path())? == Thickness::Thin {
                thickness = Thickness::Thin;
            }
            data.push(Arc::new(file));
        }
        let identity = Identity::of_files(&data, layout.size, Some(descriptor.descriptor().cid))?;
        let name = self.spec.to_string();
        let disk: Arc<dyn Disk> = match (data.as_slice(), layout.extents.as_slice()) {
            ([file], [extent]) => {
                Arc::new(LinearDisk::new(name, Arc::clone(file), extent.offset, extent.size, thickness))
            }
            _ => {
                let parts = data.iter().zip(&layout.extents).map(|(file, extent)| SplitPart {
                    file: Arc::clone(file),
                    start: extent.offset,
                    size: extent.size,
                });
                Arc::new(SplitDisk::new(name, parts.collect(), thickness))
            }
        };
        Ok(Opened { disk, created, notices, identity, descriptor: Some(descriptor), data })
    }

    /// Opens a disk that is one growing file with its descriptor inside.
    fn open_sparse(&self, path: &Path, created: bool) -> Result<Opened, TargetFault> {
        let sparse = |why| TargetFault::Sparse { path: path.to_owned(), why };
        let file = Arc::new(BlockFile::open(path, Access::ReadWrite)?);
        file.lock_within(LockRole::TargetExtent, self.patience)?;
        let header = vmdk::read_header(&file).map_err(sparse)?;
        let (at, size) = (header.descriptor_at * blockio::SECTOR, header.descriptor_sectors * blockio::SECTOR);
        let descriptor = DescriptorFile::inside(Arc::clone(&file), at, size as usize)?;
        let unsupported = |why| TargetFault::Unsupported { path: path.to_owned(), why };
        vmdk::check_sparse(descriptor.descriptor(), header.capacity).map_err(unsupported)?;
        let disk_size = header.capacity * blockio::SECTOR;
        let mut notices = self.check_vmdk(path, descriptor.descriptor(), disk_size)?;
        let (disk, differing) = SparseDisk::open(self.spec.to_string(), Arc::clone(&file), header).map_err(sparse)?;
        if differing > 0 {
            notices.push(format!(
                "{differing} of its redundant grain tables were behind, as after a crash, and were brought in line"
            ));
        }
        let data = vec![file];
        let identity = Identity::of_files(&data, disk_size, Some(descriptor.descriptor().cid))?;
        Ok(Opened { disk: Arc::new(disk), created, notices, identity, descriptor: Some(descriptor), data })
    }

    /// What holds of every VMDK: no snapshot stands on it, and it is large enough. Returns what the operator should know.
    fn check_vmdk(&self, path: &Path, descriptor: &Descriptor, size: u64) -> Result<Vec<String>, TargetFault> {
        if let Some(snapshot) = vmdk::snapshot_of(path).map_err(|source| read_error(path, source))? {
            return Err(TargetFault::HasSnapshot { snapshot });
        }
        let mut notices = check_size(size, self.source_size)?;
        if let Some(file) = &descriptor.change_tracking {
            notices.push(format!(
                "its change tracking file {file} doesn't see replicated writes: reset changed block tracking before the next incremental backup"
            ));
        }
        Ok(notices)
    }

    /// Opens and locks a data file; `seen` are the files that are in use for the disk already.
    fn open_extent(
        &self,
        root: &Path,
        descriptor: &Path,
        extent: &FlatExtent,
        seen: &mut Vec<(u64, u64)>,
    ) -> Result<BlockFile, TargetFault> {
        let folder = descriptor.parent().unwrap_or(root);
        let path = inside(root, folder, &extent.name)?;
        let found = match path.metadata() {
            Ok(found) => found,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Err(TargetFault::NoExtent(path)),
            Err(source) => return Err(read_error(&path, source)),
        };
        let inode = (found.dev(), found.ino());
        if seen[0] == inode {
            return Err(TargetFault::SelfExtent(path));
        }
        // Two parts of a disk in one file could lie on top of each other.
        if seen.contains(&inode) {
            return Err(TargetFault::ExtentTwice(path));
        }
        seen.push(inode);
        // A device node here would carry the disk out of the datastore as a link would.
        if !found.is_file() {
            return Err(TargetFault::NotADisk(path));
        }
        let needed = extent.offset + extent.size;
        if found.len() < needed {
            return Err(TargetFault::ShortExtent { path, size: found.len(), needed });
        }
        let file = BlockFile::open(&path, Access::ReadWrite)?;
        file.lock_within(LockRole::TargetExtent, self.patience)?;
        Ok(file)
    }

    fn open_path(&self, path: &Path) -> Result<Opened, TargetFault> {
        let (file, created) = match fs::metadata(path) {
            // Left by a creation that was cut off, or made by hand: there is nothing in it to lose.
            Ok(found) if found.is_file() && found.len() == 0 => (create_raw(path, self.source_size)?, true),
            Ok(found) if found.is_file() || found.file_type().is_block_device() => (self.open_existing(path)?, false),
            Ok(_) => return Err(TargetFault::NotADisk(path.to_owned())),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => (create_raw(path, self.source_size)?, true),
            Err(source) => return Err(read_error(path, source)),
        };
        file.lock_within(LockRole::TargetExtent, self.patience)?;
        let size = file.size();
        let notices = check_size(size, self.source_size)?;
        let thickness = if file.is_block_device() { Thickness::Thick } else { thickness_of(path)? };
        let file = Arc::new(file);
        let disk = LinearDisk::new(self.spec.to_string(), Arc::clone(&file), 0, size, thickness);
        let data = vec![file];
        let identity = Identity::of_files(&data, size, None)?;
        Ok(Opened { disk: Arc::new(disk), created, notices, identity, descriptor: None, data })
    }

    /// Opens a file or device; one that is held exclusively is tried again, as a lock is.
    fn open_existing(&self, path: &Path) -> Result<BlockFile, TargetFault> {
        BlockFile::open_within(path, Access::ReadWrite, self.patience).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => TargetFault::DeviceBusy(path.to_owned()),
            _ => TargetFault::Io(error),
        })
    }
}

pub(super) fn datastore_named<'a>(datastores: &'a [Datastore], name: &str) -> Result<&'a Path, TargetFault> {
    datastores.iter().find(|d| d.name == name).map(|d| d.path.as_path()).ok_or_else(|| {
        let known: Vec<&str> = datastores.iter().map(|d| d.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        TargetFault::NoDatastore { name: name.to_owned(), known }
    })
}

/// What a VMDK begins with.
pub(super) enum Found {
    /// Perhaps the text of a descriptor.
    Descriptor,
    /// A sparse file with its descriptor inside.
    Sparse,
}

/// Refuses what can be told from the first bytes to be no VMDK that is written.
pub(super) fn check_kind(path: &Path) -> Result<Found, TargetFault> {
    let found = path.metadata().map_err(|source| read_error(path, source))?;
    if !found.is_file() {
        return Err(TargetFault::NotADisk(path.to_owned()));
    }
    let (head, size) = vmdk::head_of(path).map_err(|source| read_error(path, source))?;
    let kind = FileKind::of(&head, size);
    if let Some(why) = kind.refusal() {
        return Err(TargetFault::Unsupported { path: path.to_owned(), why });
    }
    let (what, remedy) = match kind {
        FileKind::Foreign(format) => (
            format!("a {format} image"),
            "convert it with `qemu-img convert -O vmdk -o subformat=monolithicFlat`, or remove it so that a new disk is created",
        ),
        FileKind::Data => ("plain data".to_owned(), "name the descriptor, which is a small text file"),
        FileKind::Sparse { .. } => return Ok(Found::Sparse),
        FileKind::Descriptor | FileKind::Delta => return Ok(Found::Descriptor),
    };
    Err(TargetFault::NotAVmdk { path: path.to_owned(), what, remedy })
}

fn create_raw(path: &Path, source_size: Option<u64>) -> Result<BlockFile, TargetFault> {
    if path.starts_with("/dev") {
        return Err(TargetFault::NoDevice(path.to_owned()));
    }
    if path.is_symlink() {
        let source = io::Error::new(io::ErrorKind::NotFound, "it is a link that leads nowhere");
        return Err(read_error(path, source));
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        return Err(TargetFault::NoFolder(folder.to_owned()));
    }
    let size = source_size.ok_or_else(|| TargetFault::Missing(path.to_owned()))?;
    Ok(vmdk::create_file(path, size)?)
}

/// Refuses a disk that is smaller than its source, and remarks on one that is larger.
fn check_size(size: u64, source_size: Option<u64>) -> Result<Vec<String>, TargetFault> {
    match source_size {
        Some(source_size) if size < source_size => Err(TargetFault::TooSmall { size, source_size }),
        Some(source_size) if size > source_size => Ok(vec![format!(
            "it has {size} bytes, {} more than its source: what lies behind the source's end is left as it is",
            size - source_size
        )]),
        _ => Ok(Vec::new()),
    }
}

/// A file to which all of its place was given stays so; one with holes gives place back.
fn thickness_of(path: &Path) -> Result<Thickness, TargetFault> {
    /// The unit of `st_blocks`, whatever the file system's own.
    const STAT_BLOCK: u64 = 512;
    let found = path.metadata().map_err(|source| read_error(path, source))?;
    let allocated = found.blocks().saturating_mul(STAT_BLOCK);
    Ok(if allocated >= found.len() { Thickness::Thick } else { Thickness::Thin })
}

/// Device and inode of a file.
fn inode_of(path: &Path) -> Result<(u64, u64), TargetFault> {
    let found = path.metadata().map_err(|source| read_error(path, source))?;
    Ok((found.dev(), found.ino()))
}

pub(super) fn read_error(path: &Path, source: io::Error) -> TargetFault {
    TargetFault::Read { path: PathBuf::from(path), source }
}
