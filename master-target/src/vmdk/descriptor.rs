//! The descriptor of a VMDK as valid types: what `parse` makes of its bytes, and what can be wrong with them.
//!
//! A descriptor is text of `key=value` lines, one line per extent, and the disk database (`ddb.` keys). Keys that have
//! no say in whether and where the disk may be written are left alone. Whether this project writes such a disk is
//! decided by `layout`, not here.

use std::{fmt, ops::Range};

use super::{Cid, ExtentName, NameError};

/// Largest descriptor that is read; VMware's are under 2 KiB, and embedded ones get 10 KiB.
pub const DESCRIPTOR_BYTES_MAX: usize = 64 << 10;
/// Most extents in a descriptor: 62 TiB in pieces of 2 GiB would be 31,744, but split disks end at 8 TiB.
pub const EXTENTS_MAX: usize = 4096;
/// Longest line: an extent with the longest path.
pub(super) const LINE_BYTES_MAX: usize = 4352;
/// Largest extent: VMware's largest disk is 62 TiB; 2^44 sectors (8 PiB) keeps every sum within 64 bits.
pub(super) const EXTENT_SECTORS_MAX: u64 = 1 << 44;

/// A parsed descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Version of the format, 1 to 3.
    pub version: u8,
    /// The content id.
    pub cid: Cid,
    /// Where in the file the digits of the content id stand.
    pub cid_at: Range<usize>,
    /// Where in the file the 32 digits of `ddb.longContentID` stand.
    pub long_content_id_at: Option<Range<usize>>,
    /// The parent's content id, or [`Cid::NO_PARENT`].
    pub parent_cid: Cid,
    /// The parent's file name, of a snapshot.
    pub parent_hint: Option<String>,
    /// The kind of disk.
    pub create_type: CreateType,
    /// The extents, in the order of the disk's sectors.
    pub extents: Vec<ExtentLine>,
    /// `ddb.uuid`: what the machine and its guest know the disk by.
    pub uuid: Option<String>,
    /// `ddb.adapterType`: the controller that the disk was made for.
    pub adapter_type: Option<String>,
    /// `ddb.toolsVersion`: of VMware Tools in its guest.
    pub tools_version: Option<String>,
    /// The change tracking file of VMware backups, which doesn't see writes made from outside.
    pub change_tracking: Option<String>,
    /// The key that says that the disk's content is no plain data (encryption, filters, native snapshots).
    pub foreign_layer: Option<String>,
}

/// A disk's `createType`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateType {
    /// One flat file, as Workstation, Fusion and QEMU make it.
    MonolithicFlat,
    /// One flat file on an ESXi datastore.
    Vmfs,
    /// Flat files of up to 2 GiB.
    TwoGbMaxExtentFlat,
    /// One file that grows, with its descriptor inside.
    MonolithicSparse,
    /// Any other kind, by its name.
    Other(String),
}

impl CreateType {
    /// The name in the descriptor.
    pub fn name(&self) -> &str {
        match self {
            CreateType::MonolithicFlat => "monolithicFlat",
            CreateType::Vmfs => "vmfs",
            CreateType::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            CreateType::MonolithicSparse => "monolithicSparse",
            CreateType::Other(name) => name,
        }
    }

    pub(super) fn from_name(name: &str) -> Self {
        match name {
            "monolithicFlat" => CreateType::MonolithicFlat,
            "vmfs" => CreateType::Vmfs,
            "twoGbMaxExtentFlat" => CreateType::TwoGbMaxExtentFlat,
            "monolithicSparse" => CreateType::MonolithicSparse,
            other => CreateType::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for CreateType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a descriptor allows with an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `RW`
    ReadWrite,
    /// `RDONLY`
    ReadOnly,
    /// `NOACCESS`
    None,
}

/// How the data lies in an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// `FLAT`: as it is, from an offset in a file.
    Flat,
    /// `VMFS`: as it is, from the start of a file.
    Vmfs,
    /// `SPARSE`: in grains that are found through tables.
    Sparse,
    /// `ZERO`: no file; reads as zeroes.
    Zero,
    /// Any other, by its name.
    Other(String),
}

impl fmt::Display for ExtentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ExtentKind::Flat => "FLAT",
            ExtentKind::Vmfs => "VMFS",
            ExtentKind::Sparse => "SPARSE",
            ExtentKind::Zero => "ZERO",
            ExtentKind::Other(name) => name,
        })
    }
}

/// One extent line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentLine {
    /// What may be done with it.
    pub access: Access,
    /// Size in sectors of 512 bytes, at least 1.
    pub sectors: u64,
    /// How the data lies in it.
    pub kind: ExtentKind,
    /// The file; none for `ZERO`.
    pub name: Option<ExtentName>,
    /// Where in the file the data begins, in sectors.
    pub offset_sectors: u64,
}

/// Why bytes are no descriptor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{fault}", At(*.line))]
pub struct DescriptorError {
    /// The line, from 1; 0 when the fault has none.
    pub line: u32,
    /// What is wrong.
    pub fault: Fault,
}

struct At(u32);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, "line {}: ", self.0) }
    }
}

/// What is wrong with a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No bytes.
    #[error("the descriptor is empty")]
    Empty,
    /// More than [`DESCRIPTOR_BYTES_MAX`].
    #[error("a descriptor of {0} bytes is too large (at most {DESCRIPTOR_BYTES_MAX})")]
    TooLarge(usize),
    /// Not UTF-8, or text after a NUL byte.
    #[error("is not text")]
    NotText,
    /// It doesn't begin with `# Disk DescriptorFile`.
    #[error("does not begin with \"# Disk DescriptorFile\"")]
    NotADescriptor,
    /// A line over the bound.
    #[error("the line is too long (at most {LINE_BYTES_MAX} bytes)")]
    LineTooLong,
    /// Neither comment, extent nor `key=value`.
    #[error("is neither a comment, an extent nor key=value")]
    NotAnEntry,
    /// A value with one quotation mark.
    #[error("the value of {0} has an unpaired quotation mark")]
    Quotes(String),
    /// A key that must be unique stands twice.
    #[error("{0} is set twice")]
    Twice(&'static str),
    /// A key that must be there isn't.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value that can't be.
    #[error("{key} is {value:?}, expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it is, shortened.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// An extent's size or offset.
    #[error("the extent's {0} is missing, no number or out of range")]
    ExtentNumber(&'static str),
    /// An extent's name is not in quotation marks, or missing.
    #[error("the extent's file name is missing or not in quotation marks")]
    ExtentQuotes,
    /// An extent's name is refused.
    #[error("the extent's file name {name:?} {why}")]
    ExtentName {
        /// The name, shortened.
        name: String,
        /// What is wrong with it.
        why: NameError,
    },
    /// More than [`EXTENTS_MAX`].
    #[error("more than {EXTENTS_MAX} extents")]
    TooManyExtents,
}

/// A foreign text, cut to what an error message can carry.
pub(super) fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    match text.char_indices().nth(CHARS_MAX) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}
