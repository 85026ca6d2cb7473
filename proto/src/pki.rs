//! Keys for a pair of agents: an authority of their own and a certificate for each, as `master-target pki` makes them.
//!
//! The authority signs nothing else and may sign no other authority. Certificates serve as client's and as server's,
//! since a process-server is the client of the link and the server of NBD. Nothing is ever overwritten.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::ServerName;
use thiserror::Error;

use crate::ids::{NameError, check_name};

const DAY: Duration = Duration::from_secs(86_400);
/// Renewal means new files on both machines, in the middle of a disaster if it is due then.
const VALID_DAYS: u32 = 3652;

/// Why no keys were made. What had been written by then is removed again.
#[derive(Debug, Error)]
pub enum PkiError {
    /// An agent's name is misspelt.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A name that can't stand in a certificate, or stands for something else already.
    #[error("{name:?} can't be used: {what}")]
    Unusable {
        /// The name or the `--san`.
        name: String,
        /// Why, and what to do.
        what: &'static str,
    },
    /// A file is there already.
    #[error("{} exists: keys are never overwritten; choose another folder, or remove the old keys yourself", file.display())]
    Exists {
        /// The first such file.
        file: PathBuf,
    },
    /// A file can't be written.
    #[error("{}: can't write it: {source}", file.display())]
    Write {
        /// Path of the file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate can't be made.
    #[error("can't make a certificate for {name:?}: {source}")]
    Certificate {
        /// Whose.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
}

/// Writes `ca.pem`, `ca.key` and `NAME.pem`, `NAME.key` for both agents into `folder`, which is made if missing.
///
/// `sans` are further host names or addresses for both certificates, for clients that check them (NBD over TLS).
/// Keys can be read by their owner only. Returns the paths written.
pub fn generate(
    folder: &Path,
    process_server: &str,
    master_target: &str,
    sans: &[String],
) -> Result<Vec<PathBuf>, PkiError> {
    check_names(process_server, master_target, sans)?;
    let files = make(process_server, master_target, sans)?;
    let files: Vec<_> = files.into_iter().map(|(name, text, mode)| (folder.join(name), text, mode)).collect();
    if let Some((file, ..)) = files.iter().find(|(file, ..)| file.symlink_metadata().is_ok()) {
        return Err(PkiError::Exists { file: file.clone() });
    }
    let unwritable = |source| PkiError::Write { file: folder.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unwritable)?;
    let mut written = Vec::new();
    for (file, text, mode) in files {
        if let Err(error) = write_new(&file, &text, mode) {
            // Half a set of keys would stand in the way of the next attempt.
            written.iter().for_each(|file: &PathBuf| drop(std::fs::remove_file(file)));
            return Err(error);
        }
        written.push(file);
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(unwritable)?;
    Ok(written)
}

fn check_names(process_server: &str, master_target: &str, sans: &[String]) -> Result<(), PkiError> {
    let unusable = |name: &str, what| Err(PkiError::Unusable { name: name.to_owned(), what });
    if process_server == master_target {
        return unusable(process_server, "the two agents need names of their own");
    }
    for name in [process_server, master_target] {
        check_name(name)?;
        if name == "ca" {
            return unusable(name, "its files would be those of the authority");
        }
        if sans.iter().any(|san| san == name) {
            return unusable(name, "a --san stands in both certificates and must not be an agent's name");
        }
    }
    for name in [process_server, master_target].into_iter().chain(sans.iter().map(String::as_str)) {
        if ServerName::try_from(name).is_err() {
            return unusable(name, "a certificate takes host names (not ending in '-' or a bare number) and addresses");
        }
    }
    Ok(())
}

/// Name, PEM text and mode of each file.
fn make(process_server: &str, master_target: &str, sans: &[String]) -> Result<Vec<(String, String, u32)>, PkiError> {
    let failed = |name: &str| {
        let name = name.to_owned();
        move |source| PkiError::Certificate { name, source }
    };
    let authority = authority_params();
    let authority_key = KeyPair::generate().map_err(failed("ca"))?;
    let authority_cert = authority.self_signed(&authority_key).map_err(failed("ca"))?;
    let authority_key_pem = authority_key.serialize_pem();
    let issuer = Issuer::new(authority, authority_key);
    let mut files =
        vec![("ca.pem".to_owned(), authority_cert.pem(), 0o644), ("ca.key".to_owned(), authority_key_pem, 0o600)];
    for name in [process_server, master_target] {
        let key = KeyPair::generate().map_err(failed(name))?;
        let certificate = agent_params(name, sans).and_then(|params| params.signed_by(&key, &issuer));
        files.push((format!("{name}.pem"), certificate.map_err(failed(name))?.pem(), 0o644));
        files.push((format!("{name}.key"), key.serialize_pem(), 0o600));
    }
    Ok(files)
}

fn authority_params() -> CertificateParams {
    let mut params = with_validity(CertificateParams::default());
    params.distinguished_name.push(DnType::CommonName, "Backhaul authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn agent_params(name: &str, sans: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let names: Vec<String> = std::iter::once(name.to_owned()).chain(sans.iter().cloned()).collect();
    let mut params = with_validity(CertificateParams::new(names)?);
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    // GnuTLS, and with it QEMU, asks for the second of what it speaks NBD over TLS with.
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

#[expect(clippy::disallowed_methods, reason = "making keys is a command of its own, no core calls it")]
fn with_validity(mut params: CertificateParams) -> CertificateParams {
    let now = SystemTime::now();
    // A day back: the clocks of the two machines may differ.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * VALID_DAYS).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

fn write_new(file: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
    let mut opened = opened.map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => PkiError::Exists { file: file.to_owned() },
        _ => PkiError::Write { file: file.to_owned(), source },
    })?;
    opened.write_all(text.as_bytes()).and_then(|()| opened.sync_all()).map_err(|source| {
        drop(std::fs::remove_file(file));
        PkiError::Write { file: file.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_of_an_authority_and_both_agents_are_written_for_their_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("new/keys");
        let written = generate(&keys, "ps-1", "mt-1", &[]).unwrap();
        let names: Vec<_> = written.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["ca.pem", "ca.key", "ps-1.pem", "ps-1.key", "mt-1.pem", "mt-1.key"]);
        for file in &written {
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            let is_key = file.extension().unwrap() == "key";
            assert!(if is_key { mode == 0o600 } else { mode & 0o444 != 0 }, "{} has {mode:o}", file.display());
        }
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_is_left_beside_what_was_there() {
        for name in ["ca.pem", "ca.key", "ps-1.pem", "mt-1.key"] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(name), "mine").unwrap();
            let error = generate(folder.path(), "ps-1", "mt-1", &[]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), b"mine");
            assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        }
    }

    #[test]
    fn a_dangling_link_in_the_place_of_a_key_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, folder.path().join("mt-1.key")).unwrap();
        assert!(matches!(generate(folder.path(), "ps-1", "mt-1", &[]), Err(PkiError::Exists { .. })));
        assert!(!elsewhere.exists());
    }

    #[test]
    fn names_that_no_certificate_or_file_should_have_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let san = |text: &str| vec![text.to_owned()];
        for (process_server, master_target, sans) in [
            ("x", "x", vec![]),
            ("ca", "mt-1", vec![]),
            ("../ps", "mt-1", vec![]),
            ("ps-1", "", vec![]),
            ("ps-", "mt-1", vec![]),
            ("ps-1", "mt-1", san("mt-1")),
            ("ps-1", "mt-1", san("a b")),
            ("ps-1", "mt-1", san("")),
        ] {
            assert!(generate(folder.path(), process_server, master_target, &sans).is_err());
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
