//! What a protected disk is recognised by, and whether somebody else may have written it while the agent was away.
//!
//! Two questions. Is it the same disk? A file is its inode and the time it was made; a device its serial number, the file
//! behind a loop device, or, where the system knows nothing better, its path. Was it written meanwhile? That can be told
//! only after a clean stop: a file by its times, a device by the kernel's count of writes since it appeared, which ends
//! with a reboot (REVIEW W9): then it is compared, unless the operator says that nobody else writes it (`exclusive`). After a crash the marks say what this agent was writing; that nobody else wrote is then
//! taken on trust, and a verification finds it out.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

/// Begin of `Identity::same` where nothing but the path is known.
const BY_PATH: &str = "device path ";
/// In `Identity::written` of a device: before it stands when it appeared, behind it what was written since.
const WRITES: &str = " writes ";

/// What is remembered of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Name of the disk in the configuration.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Which disk it is.
    pub same: String,
    /// What changes with every write.
    pub written: String,
}

/// How a disk compares with what is remembered of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// The same disk, and nobody has written it since.
    Untouched,
    /// The same disk; it may have been written.
    Same,
    /// Another disk, or another size.
    Other,
}

impl Identity {
    /// Looks at a disk.
    ///
    /// # Errors
    /// The system's, when the disk can't be looked at.
    pub fn of(name: &str, path: &Path, size: u64) -> std::io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let (same, written) =
            if metadata.file_type().is_block_device() { device(path, metadata.rdev()) } else { file(&metadata) };
        Ok(Self { name: name.to_owned(), size, same, written })
    }

    /// Compares what is there now with what was remembered.
    #[must_use]
    pub fn sight(&self, remembered: &Self) -> Sight {
        let is_same = (&self.name, self.size, &self.same) == (&remembered.name, remembered.size, &remembered.same);
        match is_same {
            false => Sight::Other,
            true if self.written == remembered.written => Sight::Untouched,
            true => Sight::Same,
        }
    }
}

impl Identity {
    /// Whether a device has only been away and come back, by a reboot or a new attachment: the kernel then counts its
    /// writes anew, and nothing shows whether somebody wrote it meanwhile. Only a device that is known by more than its
    /// path can be told to be the same.
    #[must_use]
    pub fn was_only_away(&self, remembered: &Self) -> bool {
        let appearance = |identity: &Self| identity.written.rsplit_once(WRITES).map(|(when, _)| when.to_owned());
        let is_known = !self.same.starts_with(BY_PATH) && self.same == remembered.same;
        match (appearance(self), appearance(remembered)) {
            (Some(now), Some(before)) => is_known && now != before,
            _ => false,
        }
    }
}

fn file(metadata: &fs::Metadata) -> (String, String) {
    let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let born = born.map_or_else(|| "unknown".to_owned(), |since| since.as_nanos().to_string());
    let same = format!("file inode {} made {born}", metadata.ino());
    let written = format!(
        "modified {}.{:09} changed {}.{:09}",
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    );
    (same, written)
}

fn device(path: &Path, number: u64) -> (String, String) {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let folder = format!("/sys/dev/block/{major}:{minor}");
    let read = |file: &str| fs::read_to_string(format!("{folder}/{file}")).ok().map(|text| text.trim().to_owned());
    let names = ["loop/backing_file", "dm/uuid", "wwid", "device/wwid", "serial", "device/serial"];
    let known = names.iter().find_map(|name| read(name).filter(|text| !text.is_empty()).map(|text| (name, text)));
    let same =
        known.map_or_else(|| format!("{BY_PATH}{}", path.display()), |(name, text)| format!("device {name} {text}"));
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // Fields 5 and 7 are the writes completed and the sectors written.
    let writes: Vec<String> = read("stat")
        .map(|stat| {
            stat.split_whitespace()
                .enumerate()
                .filter(|(at, _)| [4, 6].contains(at))
                .map(|(_, n)| n.to_owned())
                .collect()
        })
        .unwrap_or_default();
    let written =
        format!("boot {} diskseq {}{WRITES}{}", boot.trim(), read("diskseq").unwrap_or_default(), writes.join("/"));
    (same, written)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "somebody else replaces the disk, in whatever way")]
    fn a_file_is_recognised_and_a_write_by_somebody_else_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, [0; 512]).unwrap();
        let look = || Identity::of("os", &path, 512).unwrap();
        let before = look();
        assert_eq!(look().sight(&before), Sight::Untouched);
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(b"x").unwrap();
        assert_eq!(look().sight(&before), Sight::Same);
        fs::copy(&path, folder.path().join("copy")).unwrap();
        fs::rename(folder.path().join("copy"), &path).unwrap();
        assert_eq!(look().sight(&before), Sight::Other);
        assert_eq!(Identity { size: 1024, ..before.clone() }.sight(&before), Sight::Other);
        assert_eq!(Identity { name: "data".into(), ..before.clone() }.sight(&before), Sight::Other);
    }

    #[test]
    fn a_device_that_was_only_away_is_told_from_one_that_was_written_or_is_another() {
        let device = |same: &str, written: &str| Identity {
            name: "os".into(),
            size: 512,
            same: same.to_owned(),
            written: written.to_owned(),
        };
        let before = device("device serial 7", "boot a diskseq 3 writes 10/80");
        assert!(device("device serial 7", "boot b diskseq 1 writes 0/0").was_only_away(&before), "a reboot");
        assert!(device("device serial 7", "boot a diskseq 9 writes 0/0").was_only_away(&before), "a new attachment");
        assert!(
            !device("device serial 7", "boot a diskseq 3 writes 11/88").was_only_away(&before),
            "somebody wrote it"
        );
        assert!(!device("device serial 8", "boot b diskseq 1 writes 0/0").was_only_away(&before), "another device");
        let by_path = device("device path /dev/vdb", "boot a diskseq 3 writes 10/80");
        assert!(!device("device path /dev/vdb", "boot b diskseq 3 writes 0/0").was_only_away(&by_path));
        let file = device("file inode 1 made 2", "modified 1.0 changed 1.0");
        assert!(!device("file inode 1 made 2", "modified 2.0 changed 2.0").was_only_away(&file));
    }

    #[test]
    fn a_disk_that_is_not_there_is_an_error() {
        assert!(Identity::of("os", Path::new("/nonexistent/disk"), 512).is_err());
    }
}
