//! The cylinder, head and sector numbers that a descriptor carries for a disk of a given size.
//!
//! Nothing in this project addresses a disk by them; a virtual machine's BIOS does, and a disk that gets another
//! geometry than it was installed with may not boot. So they follow what VMware gives SCSI disks.

/// Sectors in 1 GiB.
const GIB_SECTORS: u64 = 1 << 21;

/// A disk's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders, at least one; what is left after the last whole cylinder isn't counted.
    pub cylinders: u64,
    /// Heads per cylinder.
    pub heads: u32,
    /// Sectors per track.
    pub sectors_per_track: u32,
}

impl Geometry {
    /// The geometry of a SCSI disk: 64 x 32 up to 1 GiB, 128 x 32 up to 2 GiB, 255 x 63 above.
    pub fn of_scsi_disk(sectors: u64) -> Self {
        let (heads, sectors_per_track) = match sectors {
            s if s <= GIB_SECTORS => (64, 32),
            s if s <= 2 * GIB_SECTORS => (128, 32),
            _ => (255, 63),
        };
        let cylinder_sectors = u64::from(heads) * u64::from(sectors_per_track);
        Geometry { cylinders: (sectors / cylinder_sectors).max(1), heads, sectors_per_track }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(sectors: u64) -> (u64, u32, u32) {
        let g = Geometry::of_scsi_disk(sectors);
        (g.cylinders, g.heads, g.sectors_per_track)
    }

    #[test]
    fn the_geometry_follows_the_size_as_for_vmware_scsi_disks() {
        assert_eq!(geometry(1), (1, 64, 32));
        assert_eq!(geometry(GIB_SECTORS), (1024, 64, 32));
        assert_eq!(geometry(2 * GIB_SECTORS), (1024, 128, 32));
        // 40 GiB and 2 TiB as `vmkfstools -c` writes them.
        assert_eq!(geometry(40 * GIB_SECTORS), (5221, 255, 63));
        assert_eq!(geometry(2048 * GIB_SECTORS), (267_349, 255, 63));
    }
}
