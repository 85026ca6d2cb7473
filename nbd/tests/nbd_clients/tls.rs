//! Clients over TLS with certificates of both sides.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nbd::TlsMode;
use proto::config::{HostPort, NbdAddress};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::clients::{python, run, run_failing};
use crate::memory_server::MemoryServer;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issue(authority: &Authority, name: &str) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.signed_by(&key, authority).unwrap(), key)
}

fn server_config(authority: &Authority) -> Arc<ServerConfig> {
    let (cert, key) = issue(authority, "localhost");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_client_cert_verifier(verifier).with_single_cert(vec![cert.der().clone()], key).unwrap())
}

/// The files that libnbd and QEMU look for; the client's certificate is of `issuer`.
fn write_client_files(dir: &Path, server_authority: &Authority, issuer: &Authority) {
    let (cert, key) = issue(issuer, "client");
    std::fs::create_dir(dir).unwrap();
    std::fs::write(dir.join("ca-cert.pem"), server_authority.pem()).unwrap();
    std::fs::write(dir.join("client-cert.pem"), cert.pem()).unwrap();
    std::fs::write(dir.join("client-key.pem"), key.serialize_pem()).unwrap();
}

#[test]
fn clients_with_a_certificate_are_served_over_tls_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, foreign) = (authority(), authority());
    let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
    write_client_files(&good, &ours, &ours);
    write_client_files(&bad, &ours, &foreign);
    let server = MemoryServer::start(
        &NbdAddress::Tcp(HostPort { host: "0.0.0.0".to_owned(), port: 0 }),
        TlsMode::Required(server_config(&ours)),
        &[("web/os", 4 << 20)],
    );
    let NbdAddress::Tcp(HostPort { port, .. }) = *server.address() else { panic!("it is TCP") };
    let uri = |scheme: &str, certificates: &Path| {
        format!("{scheme}://localhost:{port}/web/os?tls-certificates={}", certificates.display())
    };

    let shown = run("nbdinfo", &[&uri("nbds", &good)]);
    assert!(shown.contains("with TLS") && shown.contains("4194304"), "{shown}");
    let program = r#"
h = nbd.NBD()
h.set_uri_allow_local_file(True)
h.connect_uri(URI)
assert h.get_tls_negotiated() and h.get_structured_replies_negotiated()
data = bytes(range(256)) * 8192
h.pwrite(data, 4096)
h.flush()
assert h.pread(len(data), 4096) == data
h.shutdown()
"#;
    python(&uri("nbds", &good), program);
    let copy = dir.path().join("copy");
    run("nbdcopy", &["--connections=4", "--threads=4", &uri("nbds", &good), copy.to_str().unwrap()]);
    assert!(std::fs::read(copy).unwrap() == server.disks[0].content());
    let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", good.display());
    let image = format!("driver=nbd,host=localhost,port={port},export=web/os,tls-creds=tls0");
    run(
        "qemu-io",
        &["--object", &credentials, "--image-opts", "-c", "write -P 9 1M 1M", "-c", "read -P 9 1M 1M", &image],
    );

    let served = server.connections.load(Ordering::SeqCst);
    run_failing("nbdinfo", &[&uri("nbds", &bad)]);
    let refused = run_failing("nbdinfo", &[&format!("nbd://localhost:{port}/web/os")]);
    assert!(refused.contains("TLS"), "{refused}");
    run_failing("nbdinfo", &["--list", &format!("nbd://localhost:{port}")]);
    assert_eq!(server.connections.load(Ordering::SeqCst), served, "none of them reached transmission");
}
