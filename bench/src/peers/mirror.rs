//! QEMU's drive mirror between two storage daemons over NBD with TLS: the peer that replicates a disk in use.
//!
//! Both daemons work past the page cache with io_uring, as the agents do. One QMP conversation drives the source.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::link::Link;
use crate::outcome::Outcome;
use crate::peers::{free_port, sparse, sync, tls};
use crate::process::{self, Server};

/// Between two looks at whether the run was interrupted.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Copies `disk` into a new file in `folder`, on loopback.
pub fn run(folder: &Path, disk: &Path, link: &Link, within: Duration) -> Result<Outcome> {
    let (keys, copy, bytes) = (tls::keys(folder)?, folder.join("copy.img"), disk.metadata()?.len());
    sparse(&copy, bytes)?;
    let (host, port) = (link.target_address(), free_port()?);
    let target = target(&keys, &copy, link, host, port)?;
    let socket = folder.join("qmp.sock");
    let source = source(&keys, disk, link, host, port, &socket)?;
    let mut monitor = Monitor::open(&socket, within)?;

    let (cpu, started) = (source.cpu_seconds()? + target.cpu_seconds()?, Instant::now());
    monitor
        .ask("blockdev-mirror", json!({ "job-id": "copy", "device": "disk", "target": "remote", "sync": "full" }))?;
    monitor.wait_for("BLOCK_JOB_READY")?;
    monitor.ask("block-job-complete", json!({ "device": "copy" }))?;
    monitor.wait_for("BLOCK_JOB_COMPLETED")?;
    sync(&copy)?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu = source.cpu_seconds()? + target.cpu_seconds()? - cpu;
    drop((source, target));
    crate::agents::same(disk, "raw", &copy, "raw")?;
    Ok(Outcome { seconds: Some(seconds), cpu_seconds: Some(cpu), content_bytes: Some(bytes), ..Outcome::default() })
}

fn file(path: &Path) -> String {
    let path = path.display();
    format!("driver=file,node-name=file,filename={path},aio=io_uring,cache.direct=on,discard=unmap")
}

/// QEMU's own check wants "key encipherment", which only RSA needs; GnuTLS verifies the peer all the same.
fn credentials(keys: &Path, side: &str) -> String {
    format!("tls-creds-x509,id=tls,dir={},sanity-check=off,{side}", keys.display())
}

fn target(keys: &Path, copy: &Path, link: &Link, host: &str, port: u16) -> Result<Server> {
    let mut command = process::command(link.target(), "qemu-storage-daemon");
    command.args(["--object", &credentials(keys, "endpoint=server,verify-peer=on")]);
    command.args(["--blockdev", &file(copy), "--blockdev", "driver=raw,node-name=disk,file=file"]);
    let address = format!("addr.type=inet,addr.host={host},addr.port={port},tls-creds=tls");
    command.args(["--nbd-server", &address, "--export", "nbd,id=export,node-name=disk,name=disk,writable=on"]);
    Server::start(command)?.on_tcp(link.source(), &format!("{host}:{port}"))
}

fn source(keys: &Path, disk: &Path, link: &Link, host: &str, port: u16, socket: &Path) -> Result<Server> {
    let mut command = process::command(link.source(), "qemu-storage-daemon");
    command.args(["--object", &credentials(keys, "endpoint=client")]);
    command.args(["--blockdev", &file(disk), "--blockdev", "driver=raw,node-name=disk,file=file"]);
    let server = format!("server.type=inet,server.host={host},server.port={port},export=disk");
    command.args(["--blockdev", &format!("driver=nbd,node-name=remote,{server},tls-creds=tls,tls-hostname={host}")]);
    command.args(["--chardev", &format!("socket,id=qmp,path={},server=on,wait=off", socket.display())]);
    command.args(["--monitor", "chardev=qmp"]);
    let mut server = Server::start(command)?;
    // A connection to look would be the monitor's only one.
    server.wait_until("listens", || socket.exists())?;
    Ok(server)
}

/// A QMP conversation.
struct Monitor {
    reader: BufReader<UnixStream>,
    events: Vec<Value>,
    until: Instant,
}

impl Monitor {
    fn open(socket: &Path, within: Duration) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("connect to the storage daemon's monitor")?;
        stream.set_read_timeout(Some(LOOK_EVERY))?;
        let until = Instant::now() + within;
        let mut monitor = Self { reader: BufReader::new(stream), events: Vec::new(), until };
        monitor.read()?;
        monitor.ask("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        loop {
            process::check_interrupt()?;
            match self.reader.read_until(b'\n', &mut line) {
                Ok(0) => bail!("the storage daemon has closed its monitor"),
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < self.until => {}
                Err(error) => return Err(error).context("the storage daemon's monitor is silent"),
            }
        }
        serde_json::from_slice(&line).with_context(|| format!("QMP: {}", String::from_utf8_lossy(&line)))
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<()> {
        writeln!(self.reader.get_mut(), "{}", json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let answer = self.read()?;
            if answer.get("error").is_some() {
                bail!("{command}: {answer}");
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
            self.events.push(answer);
        }
    }

    fn wait_for(&mut self, event: &str) -> Result<()> {
        loop {
            while let Some(seen) = self.events.pop() {
                if seen["event"] == event {
                    return match seen["data"].get("error") {
                        Some(error) => bail!("{event}: {error}"),
                        None => Ok(()),
                    };
                }
                if seen["event"] == "BLOCK_JOB_ERROR" {
                    bail!("the mirror failed: {seen}");
                }
            }
            let next = self.read()?;
            self.events.push(next);
        }
    }
}
