//! Keys for peers that speak NBD over TLS: made by `master-target pki`, under the names that GnuTLS and QEMU look for.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tests::namespaces::TARGET_ADDRESS;
use tests::tool;

use crate::process;

/// Makes them in a new folder inside `folder`, which is returned: both sides take theirs from there.
pub fn keys(folder: &Path) -> Result<PathBuf> {
    let keys = folder.join("keys");
    let mut command = process::command(None, tool::binary("master-target"));
    command.args(["pki", "--process-server", "ps-1", "--master-target", "mt-1", "--san", "127.0.0.1"]);
    command.args(["--san", TARGET_ADDRESS, "--dir"]).arg(&keys);
    process::run(command, Duration::from_secs(30))?;
    let names = [
        ("ca.pem", "ca-cert.pem"),
        ("mt-1.pem", "server-cert.pem"),
        ("mt-1.key", "server-key.pem"),
        ("ps-1.pem", "client-cert.pem"),
        ("ps-1.key", "client-key.pem"),
    ];
    for (ours, theirs) in names {
        symlink(keys.join(ours), keys.join(theirs))?;
    }
    Ok(keys)
}
