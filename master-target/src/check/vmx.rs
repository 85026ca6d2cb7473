//! What a machine's `.vmx` says about a disk: [`Vmx::parse`].
//!
//! The file lies on a datastore that others write: its size is bounded by the reader, and nothing in it names a file that
//! is opened. It is lines of `key = "value"`; keys count without regard to case.

use std::collections::HashMap;

/// Largest file that is read; VMware's have some KiB.
pub const VMX_BYTES_MAX: u64 = 1 << 20;

/// A machine's settings.
#[derive(Clone, Debug, Default)]
pub struct Vmx {
    settings: HashMap<String, String>,
}

impl Vmx {
    /// Parses a file; what is no setting is left out.
    pub fn parse(bytes: &[u8]) -> Vmx {
        let text = String::from_utf8_lossy(bytes);
        let setting = |line: &str| {
            let (key, value) = line.split_once('=')?;
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            Some((key.trim().to_ascii_lowercase(), value.to_owned()))
        };
        Vmx { settings: text.lines().filter(|line| !line.starts_with('#')).filter_map(setting).collect() }
    }

    /// Whether the machine shows its disks' UUIDs to its guest.
    pub fn shows_uuids(&self) -> bool {
        self.settings.get("disk.enableuuid").is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// The slot that a disk, by its descriptor's file name, is attached to, such as `scsi0:1`.
    pub fn slot_of(&self, descriptor: &str) -> Option<&str> {
        self.settings.iter().find_map(|(key, value)| {
            let slot = key.strip_suffix(".filename")?;
            let name = value.rsplit(['/', '\\']).next()?;
            (slot.contains(':') && name == descriptor).then_some(slot)
        })
    }

    /// The kind of the controller of a slot, such as `pvscsi`.
    pub fn controller_of(&self, slot: &str) -> Option<&str> {
        let controller = slot.split(':').next()?;
        self.settings.get(&format!("{controller}.virtualdev")).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = ".encoding = \"UTF-8\"\n# scsi0:9.fileName = \"x.vmdk\"\nscsi0.virtualDev = \"pvscsi\"\n\
        scsi0:1.fileName = \"/vmfs/volumes/ds1/web/os.vmdk\"\nDisk.EnableUUID = \"TRUE\"\nscsi1:0.fileName = \"data.vmdk\"\n\
        floppy0.fileName = \"f.vmdk\"\n";

    #[test]
    fn a_disk_is_found_by_its_file_name_and_its_controller_by_the_slot() {
        let vmx = Vmx::parse(MACHINE.as_bytes());
        assert!(vmx.shows_uuids());
        assert_eq!(vmx.slot_of("os.vmdk"), Some("scsi0:1"));
        assert_eq!(vmx.controller_of("scsi0:1"), Some("pvscsi"));
        assert_eq!((vmx.slot_of("data.vmdk"), vmx.controller_of("scsi1:0")), (Some("scsi1:0"), None));
        assert_eq!((vmx.slot_of("f.vmdk"), vmx.slot_of("x.vmdk")), (None, None));
    }

    #[test]
    fn bytes_that_nobody_meant_to_be_settings_say_nothing() {
        for bytes in [&b""[..], b"\xff\xfe=\x00", b"===\n\"=\"", b"disk.enableUUID = \"FALSE\""] {
            let vmx = Vmx::parse(bytes);
            assert!(!vmx.shows_uuids() && vmx.slot_of("os.vmdk").is_none());
        }
    }
}
