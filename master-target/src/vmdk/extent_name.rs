//! The name of an extent file, as written inside a descriptor: untrusted text that decides which file is written.
//!
//! Only plain names and relative paths of plain names pass. Where the name leads (symbolic links) is checked when the
//! file is opened, by `target::folder`.

use std::{fmt, path::Path};

/// Longest name, in bytes; what a path may have on Linux.
const NAME_BYTES_MAX: usize = 4095;
/// Longest single component, in bytes.
const COMPONENT_BYTES_MAX: usize = 255;

/// A relative path without `..`, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentName(String);

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no name.
    #[error("is empty")]
    Empty,
    /// The name, or a part of it, is too long to be a file's.
    #[error("is too long for a file name")]
    TooLong,
    /// The name starts at the root, or with a drive letter.
    #[error("is an absolute path")]
    Absolute,
    /// The name has a component `..`.
    #[error("leaves its folder with \"..\"")]
    Parent,
    /// The name has a scheme: an object on vSAN or a Virtual Volume.
    #[error("is an object's address, not a file")]
    Object,
    /// An empty component or `.`, a control character, `\` or `|` (an escape to some readers, a character to others).
    #[error("has a character or an empty part that programs read differently")]
    Ambiguous,
}

impl ExtentName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError`] says what is wrong with it.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let bytes = name.as_bytes();
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        if name.contains("://") {
            return Err(NameError::Object);
        }
        let drive = bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':';
        if name.starts_with(['/', '\\']) || drive {
            return Err(NameError::Absolute);
        }
        for component in name.split(['/', '\\']) {
            match component {
                ".." => return Err(NameError::Parent),
                "" | "." => return Err(NameError::Ambiguous),
                long if long.len() > COMPONENT_BYTES_MAX => return Err(NameError::TooLong),
                _ => {}
            }
        }
        if name.chars().any(|c| c.is_control() || matches!(c, '\\' | '|' | '"')) {
            return Err(NameError::Ambiguous);
        }
        Ok(ExtentName(name.to_owned()))
    }

    /// The name as a relative path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for ExtentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_and_relative_paths_are_accepted() {
        for name in ["os-flat.vmdk", "disks/os flat.vmdk", "größe.bin", "..hidden", "a..b", "x:y"] {
            // "x:y" would be a drive letter.
            let expected = if name == "x:y" { Err(NameError::Absolute) } else { Ok(ExtentName(name.to_owned())) };
            assert_eq!(ExtentName::parse(name), expected, "{name}");
        }
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in ["..", "../x", "a/../x", "a/..", "..\\x", "a\\..\\x"] {
            assert_eq!(ExtentName::parse(name), Err(NameError::Parent), "{name}");
        }
        for name in ["/etc/passwd", "\\x", "C:\\x", "c:x"] {
            assert_eq!(ExtentName::parse(name), Err(NameError::Absolute), "{name}");
        }
    }

    #[test]
    fn names_that_are_no_file_or_read_differently_elsewhere_are_refused() {
        assert_eq!(ExtentName::parse(""), Err(NameError::Empty));
        assert_eq!(ExtentName::parse("vsan://52a5-1"), Err(NameError::Object));
        for name in ["a//b", "./a", "a/.", "a/", "a\\b", "a|22b", "a\0b", "a\tb", "a\"b"] {
            assert_eq!(ExtentName::parse(name), Err(NameError::Ambiguous), "{name:?}");
        }
        assert_eq!(ExtentName::parse(&"a".repeat(256)), Err(NameError::TooLong));
        assert_eq!(ExtentName::parse(&"a/".repeat(3000)), Err(NameError::TooLong));
    }
}
