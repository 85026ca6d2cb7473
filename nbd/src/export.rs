//! What can be connected to: the disks behind one address, and how a client's name finds one of them.

use std::collections::HashSet;

use super::limits;
use super::reply::Replies;
use super::wire::flag;

/// One disk as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// `GROUP/DISK`.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// For humans, shown by `nbdinfo`.
    pub description: String,
    /// Smallest unit that clients should use, in bytes. It is advice: smaller requests are not refused here.
    pub block_min: u32,
    /// Best unit in bytes.
    pub block_preferred: u32,
    /// Longest read or write in bytes.
    pub block_max: u32,
    /// Refuses everything that changes data.
    pub read_only: bool,
}

impl Export {
    /// What the export can do, in the bits of the protocol. A flush covers all connections, so several may be used.
    pub fn transmission_flags(&self, replies: Replies) -> u16 {
        let common = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
        let access = if self.read_only {
            flag::READ_ONLY
        } else {
            flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
        };
        let framing = match replies {
            Replies::Simple => 0,
            Replies::Structured => flag::SEND_DF,
        };
        common | access | framing
    }

    fn check(&self) -> Result<(), ExportsError> {
        let wrong = |what| Err(ExportsError::Invalid { name: self.name.clone(), what });
        if self.name.is_empty() || self.name.len() > limits::STRING_BYTES_MAX {
            return wrong("its name must have 1 to 4096 bytes");
        }
        if self.description.len() > limits::STRING_BYTES_MAX {
            return wrong("its description must have at most 4096 bytes");
        }
        let powers = self.block_min.is_power_of_two() && self.block_preferred.is_power_of_two();
        if !powers || self.block_min > limits::BLOCK_MIN_MOST {
            return wrong("its block sizes must be powers of two, the smallest at most 65536");
        }
        if self.block_min > self.block_preferred || self.block_preferred > self.block_max {
            return wrong("its block sizes must grow from minimum over preferred to maximum");
        }
        if !(limits::BLOCK_MAX_LEAST..=limits::PAYLOAD_BYTES_MAX).contains(&self.block_max)
            || !self.block_max.is_multiple_of(self.block_min)
        {
            return wrong("its maximum block must lie between 1 MiB and 32 MiB");
        }
        Ok(())
    }
}

/// The exports behind one address, in a fixed order; their indices name them.
#[derive(Debug)]
pub struct Exports(Vec<Export>);

/// Why exports can't be offered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportsError {
    /// Two exports have one name.
    #[error("two NBD exports are named {name:?}; give each disk its own name")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A value is outside what the protocol allows.
    #[error("the NBD export {name:?} can't be offered: {what}")]
    Invalid {
        /// The export.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// More than [`limits::EXPORTS_MAX`].
    #[error("too many disks share one NBD address ({count}, at most {}); use a second address", limits::EXPORTS_MAX)]
    TooMany {
        /// How many were given.
        count: usize,
    },
}

/// Why a client's name finds no export; the text is sent to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoExport {
    /// No export has this name.
    #[error("no such export; nbdinfo --list shows those there are")]
    Unknown,
    /// A bare disk name that several groups have.
    #[error("several groups have a disk of this name; use GROUP/DISK")]
    Ambiguous,
    /// The empty name where there isn't exactly one export.
    #[error("there is no default export here; use GROUP/DISK, nbdinfo --list shows them")]
    NoDefault,
}

impl Exports {
    /// Checks and takes the exports.
    pub fn new(list: Vec<Export>) -> Result<Self, ExportsError> {
        if list.len() > limits::EXPORTS_MAX {
            return Err(ExportsError::TooMany { count: list.len() });
        }
        let mut names = HashSet::new();
        for export in &list {
            export.check()?;
            if !names.insert(export.name.as_str()) {
                return Err(ExportsError::Duplicate { name: export.name.clone() });
            }
        }
        Ok(Self(list))
    }

