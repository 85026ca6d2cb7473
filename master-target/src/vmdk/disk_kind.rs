//! The kinds of VMDK that are written: [`DiskKind`].

use std::fmt;

/// A kind of VMDK, by its `createType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// `vmfs` with a `VMFS` extent: what ESXi runs.
    Vmfs,
    /// `monolithicFlat`: a descriptor and one flat file.
    MonolithicFlat,
    /// `twoGbMaxExtentFlat`: a descriptor and flat files of up to 2 GiB less 1 MiB.
    TwoGbMaxExtentFlat,
    /// `monolithicSparse`: one file that grows, with its descriptor inside.
    MonolithicSparse,
    /// `streamOptimized`: one compressed file, written once from start to end. Never a target.
    StreamOptimized,
}

impl DiskKind {
    /// Kinds that a new target can have.
    pub const OF_TARGETS: [DiskKind; 4] =
        [DiskKind::Vmfs, DiskKind::MonolithicFlat, DiskKind::TwoGbMaxExtentFlat, DiskKind::MonolithicSparse];

    /// The disk's `createType`.
    pub fn create_type(self) -> &'static str {
        match self {
            DiskKind::Vmfs => "vmfs",
            DiskKind::MonolithicFlat => "monolithicFlat",
            DiskKind::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            DiskKind::MonolithicSparse => "monolithicSparse",
            DiskKind::StreamOptimized => "streamOptimized",
        }
    }

    /// How its extent lines call the data.
    pub(super) fn extent_kind(self) -> &'static str {
        match self {
            DiskKind::Vmfs => "VMFS",
            DiskKind::MonolithicFlat | DiskKind::TwoGbMaxExtentFlat => "FLAT",
            DiskKind::MonolithicSparse | DiskKind::StreamOptimized => "SPARSE",
        }
    }
}

impl fmt::Display for DiskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.create_type())
    }
}
