//! The mount table, as the kernel writes it in `/proc/self/mountinfo`: [`parse`] and [`holding`].

use std::path::{Path, PathBuf};

/// A device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DeviceNumber {
    /// Parses `MAJOR:MINOR`.
    pub fn parse(text: &str) -> Option<DeviceNumber> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device that files in it have.
    pub device: DeviceNumber,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its kind, such as `ext4`.
    pub file_system: String,
    /// What was mounted, such as a device.
    pub source: String,
    /// Nothing can be written, by the mount's options or the file system's.
    pub is_read_only: bool,
}

/// Parses the whole table; lines that can't be are left out, as a newer kernel may write more kinds of them.
pub fn parse(text: &str) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in text.lines().filter_map(parse_line) {
        // What is mounted over another hides it.
        mounts.retain(|hidden| hidden.point != mount.point);
        mounts.push(mount);
    }
    mounts
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [FIELDS ...] - TYPE SOURCE OPTIONS`
fn parse_line(line: &str) -> Option<Mount> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(2);
    let device = DeviceNumber::parse(place.next()?)?;
    let point = PathBuf::from(unescaped(place.nth(1)?));
    let options = place.next()?;
    let mut kind = kind.split(' ');
    let (file_system, source) = (kind.next()?.to_owned(), unescaped(kind.next()?));
    let is_read_only = [options, kind.next().unwrap_or("")].iter().any(|list| list.split(',').any(|o| o == "ro"));
    Some(Mount { device, point, file_system, source, is_read_only })
}

/// Undoes the kernel's `\040` for a space, and the like.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|code| first == b'\\' && code.iter().all(|c| (b'0'..=b'7').contains(c)));
        match code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The mount that holds an absolute path without links.
pub fn holding<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 22 0:25 / /proc rw,nosuid - proc proc rw
41 22 8:17 / /mnt/my\\040disk ro,relatime shared:2 master:3 - xfs /dev/sdb1 rw
42 22 8:33 / /srv rw - vfat /dev/sdc1 ro
43 22 8:49 / /srv rw - btrfs /dev/sdd1 rw
broken
44 22 x / /y rw - z
";

    #[test]
    fn mounts_are_read_with_their_kind_device_and_mode() {
        let mounts = parse(TABLE);
        let shown: Vec<_> =
            mounts.iter().map(|m| (m.point.to_str().unwrap(), &m.file_system[..], m.is_read_only)).collect();
        let expected =
            [("/", "ext4", false), ("/proc", "proc", false), ("/mnt/my disk", "xfs", true), ("/srv", "btrfs", false)];
        assert_eq!(shown, expected, "the later mount hides the earlier one");
        assert_eq!(mounts[2].device, DeviceNumber { major: 8, minor: 17 });
    }

    #[test]
    fn a_path_is_held_by_the_deepest_mount_above_it() {
        let mounts = parse(TABLE);
        let source = |path: &str| holding(&mounts, Path::new(path)).unwrap().source.clone();
        assert_eq!(source("/srv/ds1/web"), "/dev/sdd1");
        assert_eq!(source("/srvx"), "/dev/sda1");
        assert_eq!(source("/mnt/my disk"), "/dev/sdb1");
    }
}
