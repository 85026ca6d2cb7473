//! A site: both agents with keys, configurations, disks, a datastore and a retention folder, in one temporary folder.
//!
//! One group, `web`, with as many disks as the test wants. Tests change the configurations as text before a start.

use std::fmt::Write;
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::agent::{Agent, Role};
use crate::folder::Folder;
use crate::load::Client;
use crate::nbd::Address;
use crate::proxy::{Proxy, Weather};
use crate::tool::{self, Output};
use crate::{image, wait};

/// The group of every site.
pub const GROUP: &str = "web";

/// A debug build on two busy cores takes a few seconds for the small disks of the tests.
pub const SYNC_MAX: Duration = Duration::from_secs(60);

/// One disk of the group.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The file or block device behind the NBD export.
    pub source: PathBuf,
    /// As in the configuration: `[ds1] web/NAME.vmdk`, or a path.
    pub target: String,
    /// Where the process-server exports it.
    pub nbd: Address,
}

/// A line of `points --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Point {
    /// What `--point` takes.
    pub id: String,
    /// Number of its set.
    pub set: u64,
    /// RFC 3339 with microseconds.
    pub time: String,
    /// `crash` or `app`.
    pub kind: String,
    /// As given with `point --label`.
    pub label: Option<String>,
    /// Bytes that its set changes.
    pub changed_bytes: u64,
    /// Bytes that they take in the journal.
    pub stored_bytes: u64,
    /// Bytes that could not be read at the source, for which older content stands.
    pub unreadable_bytes: u64,
}

/// Both agents and all that they need.
#[derive(Debug)]
pub struct Site {
    /// `process-server`.
    pub source: Agent,
    /// `master-target`.
    pub target: Agent,
    /// `process-server.toml`; written at each start of the agent.
    pub source_config: String,
    /// `master-target.toml`; written at each start of the agent.
    pub target_config: String,
    /// The disks, in the order of the group.
    pub disks: Vec<Disk>,
    root: Folder,
}

impl Site {
    /// A site whose disks are sparse files of these sizes, replicated to VMDKs. Nothing runs yet.
    ///
    /// # Panics
    /// If it can't be built.
    #[track_caller]
    #[must_use]
    pub fn new(sizes: &[u64]) -> Self {
        Self::inside(&std::env::temp_dir(), sizes)
    }

    /// The same in a new folder inside `parent`; panics as [`Self::new`].
    #[track_caller]
    #[must_use]
    pub fn inside(parent: &Path, sizes: &[u64]) -> Self {
        let root = Folder::inside(parent);
        let path = root.path();
        for folder in ["run", "datastore", "datastore/web", "retention", "source"] {
            fs::create_dir(path.join(folder)).expect("a folder");
        }
        let disks = sizes.iter().enumerate().map(|(index, &size)| {
            let name = format!("disk{index}");
            let source = path.join("source").join(format!("{name}.img"));
            image::create(&source, size);
            let target = format!("[ds1] web/{name}.vmdk");
            Disk { nbd: Address::Unix(path.join(format!("run/{name}.sock"))), name, size, source, target }
        });
        let disks: Vec<Disk> = disks.collect();
        pki(&path.join("pki"), "ps-1", "mt-1").ok();
        let port = free_udp_port();
        let source_config = source_config(path, port, &disks);
        let target_config = target_config(path, port, &disks);
        let source = Agent::new(Role::Source, &path.join("process-server.toml"));
        let target = Agent::new(Role::Target, &path.join("master-target.toml"));
        Self { source, target, source_config, target_config, disks, root }
    }

    /// A site with other disks than sparse files and VMDKs: `change` edits each before the configurations are made.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[track_caller]
    #[must_use]
    pub fn with_disks(sizes: &[u64], mut change: impl FnMut(&Path, &mut Disk)) -> Self {
        let mut site = Self::new(sizes);
        let root = site.path().to_owned();
        site.disks.iter_mut().for_each(|disk| change(&root, disk));
        let port = port_of(&site.target_config);
        site.source_config = source_config(&root, port, &site.disks);
        site.target_config = target_config(&root, port, &site.disks);
        site
    }

    /// Puts a proxy between the agents; they speak through it from the next start of the process-server on.
    ///
    /// # Panics
    /// If there is no socket to be had.
    #[must_use]
    pub fn through_proxy(&mut self, seed: u64, weather: Weather) -> Proxy {
        let target = self.target_address();
        let proxy = Proxy::start(target.parse().expect("an address"), seed, weather);
        self.source_config = self.source_config.replace(&target, &proxy.address().to_string());
        proxy
    }

    /// Caps the link from the next start of the process-server on.
    pub fn cap(&mut self, rate: &str) {
        let name = "name = \"mt-1\"\n";
        self.source_config = self.source_config.replace(name, &format!("{name}rate = \"{rate}\"\n"));
    }

