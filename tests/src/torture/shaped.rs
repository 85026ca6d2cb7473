//! A link of 100 Mbit/s between two network namespaces, shaped by the kernel: packets queue and drop as at a router (M2).
//!
//! Each agent runs in a namespace of its own; a pair of virtual interfaces joins them, with a token bucket filter at both
//! ends. The names hold this process's id. They go when the scenario ends, also by a panic; what a killed run
//! left is swept by the next one. Needs root.

use std::fs;
use std::process;
use std::time::Instant;

use crate::load::{Load, Pace};
use crate::site::{GROUP, Site};
use crate::torture::kill_loop::fail_back;
use crate::verdict::{self, judge_point, judge_sources};
use crate::{guest::Model, image, tool};

const MIB: u64 = 1 << 20;
const PREFIX: &str = "backhaul-";
const RATE: &str = "100mbit";
/// Of 100 Mbit/s, what the initial synchronisation has to reach: two busy cores run everything else too.
const MBIT_MIN: f64 = 60.0;
const SOURCE_ADDRESS: &str = "10.213.77.1";
const TARGET_ADDRESS: &str = "10.213.77.2";

/// Two joined namespaces; removed when this is dropped.
#[derive(Debug)]
pub struct Namespaces {
    /// Where the process-server runs.
    pub source: String,
    /// Where the master-target runs.
    pub target: String,
}

impl Namespaces {
    /// Makes them, after sweeping what dead runs left.
    ///
    /// # Panics
    /// Without root, or without iproute2.
    #[track_caller]
    #[must_use]
    pub fn new() -> Self {
        sweep();
        let pid = process::id();
        // From here on a panic removes what is there.
        let made = Self { source: format!("{PREFIX}{pid}-s"), target: format!("{PREFIX}{pid}-t") };
        let (source, target) = (made.source.as_str(), made.target.as_str());
        ip(&["netns", "add", source]);
        ip(&["netns", "add", target]);
        ip(&["link", "add", "bh-s", "netns", source, "type", "veth", "peer", "name", "bh-t", "netns", target]);
        for (namespace, link, address) in [(source, "bh-s", SOURCE_ADDRESS), (target, "bh-t", TARGET_ADDRESS)] {
            ip(&["-n", namespace, "address", "add", &format!("{address}/30"), "dev", link]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
            ip(&["-n", namespace, "link", "set", link, "up"]);
            let filter = ["root", "tbf", "rate", RATE, "burst", "64kb", "latency", "50ms"];
            tool::run("tc", [&["-n", namespace, "qdisc", "add", "dev", link], &filter[..]].concat()).ok();
        }
        made
    }
}

impl Default for Namespaces {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        remove(&self.source);
        remove(&self.target);
    }
}

#[track_caller]
fn ip(words: &[&str]) {
    tool::run("ip", words).ok();
}

fn remove(namespace: &str) {
    // It may not have been made yet. The interfaces go with it.
    let removed = tool::run("ip", ["netns", "delete", namespace]);
    if removed.code != Some(0) && exists(namespace) {
        eprintln!("left behind: {removed:?}");
    }
}

fn exists(namespace: &str) -> bool {
    fs::exists(format!("/run/netns/{namespace}")).unwrap_or(false)
}

/// Removes the namespaces of runs that are no more.
fn sweep() {
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            remove(&name);
        }
    }
}

/// How long.
#[derive(Clone, Copy, Debug)]
pub struct Shaped {
    /// MiB that are synchronised first; half of them don't compress.
    pub content_mib: u64,
    /// Writes of the guest afterwards.
    pub writes: u64,
    /// Of the load.
    pub seed: u64,
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Megabits a second that left the process-server during the initial synchronisation.
    pub sync_mbit: f64,
    /// Seconds that it took.
    pub sync_seconds: f64,
}

impl Shaped {
    /// Runs it.
    ///
    /// # Panics
    /// If anything is lost or wrong, or the link was not used.
    #[must_use]
    pub fn run(self) -> Figures {
        let namespaces = Namespaces::new();
        let mut site = Site::new(&[self.content_mib * MIB, 8 * MIB]);
        let model = std::sync::Arc::new(Model::new(&[self.content_mib * MIB, 8 * MIB]));
        for piece in 0..self.content_mib {
            image::fill(&site.disks[0].source, &model, 0, piece * 2048, 2048);
        }
        site.into_namespaces(&namespaces.source, &namespaces.target, TARGET_ADDRESS);
        site.start_target();
        site.start_source();
        let start = Instant::now();
        site.wait_protected_within(crate::site::SYNC_MAX * 2);
        let sync_seconds = start.elapsed().as_secs_f64();
        let sent = site.source.status()["link"]["sent_bytes"].as_u64().expect("a number");
        let sync_mbit = sent as f64 * 8.0 / 1e6 / sync_seconds;
        assert!((MBIT_MIN..=103.0).contains(&sync_mbit), "the link carried {sync_mbit:.1} of 100 Mbit/s");

        let pace = Pace { seed: self.seed, writes_per_second: 100, sectors_used: 16_384, trims: true };
        let load = Load::start(&model, &site.clients(2, 6), pace);
        load.wait_for_writes(self.writes);
        let under_load = verdict::take(&site, &model, Some("under load"));
        let summary = load.stop();
        assert!(summary.refused.is_empty() && summary.dropped == 0, "{summary:?}");
        judge_sources(&site, &model);
        judge_point(&site, &model, &under_load.id, under_load.bounds());
        assert_eq!(site.source.group(GROUP)["state"], "streaming");
        fail_back(&site, &model);
        site.finish(&[]);
        Figures { sync_mbit, sync_seconds }
    }
}
