//! fio at full speed over a link that is capped far below it (P4, P8): the guest does not notice, memory stays bounded,
//! and the group comes back to streaming with identical disks.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::proxy::Weather;
use crate::site::Site;
use crate::tool;
use crate::verdict::assert_targets_equal_sources;

const MIB: u64 = 1 << 20;
/// Each agent's memory may grow to this.
const PEAK_MAX: u64 = 512 * MIB;
/// From the end of the load until the group streams again: the whole disk at the capped rate, several times over.
const BACK_WITHIN: Duration = Duration::from_secs(180);

/// How long, and against what it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Capped {
    /// Seconds of load.
    pub seconds: u64,
    /// Bytes of the disk, and so of what is dirty in the end.
    pub disk_bytes: u64,
    /// Whether the same load runs once more with the link down, to compare.
    pub compared: bool,
    /// Seed of the proxy.
    pub seed: u64,
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Guest writes per second with the link capped.
    pub iops_capped: f64,
    /// The same with the link down; `None` if not asked for.
    pub iops_down: Option<f64>,
    /// Seconds from the end of the load to streaming.
    pub back_seconds: f64,
    /// Largest resident memory of the process-server, bytes.
    pub source_peak: u64,
    /// Largest resident memory of the master-target, bytes.
    pub target_peak: u64,
}

impl Capped {
    /// Runs it at 10 Mbit/s.
    ///
    /// # Panics
    /// If the cap, the memory bound or the content does not hold, or the group does not come back.
    #[must_use]
    pub fn run(self) -> Figures {
        let mut site = Site::new(&[self.disk_bytes]);
        let proxy = site.through_proxy(self.seed, Weather::default());
        site.cap("10 Mbit/s");
        site.start();

        let (start, sent) = (Instant::now(), proxy.from_source());
        let iops_capped = fio(&site, self.seconds);
        let rate = (proxy.from_source() - sent) as f64 * 8.0 / start.elapsed().as_secs_f64();
        assert!(rate <= 10_200_000.0, "{rate:.0} bit/s left while the cap was 10 Mbit/s");
        let loaded = Instant::now();
        site.wait_protected_within(BACK_WITHIN);
        let back_seconds = loaded.elapsed().as_secs_f64();

        let iops_down = self.compared.then(|| {
            proxy.cut();
            let iops = fio(&site, self.seconds);
            proxy.mend();
            site.wait_protected_within(BACK_WITHIN);
            iops
        });
        // What was written last is in a set of its own.
        site.point(None);
        assert_targets_equal_sources(&site);
        let (source_peak, target_peak) = (site.source.peak_memory(), site.target.peak_memory());
        for (who, peak) in [("process-server", source_peak), ("master-target", target_peak)] {
            assert!(peak < PEAK_MAX, "{who} has used {} MiB", peak / MIB);
        }
        site.finish(&["nothing heard"]);
        Figures { iops_capped, iops_down, back_seconds, source_peak, target_peak }
    }
}

/// Random 4 KiB writes as fast as the export takes them; returns the writes per second.
fn fio(site: &Site, seconds: u64) -> f64 {
    let (uri, runtime) = (format!("--uri={}", site.uri(0)), format!("--runtime={seconds}"));
    let size = format!("--size={}", site.disks[0].size);
    let words = [
        "--name=flood",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        &size,
        "--time_based",
        &runtime,
        "--norandommap",
        "--buffer_compress_percentage=70",
        "--refill_buffers",
        "--output-format=json",
    ];
    let report = tool::run_within(Duration::from_secs(seconds) + tool::LIMIT, "fio", words).ok();
    let json: Value = serde_json::from_str(report.stdout.trim_start_matches(|c| c != '{')).expect("fio's JSON");
    assert_eq!(json["jobs"][0]["error"], 0, "{json}");
    json["jobs"][0]["write"]["iops"].as_f64().expect("a number")
}