    /// Gives the group this much memory and, in the folder `cache` of the site, a spool, from the next start of the
    /// process-server on.
    pub fn give_cache(&mut self, memory: &str, spool: &str) {
        let cache = self.path().join("cache");
        let (control, interval) = ("control = ", "point_interval = \"1s\"\n");
        let config =
            self.source_config.replacen(control, &format!("cache_dir = \"{}\"\n{control}", cache.display()), 1);
        let keys = format!("{interval}memory = \"{memory}\"\nspool = \"{spool}\"\n");
        self.source_config = config.replacen(interval, &keys, 1);
    }

    /// Runs each agent in a network namespace, with the master-target at `address`.
    pub fn into_namespaces(&mut self, source: &str, target: &str, address: &str) {
        self.source.set_namespace(source);
        self.target.set_namespace(target);
        let (old, new) = (self.target_address(), format!("{address}:{}", port_of(&self.target_config)));
        self.source_config = self.source_config.replace(&old, &new);
        self.target_config = self.target_config.replace(&old, &new);
    }

    /// The folder of the site.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Where the master-target listens.
    #[must_use]
    pub fn target_address(&self) -> String {
        format!("127.0.0.1:{}", port_of(&self.target_config))
    }

    /// Writes the configurations as they are now.
    ///
    /// # Panics
    /// If they can't be written.
    pub fn write_configs(&self) {
        fs::write(self.path().join("process-server.toml"), &self.source_config).expect("a configuration");
        fs::write(self.path().join("master-target.toml"), &self.target_config).expect("a configuration");
    }

    /// Starts the master-target.
    #[track_caller]
    pub fn start_target(&mut self) {
        self.write_configs();
        self.target.start();
    }

    /// Starts the process-server.
    #[track_caller]
    pub fn start_source(&mut self) {
        self.write_configs();
        self.source.start();
    }

    /// Starts both and waits for the initial synchronisation.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_target();
        self.start_source();
        self.wait_protected();
    }

    /// Waits until the source streams and the target is protected.
    #[track_caller]
    pub fn wait_protected(&self) {
        self.wait_protected_within(SYNC_MAX);
    }

    /// Like [`Self::wait_protected`], on a link that takes longer.
    #[track_caller]
    pub fn wait_protected_within(&self, limit: Duration) {
        wait::until("the group to be protected", limit, || {
            let (source, target) = (self.source.group(GROUP), self.target.group(GROUP));
            let fine = source["state"] == "streaming" && target["state"] == "protected";
            if fine { Ok(()) } else { Err((source, target)) }
        });
    }

    /// Waits until everything that is durable on the target is also in its VMDKs.
    #[track_caller]
    pub fn wait_applied(&self) {
        wait::until("all sets to be applied", SYNC_MAX, || {
            let target = self.target.group(GROUP);
            let done = target["durable_set"].is_u64() && target["durable_set"] == target["applied_set"];
            if done { Ok(()) } else { Err(target) }
        });
    }

    /// Flips one byte of a VMDK behind the agent's back.
    #[track_caller]
    pub fn rot(&self, disk: usize, offset: u64) {
        let descriptor = self.vmdk(disk);
        let stem = descriptor.file_stem().expect("a name").to_string_lossy().into_owned();
        let flat = descriptor.with_file_name(format!("{stem}-flat.vmdk"));
        let file = fs::File::options().read(true).write(true).open(&flat).expect("the content of the VMDK");
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("a byte");
        file.write_all_at(&[!byte[0]], offset).expect("a byte");
        file.sync_all().expect("on the disk");
    }

    /// Takes a point and returns its id.
    #[track_caller]
    pub fn point(&self, label: Option<&str>) -> String {
        let mut words = vec!["point", "--group", GROUP];
        words.extend(label.iter().flat_map(|label| ["--label", label]));
        let output = self.source.ask(&words).ok();
        let id = output.stdout.trim_end();
        assert!(!id.is_empty() && !id.contains(char::is_whitespace), "the id, alone, on standard output: {output:?}");
        id.to_owned()
    }

    /// All points, oldest first.
    #[track_caller]
    #[must_use]
    pub fn points(&self) -> Vec<Point> {
        let value = self.target.ask(&["points", "--group", GROUP, "--json"]).ok().json();
        serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("points ({error}): {value}"))
    }

    /// Restores one disk at `point` into a new raw file, and returns the file.
    #[track_caller]
    #[must_use]
    pub fn restore(&self, disk: usize, point: &str) -> PathBuf {
        let file = self.path().join(format!("restored-{disk}-{}.raw", point.replace([':', '/', ' '], "_")));
        self.restore_to(disk, point, &file, "raw").ok();
        file
    }

    /// Runs `restore`.
    #[track_caller]
    pub fn restore_to(&self, disk: usize, point: &str, file: &Path, format: &str) -> Output {
        let name = &self.disks[disk].name;
        let file = file.to_string_lossy();
        let words = ["restore", "--group", GROUP, "--disk", name, "--point", point, "--to", &file, "--format", format];
        self.target.ask(&words)
    }

    /// The file with the content of a VMDK target.
    ///
    /// # Panics
    /// If the target is not a VMDK of this site.
    #[must_use]
    pub fn vmdk(&self, disk: usize) -> PathBuf {
        let target = &self.disks[disk].target;
        let name = target.strip_prefix("[ds1] ").expect("a VMDK in the datastore");
        self.path().join("datastore").join(name)
    }

    /// `GROUP/DISK`.
    #[must_use]
    pub fn export(&self, disk: usize) -> String {
        format!("{GROUP}/{}", self.disks[disk].name)
    }

    /// The URI of a disk's export.
    #[must_use]
    pub fn uri(&self, disk: usize) -> String {
        self.disks[disk].nbd.uri(&self.export(disk))
    }

    /// Load clients: `connections` for each disk.
    #[must_use]
    pub fn clients(&self, connections: usize, depth: usize) -> Vec<Client> {
        let disks = self.disks.iter().enumerate();
        let one = |(index, disk): (usize, &Disk)| {
            let client = Client { address: disk.nbd.clone(), export: self.export(index), disk: index as u32, depth };
            std::iter::repeat_n(client, connections)
        };
        disks.flat_map(one).collect()
    }

    /// Compares a VMDK with its source, through qemu-img, byte for byte.
    ///
    /// # Panics
    /// If they differ.
    #[track_caller]
    pub fn assert_vmdk_equals_source(&self, disk: usize) {
        let (source, vmdk) = (&self.disks[disk].source, self.vmdk(disk));
        let words = ["compare", "-U", "-f", "raw", "-F", "vmdk", &source.to_string_lossy(), &vmdk.to_string_lossy()];
        tool::run("qemu-img", words).ok();
    }

    /// Ends both agents cleanly and checks their logs: nothing at WARN or ERROR but lines with one of `expected`.
    ///
    /// # Panics
    /// If there is more.
    #[track_caller]
    pub fn finish(mut self, expected: &[&str]) {
        for agent in [&mut self.source, &mut self.target] {
            if agent.ended().is_none() && agent.is_started() {
                agent.stop();
            }
        }
        let alarms = [self.source.alarms(expected), self.target.alarms(expected)].concat();
        assert!(alarms.is_empty(), "unexpected log lines:\n{}", alarms.join("\n"));
    }
}

