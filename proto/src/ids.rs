//! Newtypes of the numbers and names that both agents speak of, so that a set number is never taken for a phase.
//!
//! They carry no logic beyond counting on and checking a name's spelling.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::{DISKS_PER_GROUP_MAX, NAME_BYTES_MAX};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            ///
            /// # Panics
            /// At 2^64, which counting by one never reaches.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("counted by one from zero"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> u64 {
                value.0
            }
        }
    };
}

number! {
    /// One stretch of conversation about a group (rule L2): new after a source start, an overflow, a rollback.
    Phase
}
number! {
    /// Number of a change set of a group: gapless, and going on through phases (rule L2). 0 is "none yet".
    SetNumber
}
number! {
    /// The source's count of cuts of a group: a write belongs to the epoch in which it arrived.
    Epoch
}
number! {
    /// The target's count of durable steps, stored with its data (rule L1). A lower one than known means a restored target.
    Counter
}

/// Place of a disk in the list of its group, the same on both sides for the length of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskIndex(pub u32);

impl DiskIndex {
    /// The index as a position in a slice.
    #[must_use]
    pub fn position(self) -> usize {
        self.0 as usize
    }

    /// True where a group could have a disk of this index.
    #[must_use]
    pub fn is_possible(self) -> bool {
        self.position() < DISKS_PER_GROUP_MAX
    }
}

impl fmt::Display for DiskIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of one history of a group on a target: 16 random bytes, new whenever that history is not a continuation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lineage(pub [u8; 16]);

impl Lineage {
    /// Bytes of a lineage.
    pub const BYTES: usize = 16;

    /// The lineage as it stands in a message.
    #[must_use]
    pub fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// The lineage of a message; `None` for any other length than 16, the empty "not known yet" included.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lineage({self})")
    }
}

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is not a valid name: use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or a digit"
)]
pub struct NameError {
    text: String,
}

/// Checks the spelling that groups, disks and agents share: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`. Such a name is safe as
/// a file name, in an NBD export name and in a certificate.
pub fn check_name(text: &str) -> Result<(), NameError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let legal = text.len() <= NAME_BYTES_MAX
        && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && text.bytes().all(inner);
    // The text may come from a peer: keep what is quoted short.
    if legal { Ok(()) } else { Err(NameError { text: text.chars().take(NAME_BYTES_MAX + 1).collect() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check_name(&text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check_name(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name! {
    /// Name of a replication group.
    GroupName
}
name! {
    /// Name of a protected disk inside its group.
    DiskName
}
name! {
    /// Name of one of several machines of a group.
    MachineName
}
name! {
    /// Name of an agent: it stands in its certificate, so it is what grants are given to.
    AgentName
}

impl MachineName {
    /// The name that a disk of this machine has in the group, on both sides: `MACHINE.DISK`.
    ///
    /// # Errors
    /// `NameError` where the two together are too long for a name.
    pub fn disk(&self, disk: &DiskName) -> Result<DiskName, NameError> {
        format!("{self}.{disk}").try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_a_machine_bears_both_names() {
        let machine: MachineName = "web-1".parse().unwrap();
        assert_eq!(machine.disk(&"os".parse().unwrap()).unwrap(), "web-1.os");
        let long: DiskName = "d".repeat(58).parse().unwrap();
        assert!(machine.disk(&long).is_err());
    }

    #[test]
    fn names_of_letters_digits_dots_underscores_and_dashes_are_taken() {
        for text in ["a", "7", "web", "Web-1.example_x", &"a".repeat(63)] {
            assert_eq!(text.parse::<GroupName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_that_are_empty_long_or_could_leave_a_folder_are_refused() {
        for text in ["", ".", "..", "-a", "_a", "a/b", "a b", "a\0", "ä", "a\n", &"a".repeat(64)] {
            assert!(text.parse::<DiskName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_refused_name_of_a_peer_is_quoted_only_in_part() {
        let message = "x".repeat(1 << 20).parse::<GroupName>().unwrap_err().to_string();
        assert!(message.len() < 300);
    }

    #[test]
    fn a_lineage_has_sixteen_bytes() {
        assert_eq!(Lineage::from_slice(&[7; 16]), Some(Lineage([7; 16])));
        assert_eq!(Lineage::from_slice(&[]), None);
        assert_eq!(Lineage::from_slice(&[7; 17]), None);
        assert_eq!(Lineage([0xab; 16]).to_string(), "ab".repeat(16));
    }
}
