//! The descriptor file of an open target: locked, read, and given a new content id where the old one stands.
//!
//! A new id must be on disk before the content changes, survive a crash, and leave no moment in which a hypervisor
//! could open the disk. Replacing the file by a rename would put an unlocked file in its place. So the digits of the id
//! are overwritten in place, through the very descriptor that holds the lock, and synced. Nothing else in the file
//! changes, nor its length. A power loss in between leaves the old id, the new one, or (only where the digits cross a
//! sector's end) digits of both: each is a valid descriptor, and an id that is neither reads as *somebody else wrote*,
//! which costs a comparison and loses nothing. An id of fewer than eight digits keeps its width for the same reason.
//!
//! Who compares ids, and what follows from a foreign one, is the journal's part.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use blockio::{Access, BlockFile, IoError, LockError, LockRole};

use super::{Cid, ContentId, DESCRIPTOR_BYTES_MAX, Descriptor, DescriptorError, Fault};

/// Why a descriptor can't be opened or stamped.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// Somebody else uses the disk.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The file can't be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The file is no descriptor.
    #[error("{path}: {error}")]
    Descriptor {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: DescriptorError,
    },
    /// Somebody changed the descriptor in spite of the lock.
    #[error("{path} was changed by another program while it was locked: stop that program, then open the target again")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// No random number for the new id.
    #[error("no random number for a new content id: {0}")]
    Random(getrandom::Error),
}

/// A descriptor, open and locked until it is dropped or unlocked: a file of its own, or a part of a sparse disk's.
pub struct DescriptorFile {
    file: Arc<BlockFile>,
    /// Where in the file it begins, in bytes.
    at: u64,
    bytes: Vec<u8>,
    descriptor: Descriptor,
}

impl DescriptorFile {
    /// Opens, locks, reads and parses a descriptor, in this order: what is read stays so.
    ///
    /// Waits up to `patience` for another holder of the lock: a killed agent keeps it until its last write has landed.
    ///
    /// # Errors
    /// The file is in use, unreadable or no descriptor.
    pub fn open(path: &Path, patience: Duration) -> Result<Self, StampError> {
        let file = BlockFile::open_text(path, Access::ReadWrite)?;
        file.lock_within(LockRole::TargetDescriptor, patience)?;
        let size = usize::try_from(file.size()).unwrap_or(usize::MAX);
        Self::read(Arc::new(file), 0, size)
    }

    /// Reads and parses the descriptor of `size` bytes from byte `at` of a file that is open for writing and locked.
    ///
    /// # Errors
    /// The file is unreadable or there is no descriptor.
    pub fn inside(file: Arc<BlockFile>, at: u64, size: usize) -> Result<Self, StampError> {
        Self::read(file, at, size)
    }

    fn read(file: Arc<BlockFile>, at: u64, size: usize) -> Result<Self, StampError> {
        let bytes = read_all(&file, at, size)?;
        let descriptor = parse(file.path(), &bytes)?;
        Ok(DescriptorFile { file, at, bytes, descriptor })
    }

    /// What the descriptor says.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// An id that the content could have next.
    ///
    /// # Errors
    /// The system has no random number.
    pub fn draw(&self) -> Result<Cid, StampError> {
        let random = getrandom::u32().map_err(StampError::Random)?;
        Ok(self.descriptor.cid.next(random, self.descriptor.cid_at.len()))
    }

    /// Durably gives the content the id `cid`, which [`DescriptorFile::draw`] has given.
    ///
    /// # Errors
    /// The file can't be written, or isn't what it was.
    pub fn stamp(&mut self, cid: Cid) -> Result<(), StampError> {
        let width = self.descriptor.cid_at.len();
        let digits = format!("{:0width$x}", cid.value());
        assert_eq!(digits.len(), width, "the id was drawn for this descriptor");
        if read_all(&self.file, self.at, self.bytes.len())? != self.bytes {
            return Err(StampError::Changed { path: self.path().to_owned() });
        }
        let mut changes = vec![(self.descriptor.cid_at.clone(), digits)];
        if let Some(place) = &self.descriptor.long_content_id_at {
            let mut high = [0; 12];
            getrandom::fill(&mut high).map_err(StampError::Random)?;
            changes.push((place.clone(), ContentId::new(high, cid).to_string()));
        }
        for (place, text) in changes {
            self.file.write_all_at(text.as_bytes(), self.at + place.start as u64)?;
            self.bytes[place].copy_from_slice(text.as_bytes());
        }
        self.file.sync()?;
        self.descriptor = parse(self.file.path(), &self.bytes)?;
        assert_eq!(self.descriptor.cid, cid, "the id stands where it was read");
        Ok(())
    }