/// Runs `master-target pki`.
#[track_caller]
pub fn pki(folder: &Path, process_server: &str, master_target: &str) -> Output {
    let folder = folder.to_string_lossy();
    let names = ["--process-server", process_server, "--master-target", master_target, "--san", "127.0.0.1"];
    tool::run(tool::binary("master-target"), [&["pki", "--dir", &folder], &names[..]].concat())
}

fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
    socket.local_addr().expect("its address").port()
}

fn port_of(config: &str) -> u16 {
    let line = config.lines().find(|line| line.starts_with("listen")).expect("a listen line");
    let port = line.trim_end_matches('"').rsplit(':').next().expect("a port");
    port.parse().expect("a number")
}

fn source_config(root: &Path, port: u16, disks: &[Disk]) -> String {
    let root = root.display();
    let mut text = format!(
        r#"name = "ps-1"
state_dir = "{root}/process-server"
control = "{root}/run/process-server.sock"
[tls]
ca = "{root}/pki/ca.pem"
cert = "{root}/pki/ps-1.pem"
key = "{root}/pki/ps-1.key"
[master_target]
address = "127.0.0.1:{port}"
name = "mt-1"
[[group]]
name = "{GROUP}"
point_interval = "1s"
"#
    );
    for disk in disks {
        let nbd = match &disk.nbd {
            Address::Unix(path) => format!("unix:{}", path.display()),
            Address::Tcp(address) => format!("tcp:{address}"),
        };
        let (name, source) = (&disk.name, disk.source.display());
        write!(text, "[[group.disk]]\nname = \"{name}\"\nsource = \"{source}\"\nnbd = \"{nbd}\"\n").expect("a string");
    }
    text
}

fn target_config(root: &Path, port: u16, disks: &[Disk]) -> String {
    let root = root.display();
    let mut text = format!(
        r#"name = "mt-1"
listen = "127.0.0.1:{port}"
state_dir = "{root}/master-target"
control = "{root}/run/master-target.sock"
retention = "{root}/retention"
[tls]
ca = "{root}/pki/ca.pem"
cert = "{root}/pki/mt-1.pem"
key = "{root}/pki/mt-1.key"
[[datastore]]
name = "ds1"
path = "{root}/datastore"
[[group]]
name = "{GROUP}"
process_server = "ps-1"
retention = "24h"
"#
    );
    for disk in disks {
        let (name, target) = (&disk.name, &disk.target);
        write!(text, "[[group.disk]]\nname = \"{name}\"\ntarget = \"{target}\"\n").expect("a string");
    }
    text
}