    /// The export that a client means: by its full name, by its bare disk name where that is unique, or by the empty
    /// name where there is only one.
    pub fn find(&self, name: &str) -> Result<usize, NoExport> {
        if name.is_empty() {
            return if self.0.len() == 1 { Ok(0) } else { Err(NoExport::NoDefault) };
        }
        if let Some(index) = self.0.iter().position(|export| export.name == name) {
            return Ok(index);
        }
        let is_bare_match = |export: &Export| export.name.split_once('/').is_some_and(|(_, disk)| disk == name);
        let mut matches = self.0.iter().enumerate().filter(|(_, export)| is_bare_match(export));
        match (matches.next(), matches.next()) {
            (Some((index, _)), None) => Ok(index),
            (Some(_), Some(_)) => Err(NoExport::Ambiguous),
            (None, _) => Err(NoExport::Unknown),
        }
    }

    /// The export at an index that [`find`](Self::find) gave.
    pub fn at(&self, index: usize) -> &Export {
        &self.0[index]
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Export> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::{Export, Exports, ExportsError, NoExport};
    use crate::reply::Replies;
    use crate::wire::flag;

    fn export(name: &str) -> Export {
        Export {
            name: name.to_owned(),
            size: 1 << 30,
            description: String::new(),
            block_min: 512,
            block_preferred: 4096,
            block_max: 32 << 20,
            read_only: false,
        }
    }

    fn exports(names: &[&str]) -> Exports {
        Exports::new(names.iter().copied().map(export).collect()).unwrap()
    }

    #[test]
    fn a_disk_is_found_by_full_name_by_unique_bare_name_and_by_no_name_when_alone() {
        let two = exports(&["web/os", "db/data"]);
        assert_eq!(two.find("db/data"), Ok(1));
        assert_eq!(two.find("data"), Ok(1));
        assert_eq!(two.find(""), Err(NoExport::NoDefault));
        assert_eq!(exports(&["web/os"]).find(""), Ok(0));
    }

    #[test]
    fn a_bare_name_that_two_groups_have_is_refused() {
        let twins = exports(&["web/os", "db/os"]);
        assert_eq!(twins.find("os"), Err(NoExport::Ambiguous));
        assert_eq!(twins.find("db/os"), Ok(1));
    }

    #[test]
    fn names_that_only_look_alike_are_unknown() {
        let one = exports(&["web/os"]);
        for name in ["web", "web/", "/os", "WEB/os", "web/os ", "web/os\0", "b/os"] {
            assert_eq!(one.find(name), Err(NoExport::Unknown), "{name:?}");
        }
    }

    #[test]
    fn exports_that_the_protocol_can_not_express_are_refused() {
        let wrong = [
            Export { name: String::new(), ..export("") },
            Export { name: "n".repeat(4097), ..export("") },
            Export { description: "d".repeat(4097), ..export("a/b") },
            Export { block_min: 0, ..export("a/b") },
            Export { block_min: 1000, ..export("a/b") },
            Export { block_min: 128 << 10, block_preferred: 128 << 10, ..export("a/b") },
            Export { block_preferred: 256, ..export("a/b") },
            Export { block_max: 4096, ..export("a/b") },
            Export { block_max: (1 << 20) + 1, ..export("a/b") },
            Export { block_max: 64 << 20, ..export("a/b") },
        ];
        for export in wrong {
            assert!(matches!(Exports::new(vec![export]), Err(ExportsError::Invalid { .. })));
        }
        let twice = Exports::new(vec![export("a/b"), export("a/b")]);
        assert_eq!(twice.unwrap_err(), ExportsError::Duplicate { name: "a/b".to_owned() });
        let many = (0..600).map(|i| export(&format!("g/d{i}"))).collect();
        assert_eq!(Exports::new(many).unwrap_err(), ExportsError::TooMany { count: 600 });
    }

    #[test]
    fn the_flags_promise_what_the_access_allows() {
        let writable = export("a/b");
        let read_only = Export { read_only: true, ..export("a/b") };
        let plain = writable.transmission_flags(Replies::Simple);
        assert_eq!(plain, 0b1101_0110_1101);
        assert_eq!(writable.transmission_flags(Replies::Structured), plain | flag::SEND_DF);
        let flags = read_only.transmission_flags(Replies::Simple);
        assert_eq!(flags & (flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO), 0);
        assert_eq!(flags & flag::READ_ONLY, flag::READ_ONLY);
    }
}
