//! Decides whether a described disk can be a target, and where its data lies: [`FlatLayout::of`].
//!
//! Refusals name the kind of disk and the remedy. What is accepted is exactly one writable flat extent without a
//! parent; every doubt is a refusal, since a write at a wrong place can't be taken back.

use blockio::SECTOR;

use super::{Access, Cid, CreateType, Descriptor, ExtentKind, ExtentName};

/// Which of the flat kinds a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlatKind {
    /// `monolithicFlat` with a `FLAT` extent.
    Monolithic,
    /// `vmfs` with a `VMFS` extent: what ESXi runs.
    Vmfs,
}

impl FlatKind {
    /// The disk's `createType`.
    pub fn create_type(self) -> &'static str {
        match self {
            FlatKind::Monolithic => "monolithicFlat",
            FlatKind::Vmfs => "vmfs",
        }
    }
}

/// Where a flat disk's data lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatLayout {
    /// The kind of disk.
    pub kind: FlatKind,
    /// The file, relative to the descriptor's folder.
    pub name: ExtentName,
    /// Where the data begins in the file, in bytes.
    pub offset: u64,
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
    /// A kind whose data is compressed, sparse, split or on a device.
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
    /// More or fewer than one extent.
    #[error(
        "a {kind} disk has one extent, but this one has {extents}: clone it with `vmkfstools -i` or `qemu-img convert -O vmdk -o subformat=monolithicFlat`"
    )]
    Extents {
        /// The `createType`.
        kind: &'static str,
        /// The number of its extents.
        extents: usize,
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
    /// The refusal of a `createType` that isn't flat.
    pub fn kind(name: &str) -> Self {
        let (what, remedy) = match name {
            "monolithicSparse" => ("one growing file", CONVERT),
            "streamOptimized" => ("compressed, for transport", CONVERT),
            "twoGbMaxExtentSparse" => ("growing files of 2 GB", CONVERT),
            "twoGbMaxExtentFlat" => ("flat files of 2 GB", CONVERT),
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

impl FlatLayout {
    /// Where the disk's data lies, if it can be a target.
    ///
    /// # Errors
    /// [`Unsupported`] names the kind and the remedy.
    pub fn of(descriptor: &Descriptor) -> Result<FlatLayout, Unsupported> {
        if descriptor.parent_cid != Cid::NO_PARENT || descriptor.parent_hint.is_some() {
            let parent = descriptor.parent_hint.clone().unwrap_or_else(|| format!("CID {}", descriptor.parent_cid));
            return Err(Unsupported::Snapshot { parent });
        }
        if let Some(key) = &descriptor.foreign_layer {
            return Err(Unsupported::Layer { key: key.clone() });
        }
        let kind = match &descriptor.create_type {
            CreateType::MonolithicFlat => FlatKind::Monolithic,
            CreateType::Vmfs => FlatKind::Vmfs,
            CreateType::Other(name) => return Err(Unsupported::kind(name)),
        };
        let [extent] = descriptor.extents.as_slice() else {
            return Err(Unsupported::Extents { kind: kind.create_type(), extents: descriptor.extents.len() });
        };
        let matching = match (kind, &extent.kind) {
            (FlatKind::Monolithic, ExtentKind::Flat) => true,
            // The data of a VMFS extent begins at its file's start; an offset would be read differently elsewhere.
            (FlatKind::Vmfs, ExtentKind::Vmfs) => extent.offset_sectors == 0,
            _ => false,
        };
        let (true, Some(name)) = (matching, &extent.name) else {
            return Err(Unsupported::ExtentKind { kind: kind.create_type(), extent: extent.kind.to_string() });
        };
        match extent.access {
            Access::ReadWrite => {}
            Access::ReadOnly => return Err(Unsupported::NotWritable("RDONLY")),
            Access::None => return Err(Unsupported::NotWritable("NOACCESS")),
        }
        let (offset, size) = (extent.offset_sectors * SECTOR, extent.sectors * SECTOR);
        Ok(FlatLayout { kind, name: name.clone(), offset, size })
    }
}
