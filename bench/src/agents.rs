//! The agents under measurement: a site of the whole-system tests with disks that the bench has made.
//!
//! State, keys, journal and VMDKs are new in every run. Each ends with a comparison of source and target: no number is
//! bought with correctness.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::site::{GROUP, Site};

use crate::link::Link;
use crate::process;

/// The slowest initial synchronisation, with a peer on the machine's heels.
pub const SYNC_MAX: Duration = Duration::from_secs(900);
const COMPARE_MAX: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(20);

/// Both agents.
#[derive(Debug)]
pub struct Agents {
    /// Where they are.
    pub site: Site,
}

impl Agents {
    /// A site in `folder` over these files, on this link. Nothing runs yet.
    pub fn prepare(folder: &Path, disks: &[PathBuf], link: &mut Link) -> Result<Self> {
        let sizes = disks.iter().map(|disk| Ok(fs::metadata(disk)?.len())).collect::<Result<Vec<u64>>>();
        let mut site = Site::inside(folder, &sizes.context("the disks")?);
        for (disk, file) in site.disks.iter_mut().zip(disks) {
            let line = |path: &Path| format!("source = \"{}\"\n", path.display());
            site.source_config = site.source_config.replace(&line(&disk.source), &line(file));
            fs::remove_file(&disk.source)?;
            disk.source.clone_from(file);
        }
        link.carry(&mut site);
        Ok(Self { site })
    }

    /// Starts both and waits for the initial synchronisation.
    pub fn start(&mut self) -> Result<()> {
        self.site.start_target();
        self.site.start_source();
        self.wait_on_disk(SYNC_MAX)
    }

    /// Waits until the group is in step, and all that is durable is also on the target's disks.
    pub fn wait_on_disk(&self, within: Duration) -> Result<()> {
        let started = std::time::Instant::now();
        loop {
            process::check_interrupt()?;
            // The target first: what it has then is judged by a source that is asked later.
            let (target, source) = (self.site.target.group(GROUP), self.site.source.group(GROUP));
            if in_step(&source, &target) {
                return Ok(());
            }
            if started.elapsed() > within {
                bail!("waited {} s for source and target to be in step: {source} {target}", within.as_secs());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// CPU seconds that both have used.
    pub fn cpu_seconds(&self) -> Result<f64> {
        Ok(process::cpu_seconds(self.site.source.id())? + process::cpu_seconds(self.site.target.id())?)
    }

    /// The most memory that each has had resident, bytes.
    pub fn peak_rss_bytes(&self) -> [u64; 2] {
        [self.site.source.peak_memory(), self.site.target.peak_memory()]
    }

    /// UDP payload that has left the source.
    pub fn sent_bytes(&self) -> Result<u64> {
        let status = self.site.source.status();
        status["link"]["sent_bytes"].as_u64().with_context(|| format!("no link.sent_bytes in {status}"))
    }

    /// Bytes that guests have written.
    pub fn captured_bytes(&self) -> Result<u64> {
        let group = self.site.source.group(GROUP);
        group["captured_bytes"].as_u64().with_context(|| format!("no captured_bytes in {group}"))
    }

    /// After the load: waits until all of it is on the target's disks, and compares those of `disks` with their sources.
    pub fn compare(&self, disks: impl IntoIterator<Item = usize>) -> Result<()> {
        // What was written last is in a set of its own, and the point comes after it.
        self.site.point(None);
        self.wait_on_disk(SYNC_MAX)?;
        for disk in disks {
            same(&self.site.disks[disk].source, "raw", &self.site.vmdk(disk), "vmdk")?;
        }
        Ok(())
    }

    /// Stops both cleanly.
    pub fn halt(&mut self) {
        for agent in [&mut self.site.source, &mut self.site.target] {
            if agent.is_started() {
                agent.stop();
            }
        }
    }

    /// What the logs say at WARN or ERROR.
    pub fn alarms(&self) -> Vec<String> {
        [self.site.source.alarms(&[]), self.site.target.alarms(&[])].concat()
    }

    /// Stops both, and returns their alarms.
    pub fn stop(mut self) -> Vec<String> {
        self.halt();
        self.alarms()
    }
}

fn in_step(source: &Value, target: &Value) -> bool {
    let durable = &target["durable_set"];
    let applied = durable.is_u64() && *durable == target["applied_set"];
    source["state"] == "streaming" && target["state"] == "protected" && applied
}

/// Compares the content of two images, through qemu-img.
pub fn same(left: &Path, left_format: &str, right: &Path, right_format: &str) -> Result<()> {
    let mut command = process::command(None, "qemu-img");
    command.args(["compare", "-U", "-f", left_format, "-F", right_format]).arg(left).arg(right);
    process::run(command, COMPARE_MAX).with_context(|| "source and target differ after the run")?;
    Ok(())
}

#[cfg(test)]
mod tests_of_step {
    use super::*;
    use serde_json::json;

    #[test]
    fn in_step_means_streaming_protected_and_all_applied() {
        let source = json!({ "state": "streaming" });
        let target = |state, applied| json!({ "state": state, "durable_set": 7, "applied_set": applied });
        assert!(in_step(&source, &target("protected", 7)));
        assert!(!in_step(&source, &target("protected", 6)));
        assert!(!in_step(&source, &target("syncing", 7)));
        assert!(!in_step(&json!({ "state": "catching-up" }), &target("protected", 7)));
        assert!(!in_step(&source, &json!({ "state": "protected", "durable_set": null, "applied_set": null })));
    }
}
