//! Decides whether a described disk can be a target, and where its data lies: [`FlatLayout::of`].
//!
//! Refusals name the kind of disk and the remedy. What is accepted are writable flat extents, or one sparse file,
//! without a parent; every doubt is a refusal, since a write at a wrong place can't be taken back.

use blockio::SECTOR;

use super::{Access, Cid, CreateType, Descriptor, DiskKind, ExtentKind, ExtentName, SPLIT_EXTENTS_MAX};

/// One flat file of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatExtent {
    /// The file, relative to the descriptor's folder.
    pub name: ExtentName,
    /// Where the data begins in the file, in bytes.
    pub offset: u64,
    /// How much of the disk lies there, in bytes.
    pub size: u64,
}

/// Where a flat disk's data lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatLayout {
    /// The kind of disk.
    pub kind: DiskKind,
    /// Its files, in the order of the disk's bytes; one, unless it is split.
    pub extents: Vec<FlatExtent>,
    /// The disk's size in bytes.
    pub size: u64,
}

/// Why a VMDK can't be a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// A snapshot, or the top of a chain.
    #[error(
        "it is a snapshot of another disk ({parent}): delete (consolidate) the machine's snapshots, and name the base disk"
    )]
    Snapshot {
        /// The parent's name, or its content id.
        parent: String,
    },
    /// A kind whose data is compressed, sparse in pieces, or on a device.
    #[error("its kind is {kind} ({what}): {remedy}")]
    Kind {
        /// The `createType`.
        kind: String,
        /// What that is.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Encryption, a filter or a native snapshot under the disk.
    #[error(
        "its descriptor has {key}, so its file does not hold the disk's plain content: remove the encryption policy, filter or snapshot first"
    )]
    Layer {
        /// The key that says so.
        key: String,
    },
    /// Header and descriptor of a sparse file disagree.
    #[error("its descriptor has {descriptor} sectors, its header {header}: the disk is damaged, restore it")]
    Capacity {
        /// Sectors in the descriptor.
        descriptor: u64,
        /// Sectors in the header.
        header: u64,
    },
    /// More extents than it may have.
    #[error(
        "a {kind} disk can have {extents_max} extents here, but this one has {extents}: clone it with `vmkfstools -i` or `qemu-img convert -O vmdk -o subformat=monolithicFlat`"
    )]
    Extents {
        /// The `createType`.
        kind: &'static str,
        /// The number of its extents.
        extents: usize,
        /// How many there may be.
        extents_max: usize,
    },
    /// The extent's kind doesn't go with the disk's.
    #[error(
        "its kind is {kind} but its extent's kind is {extent}: the descriptor is damaged, restore it or create the disk anew"
    )]
    ExtentKind {
        /// The `createType`.
        kind: &'static str,
        /// The extent's kind.
        extent: String,
    },
    /// The extent is read-only or not to be touched.
    #[error("its extent is marked {0}: a target's extent must be RW")]
    NotWritable(&'static str),
}

const CONVERT: &str = "convert it with `qemu-img convert -O vmdk -o subformat=monolithicFlat`, or clone it with `vmkfstools -i` on the host";
const CONSOLIDATE: &str = "delete (consolidate) the machine's snapshots, and name the base disk";
const OWN_DISK: &str = "give the machine a disk of its own on a datastore, or name the device itself as target";

impl Unsupported {
    /// The refusal of a `createType` that isn't written.
    pub fn kind(name: &str) -> Self {
        let (what, remedy) = match name {
            "monolithicSparse" => ("sparse, with its data in another file than its descriptor", CONVERT),
            "streamOptimized" => ("compressed, for transport", CONVERT),
            "twoGbMaxExtentSparse" => ("growing files of 2 GB", CONVERT),
            "vmfsSparse" => ("a snapshot's delta", CONSOLIDATE),
            "seSparse" => ("a snapshot's delta", CONSOLIDATE),
            "vmfsRaw" | "vmfsRawDeviceMap" | "vmfsPassthroughRawDeviceMap" => ("a mapped LUN", OWN_DISK),
            "fullDevice" | "partitionedDevice" => ("a physical disk", OWN_DISK),
            "custom" => ("a mixture of extents", CONVERT),
            _ => ("not known here", CONVERT),
        };
        Unsupported::Kind { kind: name.to_owned(), what, remedy }
    }
}

