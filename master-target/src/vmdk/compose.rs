//! Writes the descriptor of a new disk: [`NewDisk::text`]. `docs/vmdk.md` gives the reason of each line.
//!
//! It makes text only; `create` puts it on disk.

use std::fmt::Write as _;

use blockio::SECTOR;

use super::{Cid, ContentId, DiskKind, ExtentName, Geometry};

/// Hardware version 10 (ESXi 5.5): the first with disks beyond 2 TiB, and no newer than any host in support.
const VIRTUAL_HARDWARE_VERSION: u32 = 10;
/// Random bytes that a new disk takes.
pub(super) const RANDOM_BYTES: usize = 32;

/// A file of a new disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewExtent {
    /// Its name, in the descriptor's folder.
    pub name: ExtentName,
    /// How much of the disk lies there, in sectors.
    pub sectors: u64,
}

/// What is to be known about a disk to describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDisk {
    kind: DiskKind,
    extents: Vec<NewExtent>,
    sectors: u64,
    content_id: ContentId,
    cid: Cid,
    uuid: [u8; 16],
}

impl NewDisk {
    /// A disk of `size` bytes (a multiple of 512) whose data lies in one file, with ids made of `random`.
    pub fn new(kind: DiskKind, name: ExtentName, size: u64, random: [u8; RANDOM_BYTES]) -> Self {
        assert!(size > 0 && size.is_multiple_of(SECTOR), "a disk of {size} bytes is not made of sectors");
        Self::of_extents(kind, vec![NewExtent { name, sectors: size / SECTOR }], random)
    }

    /// A disk whose data lies in these files, in order, with ids made of `random`.
    pub fn of_extents(kind: DiskKind, extents: Vec<NewExtent>, random: [u8; RANDOM_BYTES]) -> Self {
        let sectors = extents.iter().map(|extent| extent.sectors).sum();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&random[..16]);
        // VMware's own disks: IEEE company id 00:0C:29 as a NAA type 6 name.
        uuid[..3].copy_from_slice(&[0x60, 0x00, 0xc2]);
        uuid[3] = 0x90 | (uuid[3] & 0x0f);
        let mut high = [0; 12];
        high.copy_from_slice(&random[16..28]);
        let drawn = u32::from_le_bytes([random[28], random[29], random[30], random[31]]);
        let cid = Cid::NO_PARENT.next(drawn, Cid::DIGITS_MAX);
        NewDisk { kind, extents, sectors, content_id: ContentId::new(high, cid), cid, uuid }
    }

    /// The content id of the new disk.
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// The descriptor.
    pub fn text(&self) -> String {
        let geometry = Geometry::of_scsi_disk(self.sectors);
        let create_type = self.kind.create_type();
        let mut text = format!(
            "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID={}\nparentCID={}\ncreateType=\"{create_type}\"\n\n# Extent description\n",
            self.cid,
            Cid::NO_PARENT,
        );
        for NewExtent { name, sectors } in &self.extents {
            let offset = if self.kind.extent_kind() == "FLAT" { " 0" } else { "" };
            text += &format!("RW {sectors} {} \"{name}\"{offset}\n", self.kind.extent_kind());
        }
        text += "\n# The Disk Data Base\n#DDB\n\n";
        let mut entry = |key: &str, value: &dyn std::fmt::Display| {
            writeln!(text, "ddb.{key} = \"{value}\"").expect("writing to a string can't fail");
        };
        entry("adapterType", &"lsilogic");
        entry("geometry.cylinders", &geometry.cylinders);
        entry("geometry.heads", &geometry.heads);
        entry("geometry.sectors", &geometry.sectors_per_track);
        entry("longContentID", &self.content_id);
        if self.kind == DiskKind::Vmfs {
            entry("thinProvisioned", &1);
        }
        entry("uuid", &self.uuid_text());
        entry("virtualHWVersion", &VIRTUAL_HARDWARE_VERSION);
        text
    }

    /// The disk's UUID as VMware writes it: `60 00 C2 9x xx xx xx xx-xx xx xx xx xx xx xx xx`.
    fn uuid_text(&self) -> String {
        let pairs = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
        format!("60 00 C2 {}-{}", pairs(&self.uuid[3..8]), pairs(&self.uuid[8..]))
    }
}
