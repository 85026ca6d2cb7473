//! Finds a snapshot of a disk that lies beside it: [`snapshot_of`].
//!
//! A base disk's own descriptor says nothing of its snapshots; they name it. A write into the base would corrupt each of
//! them, so the folder is searched. A linked clone in another folder isn't found; `docs/vmdk.md` says so.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{DESCRIPTOR_BYTES_MAX, Descriptor, FileKind};

/// The first disk in the folder of `descriptor_path` that has it as its parent.
///
/// # Errors
/// The folder, or a VMDK in it, can't be read.
pub fn snapshot_of(descriptor_path: &Path) -> io::Result<Option<PathBuf>> {
    let own_name = descriptor_path.file_name().and_then(OsStr::to_str);
    let (Some(folder), Some(own_name)) = (descriptor_path.parent(), own_name) else { return Ok(None) };
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let candidate = path.extension() == Some(OsStr::new("vmdk")) && path.file_name() != Some(OsStr::new(own_name));
        if candidate && path.is_file() && parent_name(&path)?.as_deref() == Some(own_name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The file name of the parent that a VMDK names, if it does.
fn parent_name(path: &Path) -> io::Result<Option<String>> {
    let (head, size) = head_of(path)?;
    let hint = match FileKind::of(&head, size) {
        FileKind::Descriptor => Descriptor::parse(&head).ok().and_then(|d| d.parent_hint),
        FileKind::Sparse { parent_hint, .. } => parent_hint,
        FileKind::Delta | FileKind::Foreign(_) | FileKind::Data => None,
    };
    // The hint may be a path of another host, of Windows too; only the name can be compared.
    Ok(hint.and_then(|h| h.rsplit(['/', '\\']).next().map(str::to_owned)))
}

/// The first bytes of a file, at most a descriptor's, and its size.
pub(crate) fn head_of(path: &Path) -> io::Result<(Vec<u8>, u64)> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut head = Vec::new();
    file.take(DESCRIPTOR_BYTES_MAX as u64).read_to_end(&mut head)?;
    Ok((head, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(parent: &str) -> String {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=2\nparentCID=1\ncreateType=\"vmfsSparse\"\n\
             parentFileNameHint=\"{parent}\"\nRW 8 VMFSSPARSE \"os-000001-delta.vmdk\"\n"
        )
    }

    #[test]
    fn a_snapshot_beside_its_parent_is_found_by_the_name_it_gives() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("os.vmdk");
        for parent in ["os.vmdk", "/vmfs/volumes/ds1/web/os.vmdk", "C:\\disks\\os.vmdk"] {
            let snapshot = folder.path().join("os-000001.vmdk");
            fs::write(&snapshot, delta(parent)).unwrap();
            assert_eq!(snapshot_of(&base).unwrap(), Some(snapshot), "{parent}");
        }
    }

    #[test]
    fn other_disks_snapshots_and_plain_data_beside_a_disk_do_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("data-000001.vmdk"), delta("data.vmdk")).unwrap();
        fs::write(folder.path().join("os-flat.vmdk"), vec![0; 1 << 17]).unwrap();
        fs::write(folder.path().join("notes.txt"), delta("os.vmdk")).unwrap();
        fs::write(folder.path().join("broken.vmdk"), "# Disk DescriptorFile\n").unwrap();
        assert_eq!(snapshot_of(&folder.path().join("os.vmdk")).unwrap(), None);
    }
}