/// Refuses what stands on another disk, or isn't the disk's plain content.
fn check_plain(descriptor: &Descriptor) -> Result<(), Unsupported> {
    if descriptor.parent_cid != Cid::NO_PARENT || descriptor.parent_hint.is_some() {
        let parent = descriptor.parent_hint.clone().unwrap_or_else(|| format!("CID {}", descriptor.parent_cid));
        return Err(Unsupported::Snapshot { parent });
    }
    match &descriptor.foreign_layer {
        Some(key) => Err(Unsupported::Layer { key: key.clone() }),
        None => Ok(()),
    }
}

/// The extents of a disk of this kind, as many as it may have, all of them writable.
fn check_extents(descriptor: &Descriptor, kind: DiskKind, extents_max: usize) -> Result<(), Unsupported> {
    let create_type = kind.create_type();
    if descriptor.extents.len() > extents_max {
        return Err(Unsupported::Extents { kind: create_type, extents: descriptor.extents.len(), extents_max });
    }
    for extent in &descriptor.extents {
        let matching = match (kind, &extent.kind) {
            (DiskKind::MonolithicFlat | DiskKind::TwoGbMaxExtentFlat, ExtentKind::Flat) => true,
            // The data of a VMFS extent begins at its file's start; an offset would be read differently elsewhere.
            (DiskKind::Vmfs, ExtentKind::Vmfs) => extent.offset_sectors == 0,
            (DiskKind::MonolithicSparse, ExtentKind::Sparse) => extent.offset_sectors == 0,
            _ => false,
        };
        if !matching || extent.name.is_none() {
            return Err(Unsupported::ExtentKind { kind: create_type, extent: extent.kind.to_string() });
        }
        match extent.access {
            Access::ReadWrite => {}
            Access::ReadOnly => return Err(Unsupported::NotWritable("RDONLY")),
            Access::None => return Err(Unsupported::NotWritable("NOACCESS")),
        }
    }
    Ok(())
}

impl FlatLayout {
    /// Where the disk's data lies, if it can be a target.
    ///
    /// # Errors
    /// [`Unsupported`] names the kind and the remedy.
    pub fn of(descriptor: &Descriptor) -> Result<FlatLayout, Unsupported> {
        check_plain(descriptor)?;
        let (kind, extents_max) = match &descriptor.create_type {
            CreateType::MonolithicFlat => (DiskKind::MonolithicFlat, 1),
            CreateType::Vmfs => (DiskKind::Vmfs, 1),
            CreateType::TwoGbMaxExtentFlat => (DiskKind::TwoGbMaxExtentFlat, SPLIT_EXTENTS_MAX),
            // A file of text that says so has its data elsewhere.
            CreateType::MonolithicSparse => return Err(Unsupported::kind("monolithicSparse")),
            CreateType::Other(name) => return Err(Unsupported::kind(name)),
        };
        check_extents(descriptor, kind, extents_max)?;
        let extents: Vec<FlatExtent> = descriptor
            .extents
            .iter()
            .filter_map(|extent| {
                let name = extent.name.clone()?;
                Some(FlatExtent { name, offset: extent.offset_sectors * SECTOR, size: extent.sectors * SECTOR })
            })
            .collect();
        let size = extents.iter().map(|extent| extent.size).sum();
        Ok(FlatLayout { kind, extents, size })
    }
}

/// Whether a sparse file whose header says `capacity` sectors, and whose descriptor this is, can be a target.
///
/// # Errors
/// [`Unsupported`] names the kind and the remedy.
pub fn check_sparse(descriptor: &Descriptor, capacity: u64) -> Result<(), Unsupported> {
    check_plain(descriptor)?;
    if descriptor.create_type != CreateType::MonolithicSparse {
        return Err(Unsupported::kind(descriptor.create_type.name()));
    }
    check_extents(descriptor, DiskKind::MonolithicSparse, 1)?;
    let sectors = descriptor.extents.first().map_or(0, |extent| extent.sectors);
    if sectors == capacity { Ok(()) } else { Err(Unsupported::Capacity { descriptor: sectors, header: capacity }) }
}
