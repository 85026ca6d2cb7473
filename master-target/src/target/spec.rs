//! The configured name of a target: `[datastore] folder/disk.vmdk`, or the absolute path of a raw file or block device.
//!
//! Parsing touches no file; `folder` and `open` do.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::vmdk::{ExtentName, NameError};

/// A folder that holds VMDKs, by the name that targets use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datastore {
    /// The name in brackets.
    pub name: String,
    /// The folder.
    pub path: PathBuf,
}

/// A target as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSpec {
    /// A VMDK's descriptor in a datastore.
    Vmdk {
        /// The datastore's name.
        datastore: String,
        /// The descriptor, relative to the datastore; its name ends in `.vmdk`.
        name: ExtentName,
    },
    /// A raw file or a block device.
    Path(PathBuf),
}

/// Why a string names no target. Each message begins with the string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither form.
    #[error("{0:?} is neither \"[datastore] folder/disk.vmdk\" nor an absolute path: write one of these")]
    Form(String),
    /// The bracket isn't closed, or nothing is in it or after it.
    #[error("{0:?} needs a datastore's name in brackets and a path after it, as in \"[ds1] web/os.vmdk\"")]
    Brackets(String),
    /// The path after the brackets.
    #[error("{spec:?}: the path {why}: name a file below the datastore's folder")]
    Name {
        /// The configured string.
        spec: String,
        /// What is wrong with the path.
        why: NameError,
    },
    /// The path in a datastore isn't a descriptor's.
    #[error("{0:?}: the path in a datastore must end in \".vmdk\"; name a raw file by its absolute path")]
    NotVmdk(String),
    /// The data file instead of the descriptor.
    #[error("{0:?} is the data of a flat VMDK: name its descriptor, without \"-flat\"")]
    FlatData(String),
    /// A VMDK by absolute path.
    #[error(
        "{0:?} is a VMDK outside a datastore: add a [[datastore]] with its folder, and write \"[NAME] path/disk.vmdk\""
    )]
    VmdkPath(String),
    /// An absolute path that isn't plain.
    #[error("{0:?} must not have \"..\" in it: write the path it leads to")]
    ParentInPath(String),
}

impl TargetSpec {
    /// Parses a configured string.
    ///
    /// # Errors
    /// [`SpecError`] says what to write instead.
    pub fn parse(text: &str) -> Result<TargetSpec, SpecError> {
        let spec = text.trim();
        if spec.starts_with('[') {
            return Self::parse_vmdk(spec);
        }
        if !spec.starts_with('/') || spec.contains('\0') || spec.ends_with('/') {
            return Err(SpecError::Form(spec.to_owned()));
        }
        let path = Path::new(spec);
        if path.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
            return Err(SpecError::ParentInPath(spec.to_owned()));
        }
        if has_vmdk_extension(path) {
            return Err(SpecError::VmdkPath(spec.to_owned()));
        }
        Ok(TargetSpec::Path(path.to_owned()))
    }

    fn parse_vmdk(spec: &str) -> Result<TargetSpec, SpecError> {
        let brackets = || SpecError::Brackets(spec.to_owned());
        let (datastore, path) = spec[1..].split_once(']').ok_or_else(brackets)?;
        let (datastore, path) = (datastore.trim(), path.trim());
        if datastore.is_empty() || path.is_empty() {
            return Err(brackets());
        }
        let name = ExtentName::parse(path).map_err(|why| SpecError::Name { spec: spec.to_owned(), why })?;
        if !has_vmdk_extension(name.as_path()) {
            return Err(SpecError::NotVmdk(spec.to_owned()));
        }
        if path.ends_with("-flat.vmdk") {
            return Err(SpecError::FlatData(spec.to_owned()));
        }
        Ok(TargetSpec::Vmdk { datastore: datastore.to_owned(), name })
    }
}

fn has_vmdk_extension(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("vmdk"))
}

impl fmt::Display for TargetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetSpec::Vmdk { datastore, name } => write!(f, "[{datastore}] {name}"),
            TargetSpec::Path(path) => path.display().fmt(f),
        }
    }
}

impl std::str::FromStr for TargetSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        TargetSpec::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datastore_path_a_device_and_a_raw_file_are_targets() {
        for (text, shown) in [
            ("[ds1] web/os.vmdk", "[ds1] web/os.vmdk"),
            ("  [ data store ]os.VMDK ", "[data store] os.VMDK"),
            ("/dev/loop5", "/dev/loop5"),
            ("/srv/disks/os.raw", "/srv/disks/os.raw"),
        ] {
            assert_eq!(TargetSpec::parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn strings_that_name_no_target_are_refused() {
        for text in ["", "os.raw", "./os.raw", "/srv/", "ds1 web/os.vmdk", "/a\0b"] {
            assert!(matches!(TargetSpec::parse(text), Err(SpecError::Form(_))), "{text:?}");
        }
        for text in ["[ds1", "[ds1]", "[] os.vmdk", "[ ] os.vmdk", "[ds1]   "] {
            assert!(matches!(TargetSpec::parse(text), Err(SpecError::Brackets(_))), "{text:?}");
        }
    }

    #[test]
    fn a_path_that_leaves_the_datastore_is_refused() {
        for (text, why) in [
            ("[ds1] ../os.vmdk", NameError::Parent),
            ("[ds1] web/../../os.vmdk", NameError::Parent),
            ("[ds1] /etc/os.vmdk", NameError::Absolute),
            ("[ds1] web//os.vmdk", NameError::Ambiguous),
        ] {
            let expected = SpecError::Name { spec: text.to_owned(), why };
            assert_eq!(TargetSpec::parse(text), Err(expected), "{text:?}");
        }
        assert!(matches!(TargetSpec::parse("/srv/../etc/x"), Err(SpecError::ParentInPath(_))));
    }

    #[test]
    fn a_vmdk_is_named_by_its_descriptor_in_a_datastore() {
        assert!(matches!(TargetSpec::parse("/srv/os.vmdk"), Err(SpecError::VmdkPath(_))));
        assert!(matches!(TargetSpec::parse("/srv/os.Vmdk"), Err(SpecError::VmdkPath(_))));
        assert!(matches!(TargetSpec::parse("[ds1] os.raw"), Err(SpecError::NotVmdk(_))));
        assert!(matches!(TargetSpec::parse("[ds1] os-flat.vmdk"), Err(SpecError::FlatData(_))));
    }
}
