//! Two network namespaces, joined by a pair of virtual interfaces with a token bucket filter at both ends: packets queue
//! and drop as at a router.
//!
//! The names hold this process's id. They go when their owner drops them, also by a panic; what a killed run left is
//! swept by the next one. Needs root.

use std::fs;
use std::process;

use crate::tool;

const PREFIX: &str = "backhaul-";
const SOURCE_LINK: &str = "bh-s";
const TARGET_LINK: &str = "bh-t";
/// Where the source's namespace ends.
pub const SOURCE_ADDRESS: &str = "10.213.77.1";
/// Where the target's namespace ends.
pub const TARGET_ADDRESS: &str = "10.213.77.2";

/// Two joined namespaces; removed when this is dropped.
#[derive(Debug)]
pub struct Namespaces {
    /// Where the process-server runs.
    pub source: String,
    /// Where the master-target runs.
    pub target: String,
}

impl Namespaces {
    /// Makes them, with `rate` and `burst` as tc writes them (`100mbit`, `64kb`), after sweeping what dead runs left.
    ///
    /// # Panics
    /// Without root, or without iproute2.
    #[track_caller]
    #[must_use]
    pub fn shaped(rate: &str, burst: &str) -> Self {
        sweep();
        let pid = process::id();
        // From here on a panic removes what is there.
        let made = Self { source: format!("{PREFIX}{pid}-s"), target: format!("{PREFIX}{pid}-t") };
        let (source, target) = (made.source.as_str(), made.target.as_str());
        ip(&["netns", "add", source]);
        ip(&["netns", "add", target]);
        ip(&[
            "link",
            "add",
            SOURCE_LINK,
            "netns",
            source,
            "type",
            "veth",
            "peer",
            "name",
            TARGET_LINK,
            "netns",
            target,
        ]);
        for (namespace, link, address) in [(source, SOURCE_LINK, SOURCE_ADDRESS), (target, TARGET_LINK, TARGET_ADDRESS)]
        {
            ip(&["-n", namespace, "address", "add", &format!("{address}/30"), "dev", link]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
            ip(&["-n", namespace, "link", "set", link, "up"]);
            let filter = ["root", "tbf", "rate", rate, "burst", burst, "latency", "50ms"];
            tool::run("tc", [&["-n", namespace, "qdisc", "add", "dev", link], &filter[..]].concat()).ok();
        }
        made
    }

    /// Bytes that have left the source's end of the link: whole Ethernet frames, which is what the filter counts.
    ///
    /// # Panics
    /// If the link is gone.
    #[track_caller]
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        let words = ["-n", &self.source, "-json", "-statistics", "link", "show", "dev", SOURCE_LINK];
        let shown = tool::run("ip", words).ok().json();
        shown[0]["stats64"]["tx"]["bytes"].as_u64().unwrap_or_else(|| panic!("no count of bytes in {shown}"))
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
