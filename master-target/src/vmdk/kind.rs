//! Tells from a file's first bytes what a path with a `.vmdk` name really is: [`FileKind::of`].
//!
//! Sparse VMDKs carry their descriptor inside a binary file, and people name `-flat.vmdk` files by mistake; both
//! deserve a better answer than "is not text".

use super::{CreateType, DESCRIPTOR_BYTES_MAX, Descriptor, Unsupported};

/// Hosted sparse header: magic, then at these bytes the place of the embedded descriptor, in sectors.
const HOSTED_SPARSE: &[u8] = b"KDMV";
const HOSTED_FLAGS_AT: usize = 8;
const HOSTED_DESCRIPTOR_AT: usize = 28;
const HOSTED_DESCRIPTOR_LEN_AT: usize = 36;
const HOSTED_COMPRESSED: u32 = 1 << 16;

const MONOLITHIC_SPARSE: &str = "monolithicSparse";

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Perhaps a descriptor: it is small enough and no format that is known by its first bytes.
    Descriptor,
    /// A sparse VMDK with an embedded descriptor.
    Sparse {
        /// Its `createType`.
        create_type: String,
        /// The name of its parent, if it is a snapshot.
        parent_hint: Option<String>,
    },
    /// The delta of a snapshot on ESXi (`COWD` or SE sparse).
    Delta,
    /// Another format, by its name.
    Foreign(&'static str),
    /// Too large for a descriptor: most likely the data of a flat disk.
    Data,
}

impl FileKind {
    /// Looks at the first bytes (up to [`DESCRIPTOR_BYTES_MAX`]) of a file of `size` bytes.
    pub fn of(head: &[u8], size: u64) -> FileKind {
        if head.starts_with(HOSTED_SPARSE) {
            return sparse(head);
        }
        if head.starts_with(b"COWD") || head.starts_with(&0xcafe_babe_u64.to_le_bytes()) {
            return FileKind::Delta;
        }
        for (magic, name) in [(&b"QFI\xfb"[..], "qcow2"), (b"vhdxfile", "VHDX"), (b"conectix", "VHD")] {
            if head.starts_with(magic) {
                return FileKind::Foreign(name);
            }
        }
        if size > DESCRIPTOR_BYTES_MAX as u64 { FileKind::Data } else { FileKind::Descriptor }
    }

    /// Why such a file is no target, where its kind alone says so.
    pub fn refusal(&self) -> Option<Unsupported> {
        match self {
            FileKind::Descriptor | FileKind::Data | FileKind::Foreign(_) => None,
            FileKind::Sparse { parent_hint: Some(parent), .. } => {
                Some(Unsupported::Snapshot { parent: parent.clone() })
            }
            // What else must hold of it, its header says.
            FileKind::Sparse { create_type, .. } if create_type == MONOLITHIC_SPARSE => None,
            FileKind::Sparse { create_type, .. } => Some(Unsupported::kind(create_type)),
            FileKind::Delta => Some(Unsupported::kind("vmfsSparse")),
        }
    }
}

fn sparse(head: &[u8]) -> FileKind {
    if let Some(descriptor) = embedded(head).and_then(|bytes| Descriptor::parse(bytes).ok()) {
        // Inside a sparse file even a descriptor that claims to be flat doesn't describe a flat disk.
        let create_type = match descriptor.create_type {
            CreateType::Other(name) => name,
            CreateType::MonolithicSparse => MONOLITHIC_SPARSE.to_owned(),
            CreateType::MonolithicFlat | CreateType::Vmfs | CreateType::TwoGbMaxExtentFlat => "custom".to_owned(),
        };
        return FileKind::Sparse { create_type, parent_hint: descriptor.parent_hint };
    }
    let flags =
        head.get(HOSTED_FLAGS_AT..HOSTED_FLAGS_AT + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let create_type = if flags & HOSTED_COMPRESSED != 0 { "streamOptimized" } else { MONOLITHIC_SPARSE };
    FileKind::Sparse { create_type: create_type.to_owned(), parent_hint: None }
}

/// The embedded descriptor, as far as it lies in the head.
fn embedded(head: &[u8]) -> Option<&[u8]> {
    let bytes_at = |at: usize| -> Option<usize> {
        let field: [u8; 8] = head.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(field)).ok()?.checked_mul(512)
    };
    let (start, len) = (bytes_at(HOSTED_DESCRIPTOR_AT)?, bytes_at(HOSTED_DESCRIPTOR_LEN_AT)?);
    if start == 0 || len == 0 {
        return None;
    }
    head.get(start..start.checked_add(len)?.min(head.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hosted sparse file whose embedded descriptor is `text`.
    fn hosted(text: &str, flags: u32, descriptor_sector: u64, descriptor_sectors: u64) -> Vec<u8> {
        let mut file = vec![0; 512 * 21];
        file[..4].copy_from_slice(HOSTED_SPARSE);
        file[8..12].copy_from_slice(&flags.to_le_bytes());
        file[28..36].copy_from_slice(&descriptor_sector.to_le_bytes());
        file[36..44].copy_from_slice(&descriptor_sectors.to_le_bytes());
        file[512..512 + text.len()].copy_from_slice(text.as_bytes());
        file
    }

    const SNAPSHOT: &str = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=72592e34\ncreateType=\"monolithicSparse\"\n\
        parentFileNameHint=\"a.vmdk\"\nRW 20480 SPARSE \"e.vmdk\"\n";

    #[test]
    fn a_sparse_file_is_named_by_its_embedded_descriptor() {
        let kind = FileKind::of(&hosted(SNAPSHOT, 3, 1, 20), 1 << 20);
        let expected =
            FileKind::Sparse { create_type: "monolithicSparse".to_owned(), parent_hint: Some("a.vmdk".to_owned()) };
        assert_eq!(kind, expected);
        assert_eq!(kind.refusal(), Some(Unsupported::Snapshot { parent: "a.vmdk".to_owned() }));
    }

    #[test]
    fn a_sparse_file_without_a_readable_descriptor_is_named_by_its_flags() {
        for (sector, sectors) in [(0, 0), (1, 0), (u64::MAX, 1), (1, u64::MAX), (40, 1), (2, 4)] {
            let FileKind::Sparse { create_type, parent_hint: None } =
                FileKind::of(&hosted(SNAPSHOT, HOSTED_COMPRESSED, sector, sectors), 1 << 20)
            else {
                panic!("sector {sector}")
            };
            assert_eq!(create_type, "streamOptimized");
        }
        assert!(matches!(FileKind::of(b"KDMV", 4), FileKind::Sparse { .. }));
    }

    #[test]
    fn deltas_foreign_formats_and_data_are_told_apart() {
        assert_eq!(FileKind::of(b"COWD\x01\0\0\0", 1 << 20), FileKind::Delta);
        assert_eq!(FileKind::of(&[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0], 1 << 20), FileKind::Delta);
        assert_eq!(FileKind::of(b"QFI\xfb....", 1 << 20), FileKind::Foreign("qcow2"));
        assert_eq!(FileKind::of(&[0; 512], 1 << 30), FileKind::Data);
        assert_eq!(FileKind::of(b"# Disk DescriptorFile\n", 22), FileKind::Descriptor);
        assert_eq!(FileKind::Descriptor.refusal(), None);
    }
}
