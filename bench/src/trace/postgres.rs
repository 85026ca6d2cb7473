//! PostgreSQL under pgbench on ext4, on a loop device, on nbdfuse, on the recording server. Needs root for the loop
//! device and the mount; the database runs as `postgres` or, where there is no such user, as `nobody`.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Write;
use super::recorder::Recorder;
use crate::process::{self, Server};

const IMAGE_BYTES: u64 = 1 << 30;
/// About 15 MB each.
const SCALE: &str = "8";
const CLIENTS: &str = "4";
const STEP_MAX: Duration = Duration::from_secs(120);

/// Records `seconds` of pgbench, and what a checkpoint writes after them. `base` becomes the disk as it was before.
pub fn record(folder: &Path, base: &Path, seconds: u64) -> Result<Vec<Write>> {
    ensure!(rustix::process::geteuid().is_root(), "needs root: a loop device and a mount");
    // Another user has to reach the mount.
    fs::set_permissions(folder, Permissions::from_mode(0o711))?;
    let (image, socket) = (folder.join("postgres.img"), folder.join("record.sock"));
    File::create(&image)?.set_len(IMAGE_BYTES)?;
    let recorder = Recorder::start(&image, &socket)?;
    let volume = Volume::mount(folder, &socket)?;
    let database = Database::start(&volume.mounted)?;
    database.run(&["pgbench", "--initialize", "--quiet", "--scale", SCALE])?;
    database.checkpoint()?;
    sync(&volume.mounted)?;
    recorder.begin(&image, base)?;
    database.run(&["pgbench", "--client", CLIENTS, "--jobs", "2", "--no-vacuum", "--time", &seconds.to_string()])?;
    database.checkpoint()?;
    sync(&volume.mounted)?;
    let trace = recorder.end();
    database.server.terminate(STEP_MAX)?;
    volume.unmount()?;
    ensure!(!trace.is_empty(), "PostgreSQL has written nothing");
    Ok(trace)
}

fn sync(path: &Path) -> Result<()> {
    step(&["sync", "--file-system", &path.to_string_lossy()])
}

fn step(words: &[&str]) -> Result<()> {
    let mut command = process::command(None, words[0]);
    command.args(&words[1..]);
    process::run(command, STEP_MAX).map(drop)
}

/// A mounted file system whose disk is the recorder. What is left of it when this is dropped is let go lazily.
struct Volume {
    folder: PathBuf,
    mounted: PathBuf,
    device: String,
    fuse: Option<Server>,
}

impl Volume {
    fn mount(folder: &Path, socket: &Path) -> Result<Self> {
        let (fuse_at, mounted) = (folder.join("fuse"), folder.join("mounted"));
        fs::create_dir(&fuse_at)?;
        fs::create_dir(&mounted)?;
        let mut command = process::command(None, "nbdfuse");
        command.arg(&fuse_at).arg(format!("nbd+unix:///?socket={}", socket.display()));
        let mut volume = Self { folder: folder.to_owned(), mounted, device: String::new(), fuse: None };
        let mut fuse = Server::start(command)?;
        let disk = fuse_at.join("nbd");
        let ready = fuse.wait_until("shows the disk", || disk.exists());
        volume.fuse = Some(fuse);
        ready?;
        let mut command = process::command(None, "losetup");
        command.args(["--find", "--show"]).arg(&disk);
        volume.device = process::run(command, STEP_MAX)?.trim().to_owned();
        step(&["mkfs.ext4", "-q", &volume.device])?;
        step(&["mount", &volume.device, &volume.mounted.to_string_lossy()])?;
        Ok(volume)
    }

    fn unmount(mut self) -> Result<()> {
        step(&["umount", &self.mounted.to_string_lossy()])?;
        step(&["losetup", "--detach", &self.device])?;
        step(&["umount", &self.folder.join("fuse").to_string_lossy()])?;
        self.fuse.take().map_or(Ok(()), |fuse| fuse.finish(STEP_MAX))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        crate::sweep::unmount(&self.folder);
    }
}

/// A running database server.
struct Database {
    server: Server,
    folder: PathBuf,
    programs: PathBuf,
    user: String,
}

impl Database {
    fn start(mounted: &Path) -> Result<Self> {
        let (programs, user) = (programs()?, user()?);
        let folder = mounted.join("database");
        fs::create_dir(&folder)?;
        step(&["chown", &user, &folder.to_string_lossy()])?;
        let data = folder.join("data");
        let mut command = as_user(&user, &programs.join("initdb"));
        command.args(["--no-sync", "--auth=trust", "--username=bench", "--pgdata"]).arg(&data);
        process::run(command, STEP_MAX)?;
        let mut command = as_user(&user, &programs.join("postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(&folder).args([
            "-c",
            "listen_addresses=",
            "-c",
            "logging_collector=off",
        ]);
        command.stderr(File::create(folder.join("log"))?);
        let mut server = Server::start(command)?;
        let socket = folder.join(".s.PGSQL.5432");
        server.wait_until("listens", || socket.exists())?;
        let database = Self { server, folder, programs, user };
        database.run(&["psql", "--command", "create database bench", "postgres"]).or_else(|_| {
            // The socket is there a moment before the first connection is taken.
            std::thread::sleep(Duration::from_secs(1));
            database.run(&["psql", "--command", "create database bench", "postgres"])
        })?;
        Ok(database)
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let mut command = as_user(&self.user, &self.programs.join(words[0]));
        command.arg("--host").arg(&self.folder).args(["--username", "bench"]).args(&words[1..]);
        if words[0] == "pgbench" {
            command.arg("bench");
        }
        process::run(command, STEP_MAX).map(drop)
    }

    fn checkpoint(&self) -> Result<()> {
        self.run(&["psql", "--command", "checkpoint", "bench"])
    }
}

/// Where Debian keeps the server's programs: the newest version.
fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let folders = versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists());
    folders.max().context("PostgreSQL is missing: scripts/require-tools.sh bench installs it")
}

fn user() -> Result<String> {
    let users = fs::read_to_string("/etc/passwd")?;
    let known = |name: &&str| users.lines().any(|line| line.split(':').next() == Some(*name));
    match ["postgres", "nobody"].iter().find(|name| known(name)) {
        Some(name) => Ok((*name).to_owned()),
        None => bail!("neither a user postgres nor nobody"),
    }
}

/// `setpriv` becomes the program itself.
fn as_user(user: &str, program: &Path) -> Command {
    let mut command = process::command(None, "setpriv");
    command.args(["--reuid", user, "--init-groups", "--"]).arg(program).current_dir("/");
    command
}
