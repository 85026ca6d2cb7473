//! The files of a new split disk: `os.vmdk` has `os-f001.vmdk`, `os-f002.vmdk` and so on, as VMware names them.

use crate::vmdk::{ExtentName, NameError, NewExtent};

/// Sectors of each file but the last: 2 GiB less 1 MiB, as VMware cuts.
const EXTENT_SECTORS: u64 = 4_192_256;
/// Most files of a split disk, 2 TiB: each is open as long as the disk is.
pub const SPLIT_EXTENTS_MAX: usize = 1024;

const _: () = assert!(EXTENT_SECTORS * 512 == (2 << 30) - (1 << 20));
const _: () = assert!(SPLIT_EXTENTS_MAX <= super::super::EXTENTS_MAX);

/// The files of a disk of `sectors` whose descriptor is `STEM.vmdk`; `None` if there would be too many.
///
/// # Errors
/// A name can't stand in a descriptor.
pub(in crate::vmdk) fn extents_of_new_disk(stem: &str, sectors: u64) -> Result<Option<Vec<NewExtent>>, NameError> {
    let count = sectors.div_ceil(EXTENT_SECTORS);
    if count > SPLIT_EXTENTS_MAX as u64 {
        return Ok(None);
    }
    let extent = |index: u64| {
        let name = ExtentName::parse(&format!("{stem}-f{:03}.vmdk", index + 1))?;
        Ok(NewExtent { name, sectors: (sectors - index * EXTENT_SECTORS).min(EXTENT_SECTORS) })
    };
    (0..count).map(extent).collect::<Result<Vec<_>, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(sectors: u64) -> Vec<(String, u64)> {
        let extents = extents_of_new_disk("os", sectors).unwrap().unwrap();
        extents.into_iter().map(|extent| (extent.name.to_string(), extent.sectors)).collect()
    }

    #[test]
    fn a_disk_is_cut_at_two_gib_less_1_mib() {
        assert_eq!(cut(1), [("os-f001.vmdk".to_owned(), 1)]);
        assert_eq!(cut(EXTENT_SECTORS), [("os-f001.vmdk".to_owned(), EXTENT_SECTORS)]);
        let two = cut(EXTENT_SECTORS + 7);
        assert_eq!(two, [("os-f001.vmdk".to_owned(), EXTENT_SECTORS), ("os-f002.vmdk".to_owned(), 7)]);
    }

    #[test]
    fn more_files_than_can_be_open_are_refused() {
        assert_eq!(cut(EXTENT_SECTORS * 1024).len(), SPLIT_EXTENTS_MAX);
        assert_eq!(extents_of_new_disk("os", EXTENT_SECTORS * 1024 + 1).unwrap(), None);
        extents_of_new_disk("a|b", 1).unwrap_err();
    }
}
