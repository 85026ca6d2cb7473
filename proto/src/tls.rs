//! TLS of both agents: PEM files into configurations that demand a certificate from either side.
//!
//! The QUIC link speaks TLS 1.3 with the protocol name "backhaul/1" and without 0-RTT; the NBD listener takes TLS 1.2
//! too, for its clients. Both trust one certificate authority, the operator's own, and nothing of the system. Errors
//! name the file and what to do. Grants are by name: [`peer_names`] tells which names the peer has proven.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use thiserror::Error;
use x509_parser::extensions::GeneralName;

use crate::limits::PEM_BYTES_MAX;

/// Protocol name (ALPN) of the link. Another version of the conversation gets another name.
pub const ALPN: &[u8] = b"backhaul/1";

/// The `[tls]` table of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPaths {
    /// Certificates of the authority that peers must come from.
    pub ca: PathBuf,
    /// This agent's certificate, followed by intermediate ones if there are any.
    pub cert: PathBuf,
    /// The key of that certificate.
    pub key: PathBuf,
}

/// Why PEM files give no TLS configuration.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{}: can't read it: {source}; check the path in [tls] and its permissions", file.display())]
    Read {
        /// Path of the file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {what}", file.display())]
    Content {
        /// Path of the file.
        file: PathBuf,
        /// What is wrong with it and what to do.
        what: String,
    },
}

fn content(file: &Path, what: impl Into<String>) -> TlsError {
    TlsError::Content { file: file.to_owned(), what: what.into() }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Read { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(file).and_then(|opened| opened.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(content(file, format!("more than {PEM_BYTES_MAX} bytes are no certificate or key")));
    }
    Ok(bytes)
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(file)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match parsed {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(content(file, "holds no certificate: a PEM file with BEGIN CERTIFICATE is expected")),
        Err(error) => Err(content(file, format!("is not a valid PEM file: {error}"))),
    }
}

/// What both directions need.
struct Identity {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn read(paths: &TlsPaths) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&paths.ca)? {
            let unusable = |error| content(&paths.ca, format!("is no usable authority: {error}"));
            roots.add(certificate).map_err(unusable)?;
        }
        let chain = read_certificates(&paths.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&paths.key)?).map_err(|error| {
            content(&paths.key, format!("holds no private key (PKCS#8, PKCS#1 or SEC1 in PEM): {error}"))
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(Self { provider, roots: Arc::new(roots), chain, key })
    }

    fn server(
        self,
        paths: &TlsPaths,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<ServerConfig, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots, self.provider.clone())
            .build()
            .map_err(|error| content(&paths.ca, format!("can't verify clients: {error}")))?;
        ServerConfig::builder_with_provider(self.provider)
            .with_protocol_versions(versions)
            .map_err(|error| content(&paths.cert, error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain, self.key)
            .map_err(|error| unfit(paths, &error))
    }
}

fn unfit(paths: &TlsPaths, error: &rustls::Error) -> TlsError {
    let key = paths.key.display();
    content(&paths.cert, format!("doesn't go with the key {key}: {error}; use the pair that was made together"))
}

/// The link's client side: shows this agent's certificate, accepts only peers of the authority.
pub fn client_config(paths: &TlsPaths) -> Result<quinn::ClientConfig, TlsError> {
    let identity = Identity::read(paths)?;
    let mut config = ClientConfig::builder_with_provider(identity.provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| content(&paths.cert, error.to_string()))?
        .with_root_certificates(identity.roots)
        .with_client_auth_cert(identity.chain, identity.key)
        .map_err(|error| unfit(paths, &error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    let quic = QuicClientConfig::try_from(config).map_err(|error| content(&paths.cert, error.to_string()))?;
    Ok(quinn::ClientConfig::new(Arc::new(quic)))
}

/// The link's server side: demands a certificate of the authority from every peer.
pub fn server_config(paths: &TlsPaths) -> Result<quinn::ServerConfig, TlsError> {
    let mut config = Identity::read(paths)?.server(paths, &[&rustls::version::TLS13])?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_early_data_size = 0;
    let quic = QuicServerConfig::try_from(config).map_err(|error| content(&paths.cert, error.to_string()))?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(quic)))
}

/// The agent's private key as it stands in its file (DER), to derive what must be the same after a restart.
pub(crate) fn private_key(paths: &TlsPaths) -> Result<PrivateKeyDer<'static>, TlsError> {
    Identity::read(paths).map(|identity| identity.key)
}

/// TLS of an NBD listener, for tokio-rustls: TLS 1.2 or 1.3, client certificates of the authority demanded.
pub fn nbd_server_config(paths: &TlsPaths) -> Result<Arc<ServerConfig>, TlsError> {
    Identity::read(paths)?.server(paths, rustls::ALL_VERSIONS).map(Arc::new)
}

/// The names in this agent's own certificate, to be compared with its configured name at start.
pub fn own_names(paths: &TlsPaths) -> Result<Vec<String>, TlsError> {
    let chain = read_certificates(&paths.cert)?;
    let names = chain.first().and_then(|leaf| names_of(leaf));
    names.ok_or_else(|| content(&paths.cert, "is not a valid X.509 certificate"))
}

