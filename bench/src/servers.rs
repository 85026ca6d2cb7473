//! The servers that are measured: qemu-nbd, and the agents with a site of their own. All end when they go out of scope.

use std::fs::{self, File};
use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::measure::Mode;

const WAIT_MAX: Duration = Duration::from_secs(120);

/// A temporary folder with the disk that all servers of a measure export.
pub struct Bench {
    folder: TempDir,
    bin: PathBuf,
}

impl Bench {
    /// Makes the folder and a disk that is written everywhere: no server gains from holes.
    pub fn create(dir: &Path, bin: &Path, disk_bytes: u64) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("backhaul-bench-").tempdir_in(dir)?;
        let bench = Self { folder, bin: bin.to_owned() };
        let mut disk = File::create(bench.disk()).context("create the disk")?;
        let mut block = vec![0u8; 1 << 20];
        let mut state = 1u64;
        for _ in 0..disk_bytes >> 20 {
            // Half of each block is noise: it compresses to about half, as the load does.
            for word in block[..1 << 19].chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            disk.write_all(&block)?;
        }
        disk.sync_all()?;
        Ok(bench)
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }
}

/// A child process that is ended on drop.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("start {program}"))?))
    }

    fn check(&mut self, what: &str) -> Result<()> {
        match self.0.try_wait()? {
            Some(status) => bail!("a server ended with {status} while waiting for {what}"),
            None => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself. Waiting frees the disk for the next server.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(what: &str, servers: &mut [&mut Server], mut done: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !done() {
        for server in servers.iter_mut() {
            server.check(what)?;
        }
        if started.elapsed() > WAIT_MAX {
            bail!("waited {} s for {what}", WAIT_MAX.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The peer.
pub struct QemuNbd {
    _server: Server,
    socket: PathBuf,
}

impl QemuNbd {
    /// Exports the disk raw, with cache=none and aio=io_uring.
    pub fn start(bench: &Bench) -> Result<Self> {
        let socket = bench.folder.path().join("qemu.sock");
        let mut command = Command::new("qemu-nbd");
        command.args(["--format=raw", "--cache=none", "--aio=io_uring", "--discard=unmap", "--persistent"]);
        command.args(["--shared=8", "--export-name=web/disk"]).arg("--socket").arg(&socket).arg(bench.disk());
        let mut server = Server::start(&mut command)?;
        wait_for("qemu-nbd to listen", &mut [&mut server], || UnixStream::connect(&socket).is_ok())?;
        Ok(Self { _server: server, socket })
    }

    /// What fio connects to.
    pub fn uri(&self) -> String {
        uri(&self.socket)
    }
}

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///web/disk?socket={}", socket.display())
}

/// The agents on a fresh site: state, keys, journal and VMDK are new in every run.
pub struct Agents {
    source: Server,
    target: Option<Server>,
    site: TempDir,
    disk: PathBuf,
    bin: PathBuf,
}

impl Agents {
    /// Starts what `mode` asks for; with both agents, waits until they are in step.
    pub fn start(bench: &Bench, mode: Mode) -> Result<Self> {
        let site = tempfile::Builder::new().prefix("site-").tempdir_in(bench.folder.path())?;
        configure(bench, site.path())?;
        let agent = |name: &str, config: &str| {
            let log = File::create(site.path().join(format!("{name}.log")))?;
            let mut command = Command::new(bench.bin.join(name));
            command.args(["run", "--config"]).arg(site.path().join(config)).stderr(log);
            Server::start(&mut command)
        };
        let target = match mode {
            Mode::Replicating => Some(agent("master-target", "mt.toml")?),
            Mode::BitmapOnly => None,
        };
        let source = agent("process-server", "ps.toml")?;
        let (bin, disk) = (bench.bin.clone(), bench.disk());
        let mut agents = Self { source, target, site, disk, bin };
        agents.wait_until_ready().with_context(|| agents.logs())?;
        Ok(agents)
    }

    /// What fio connects to.
    pub fn uri(&self) -> String {
        uri(&self.site.path().join("disk.sock"))
    }

    /// Where something was replicated: waits until all of it is on the VMDK and compares.
    pub fn finish(mut self) -> Result<()> {
        if self.target.is_none() {
            return Ok(());
        }
        let report = self.ask("master-target", "mt.toml", &["failback", "--group", "web", "--json"]);
        let report = report.with_context(|| self.logs())?;
        if report["disks"].as_array().map(Vec::len) != Some(1) {
            bail!("the failback's report has no disk: {report}");
        }
        self.source.check("the comparison")?;
        let compared = Command::new("qemu-img")
            .args(["compare", "-q", "-U", "-f", "raw", "-F", "vmdk"])
            .arg(&self.disk)
            .arg(self.site.path().join("datastore/web/disk.vmdk"))
            .status()
            .context("start qemu-img")?;
        if !compared.success() {
            bail!("source and target differ after the run: {}", self.logs());
        }
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let (site, bin) = (self.site.path().to_owned(), self.bin.clone());
        let socket = site.join("disk.sock");
        wait_for("the export", &mut [&mut self.source], || UnixStream::connect(&socket).is_ok())?;
        let Some(target) = &mut self.target else { return Ok(()) };
        wait_for("the initial synchronisation", &mut [&mut self.source, target], || {
            let state = |agent: &str, config: &str| {
                let status = ask(&bin, &site, agent, config, &["status", "--json"]).ok()?;
                status["groups"][0]["state"].as_str().map(str::to_owned)
            };
            state("process-server", "ps.toml").as_deref() == Some("streaming")
                && state("master-target", "mt.toml").as_deref() == Some("protected")
        })
    }

    fn ask(&self, agent: &str, config: &str, words: &[&str]) -> Result<Value> {
        ask(&self.bin, self.site.path(), agent, config, words)
    }

    fn logs(&self) -> String {
        let mut text = String::from("the last lines of the agents' logs:");
        for name in ["process-server.log", "master-target.log"] {
            let log = fs::read_to_string(self.site.path().join(name)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!("\n{name}\n{}", lines[lines.len().saturating_sub(15)..].join("\n")));
        }
        text
    }
}

fn ask(bin: &Path, site: &Path, agent: &str, config: &str, words: &[&str]) -> Result<Value> {
    let (command, rest) = words.split_first().context("a command")?;
    let output =
        Command::new(bin.join(agent)).args([command, "--config"]).arg(site.join(config)).args(rest).output()?;
    if !output.status.success() {
        bail!("{agent} {command}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{agent} {command}: not JSON"))
}

fn configure(bench: &Bench, site: &Path) -> Result<()> {
    for folder in ["datastore", "datastore/web", "retention"] {
        fs::create_dir(site.join(folder))?;
    }
    let pki = Command::new(bench.bin.join("master-target"))
        .args(["pki", "--process-server", "ps-1", "--master-target", "mt-1", "--san", "127.0.0.1", "--dir"])
        .arg(site.join("pki"))
        .stdout(Stdio::null())
        .status()
        .with_context(|| {
            format!("start {}/master-target: build it with `cargo build --release`", bench.bin.display())
        })?;
    if !pki.success() {
        bail!("master-target pki ended with {pki}");
    }
    let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    let (root, disk) = (site.display(), bench.disk());
    let tls = |name: &str| {
        format!(
            "[tls]\nca = \"{root}/pki/ca.pem\"\ncert = \"{root}/pki/{name}.pem\"\nkey = \"{root}/pki/{name}.key\"\n"
        )
    };
    let source = format!(
        "name = \"ps-1\"\nstate_dir = \"{root}/ps\"\ncontrol = \"{root}/ps.sock\"\n{}\
         [master_target]\naddress = \"127.0.0.1:{port}\"\nname = \"mt-1\"\n\
         [[group]]\nname = \"web\"\npoint_interval = \"1s\"\n\
         [[group.disk]]\nname = \"disk\"\nsource = \"{}\"\nnbd = \"unix:{root}/disk.sock\"\n",
        tls("ps-1"),
        disk.display()
    );
    let target = format!(
        "name = \"mt-1\"\nlisten = \"127.0.0.1:{port}\"\nstate_dir = \"{root}/mt\"\ncontrol = \"{root}/mt.sock\"\n\
         retention = \"{root}/retention\"\n{}[[datastore]]\nname = \"ds1\"\npath = \"{root}/datastore\"\n\
         [[group]]\nname = \"web\"\nprocess_server = \"ps-1\"\nretention = \"24h\"\n\
         [[group.disk]]\nname = \"disk\"\ntarget = \"[ds1] web/disk.vmdk\"\n",
        tls("mt-1")
    );
    fs::write(site.join("ps.toml"), source)?;
    fs::write(site.join("mt.toml"), target)?;
    Ok(())
}
