//! A link of 100 Mbit/s between two network namespaces, shaped by the kernel (M2): the initial synchronisation has to use
//! it, and a load on top of it has to stay consistent. Needs root.

use std::time::Instant;

use crate::load::{Load, Pace};
use crate::namespaces::{Namespaces, TARGET_ADDRESS};
use crate::site::{GROUP, Site};
use crate::torture::history::fail_back;
use crate::verdict::{self, judge_point, judge_sources};
use crate::{guest::Model, image};

const MIB: u64 = 1 << 20;
const RATE: &str = "100mbit";
const BURST: &str = "64kb";
/// Of 100 Mbit/s, what the initial synchronisation has to reach: two busy cores run everything else too.
const MBIT_MIN: f64 = 60.0;

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
        let namespaces = Namespaces::shaped(RATE, BURST);
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