    /// Gives the lock back.
    ///
    /// # Errors
    /// The system refuses, which it has no reason to.
    pub fn unlock(&self) -> Result<(), IoError> {
        self.file.unlock()
    }
}

fn read_all(file: &BlockFile, at: u64, size: usize) -> Result<Vec<u8>, StampError> {
    if size > DESCRIPTOR_BYTES_MAX {
        let error = DescriptorError { line: 0, fault: Fault::TooLarge(size) };
        return Err(StampError::Descriptor { path: file.path().to_owned(), error });
    }
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Descriptor, StampError> {
    Descriptor::parse(bytes).map_err(|error| StampError::Descriptor { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ESXI: &str = include_str!("../../tests/golden/vmdk/esxi-vmfs.vmdk");
    const SEVEN_DIGITS: &str = include_str!("../../tests/golden/vmdk/qemu-monolithic-flat.vmdk");

    fn file_with(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("os.vmdk");
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    /// How many bytes differ, and the new text.
    fn stamped(text: &str) -> (String, Cid, Cid) {
        let (_folder, path) = file_with(text);
        let mut file = DescriptorFile::open(&path, Duration::ZERO).unwrap();
        let old = file.descriptor().cid;
        let new = file.draw().unwrap();
        file.stamp(new).unwrap();
        assert_eq!(file.descriptor().cid, new);
        let after = fs::read_to_string(&path).unwrap();
        assert_eq!(Descriptor::parse(after.as_bytes()).unwrap(), *file.descriptor());
        (after, old, new)
    }

    #[test]
    fn a_new_content_id_replaces_the_digits_of_the_old_and_nothing_else() {
        let (after, old, new) = stamped(ESXI);
        assert_ne!(old, new);
        let long_at = Descriptor::parse(ESXI.as_bytes()).unwrap().long_content_id_at.unwrap();
        let mut expected = ESXI.replace(&format!("CID={old}"), &format!("CID={new}"));
        assert!(after[long_at.clone()].ends_with(&new.to_string()));
        expected.replace_range(long_at.clone(), &after[long_at]);
        assert_eq!(after, expected);
    }

    #[test]
    fn an_id_of_seven_digits_keeps_its_width() {
        let (after, _, new) = stamped(SEVEN_DIGITS);
        assert_eq!(after, SEVEN_DIGITS.replace("CID=2592e34", &format!("CID={:07x}", new.value())));
    }

    #[test]
    fn a_descriptor_that_was_changed_under_the_lock_is_not_stamped() {
        let (_folder, path) = file_with(ESXI);
        let mut file = DescriptorFile::open(&path, Duration::ZERO).unwrap();
        let cid = file.draw().unwrap();
        fs::write(&path, ESXI.replace("CID=fffffffe", "CID=0badcafe")).unwrap();
        assert!(matches!(file.stamp(cid), Err(StampError::Changed { .. })));
        assert!(fs::read_to_string(&path).unwrap().contains("CID=0badcafe"));
    }

    #[test]
    fn a_descriptor_is_locked_until_it_is_unlocked_or_dropped() {
        let (_folder, path) = file_with(ESXI);
        let file = DescriptorFile::open(&path, Duration::ZERO).unwrap();
        assert!(matches!(DescriptorFile::open(&path, Duration::ZERO), Err(StampError::Lock(LockError::Held { .. }))));
        file.unlock().unwrap();
        drop(DescriptorFile::open(&path, Duration::ZERO).unwrap());
        DescriptorFile::open(&path, Duration::ZERO).unwrap();
    }

    #[test]
    fn what_is_no_descriptor_is_refused_by_name() {
        let (_folder, path) = file_with("# Disk DescriptorFile\nversion=9\n");
        let refused = DescriptorFile::open(&path, Duration::ZERO).err().unwrap().to_string();
        assert!(refused.contains("os.vmdk: line 2: version is \"9\""), "{refused}");
        fs::write(&path, vec![b'#'; DESCRIPTOR_BYTES_MAX + 1]).unwrap();
        assert!(matches!(DescriptorFile::open(&path, Duration::ZERO), Err(StampError::Descriptor { .. })));
    }
}