/// The names that the peer of a connection has proven: DNS names and addresses of its certificate's subject
/// alternative names. Empty if there are none; the handshake has verified the certificate itself.
#[must_use]
pub fn peer_names(connection: &quinn::Connection) -> Vec<String> {
    let identity = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    identity.and_then(|chain| names_of(chain.first()?)).unwrap_or_default()
}

fn names_of(certificate: &CertificateDer<'_>) -> Option<Vec<String>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()?;
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    };
    Some(names.map_or_else(Vec::new, |names| names.value.general_names.iter().filter_map(text).collect()))
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| Ipv4Addr::from(bytes).to_string());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| Ipv6Addr::from(bytes).to_string())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki;

    const PATHS: [fn(&mut TlsPaths) -> &mut PathBuf; 3] = [|p| &mut p.ca, |p| &mut p.cert, |p| &mut p.key];

    fn keys(folder: &Path) -> TlsPaths {
        pki::generate(folder, "ps-1", "mt-1", &["10.0.0.2".to_owned(), "fd00::1".to_owned()]).unwrap();
        TlsPaths { ca: folder.join("ca.pem"), cert: folder.join("ps-1.pem"), key: folder.join("ps-1.key") }
    }

    fn refusal(paths: &TlsPaths) -> String {
        let text = client_config(paths).err().unwrap().to_string();
        assert_eq!(server_config(paths).err().unwrap().to_string(), text);
        assert_eq!(nbd_server_config(paths).err().unwrap().to_string(), text);
        text
    }

    #[test]
    fn the_names_of_a_certificate_are_read_from_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(own_names(&keys(folder.path())).unwrap(), ["ps-1", "10.0.0.2", "fd00::1"]);
    }

    /// Runs a handshake in memory until neither side has anything to say, or one refuses.
    fn handshake(client: ClientConfig, server: Arc<ServerConfig>) -> Result<(), rustls::Error> {
        let name = rustls_pki_types::ServerName::try_from("ps-1").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client), name)?;
        let mut server = rustls::ServerConnection::new(server)?;
        loop {
            let mut flight = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut flight).unwrap();
            }
            let is_idle = flight.is_empty();
            server.read_tls(&mut &flight[..]).unwrap();
            server.process_new_packets()?;
            let mut flight = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut flight).unwrap();
            }
            if is_idle && flight.is_empty() {
                return Ok(());
            }
            client.read_tls(&mut &flight[..]).unwrap();
            client.process_new_packets()?;
        }
    }

    #[test]
    fn an_nbd_client_needs_a_certificate_of_the_authority_with_either_version_of_tls() {
        let (folder, foreign) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = nbd_server_config(&keys(folder.path())).unwrap();
        let ours = TlsPaths { ca: folder.path().join("ca.pem"), ..keys(foreign.path()) };
        for version in rustls::ALL_VERSIONS {
            let config = |paths: Option<TlsPaths>| {
                let identity = Identity::read(paths.as_ref().unwrap_or(&ours)).unwrap();
                let builder = ClientConfig::builder_with_provider(identity.provider)
                    .with_protocol_versions(&[version])
                    .unwrap()
                    .with_root_certificates(identity.roots);
                match paths {
                    Some(_) => builder.with_client_auth_cert(identity.chain, identity.key).unwrap(),
                    None => builder.with_no_client_auth(),
                }
            };
            let trusted = folder.path();
            let trusted =
                TlsPaths { ca: trusted.join("ca.pem"), cert: trusted.join("mt-1.pem"), key: trusted.join("mt-1.key") };
            handshake(config(Some(trusted)), server.clone()).unwrap();
            assert!(handshake(config(Some(ours.clone())), server.clone()).is_err(), "of another authority");
            assert_eq!(
                handshake(config(None), server.clone()),
                Err(rustls::Error::NoCertificatesPresented),
                "without a certificate"
            );
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let good = keys(folder.path());
        for change in PATHS {
            let mut paths = good.clone();
            *change(&mut paths) = folder.path().join("gone.pem");
            let text = refusal(&paths);
            assert!(text.contains("gone.pem") && text.contains("[tls]"), "{text}");
        }
    }

    #[test]
    fn a_file_with_something_else_in_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let good = keys(folder.path());
        let wrong = folder.path().join("wrong.pem");
        for bytes in [&b""[..], b"hello", b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", &[0xff; 100]]
        {
            std::fs::write(&wrong, bytes).unwrap();
            for change in PATHS {
                let mut paths = good.clone();
                change(&mut paths).clone_from(&wrong);
                assert!(refusal(&paths).contains("wrong.pem"));
            }
        }
        let swapped = TlsPaths { cert: good.key.clone(), key: good.cert.clone(), ..good };
        assert!(refusal(&swapped).contains("ps-1.key: holds no certificate"));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_with_both_names() {
        let folder = tempfile::tempdir().unwrap();
        let paths = TlsPaths { key: folder.path().join("mt-1.key"), ..keys(folder.path()) };
        let text = refusal(&paths);
        assert!(text.contains("ps-1.pem") && text.contains("mt-1.key"), "{text}");
    }
}
