//! VMDK: what a virtual disk's descriptor says, which kinds are written, and how a new one is made.
//!
//! `docs/vmdk.md` describes every byte. Written are disks whose data lies flat in one file (createType `monolithicFlat` and
//! `vmfs`) or in several (`twoGbMaxExtentFlat`, in `split`), and `monolithicSparse` (in `sparse`); `streamOptimized` (in
//! `stream`) is made once and never a target. Everything else is named and refused (`kind`, `layout`), because a write into
//! a compressed or snapshotted disk by its flat offset would destroy it.
//!
//! Reading order: `descriptor` and `parse` (bytes to valid types), `layout` (may this one be a target?), `stamp` (the
//! content id that tells others that the disk has changed), `create` (new disks). Finding the files and locking
//! them is the `target` folder's work; moving data is `target::io`'s.

mod cid;
mod compose;
mod create;
mod descriptor;
mod disk_kind;
mod extent_name;
mod geometry;
mod kind;
mod layout;
mod parse;
mod snapshots;
mod sparse;
mod split;
mod stamp;
mod stream;

pub use cid::{Cid, ContentId};
pub use compose::{NewDisk, NewExtent};
pub(crate) use create::create_file;
pub use create::{CreateError, create, create_vmdk, flat_path};
pub use descriptor::{
    Access, CreateType, DESCRIPTOR_BYTES_MAX, Descriptor, DescriptorError, EXTENTS_MAX, ExtentKind, ExtentLine, Fault,
};
pub use disk_kind::DiskKind;
pub use extent_name::{ExtentName, NameError};
pub use geometry::Geometry;
pub use kind::FileKind;
pub use layout::{FlatExtent, FlatLayout, Unsupported, check_sparse};
pub(crate) use snapshots::head_of;
pub use snapshots::snapshot_of;
pub use sparse::{Damage, Header, SparseDisk, SparseError, Survey, SurveyError, create_sparse, read_header, survey};
pub use split::{SPLIT_EXTENTS_MAX, SplitDisk, SplitPart};
pub use stamp::{DescriptorFile, StampError};
pub use stream::{StreamError, StreamWriter};
