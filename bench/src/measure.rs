//! The measures, and how a pair is run: the peer, then the agent, on the same file, one after the other.

use std::path::Path;

use anyhow::Result;

use crate::Options;
use crate::fio::{self, Load};
use crate::report::Report;
use crate::servers::{Agents, Bench, QemuNbd};

/// What of fio's answer is compared.
#[derive(Clone, Copy, Debug)]
pub enum Figure {
    /// Operations per second.
    Iops,
    /// Median latency in microseconds.
    LatencyP50,
    /// MiB per second.
    Bandwidth,
}

/// Which way is better.
#[derive(Clone, Copy, Debug)]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// What runs beside the tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The process-server alone: the link is down, only the bitmap is kept.
    BitmapOnly,
    /// Both agents on the same machine, in step when the load starts.
    Replicating,
}

/// One measure.
#[derive(Debug)]
pub struct Measure {
    /// For `bench run`.
    pub name: &'static str,
    /// For `bench list`.
    pub what: &'static str,
    /// File name in `bench/jobs`.
    pub job: &'static str,
    /// What is compared.
    pub figure: Figure,
    /// What runs.
    pub mode: Mode,
    /// Which way the goal lies.
    pub better: Better,
    /// Agent divided by peer.
    pub goal: f64,
}

/// All measures. The peer of each is qemu-nbd: raw, cache=none, aio=io_uring.
pub const MEASURES: &[Measure] = &[
    Measure {
        name: "randwrite-bitmap-only",
        what: "4 KiB random write, depth 32, link down, against qemu-nbd",
        job: "randwrite-4k-qd32",
        figure: Figure::Iops,
        mode: Mode::BitmapOnly,
        better: Better::Higher,
        goal: 3.0,
    },
    Measure {
        name: "randwrite-replicating",
        what: "4 KiB random write, depth 32, both agents replicating, against qemu-nbd",
        job: "randwrite-4k-qd32",
        figure: Figure::Iops,
        mode: Mode::Replicating,
        better: Better::Higher,
        goal: 1.5,
    },
    Measure {
        name: "latency-replicating",
        what: "4 KiB random write, depth 1, both agents replicating: median latency, against qemu-nbd",
        job: "randwrite-4k-qd1",
        figure: Figure::LatencyP50,
        mode: Mode::Replicating,
        better: Better::Lower,
        goal: 0.8,
    },
    Measure {
        name: "write-replicating",
        what: "256 KiB sequential write, depth 16, both agents replicating, against qemu-nbd",
        job: "write-256k-qd16",
        figure: Figure::Bandwidth,
        mode: Mode::Replicating,
        better: Better::Higher,
        goal: 1.0,
    },
    Measure {
        name: "randread",
        what: "4 KiB random read, depth 32, nothing to replicate, against qemu-nbd",
        job: "randread-4k-qd32",
        figure: Figure::Iops,
        mode: Mode::BitmapOnly,
        better: Better::Higher,
        goal: 2.0,
    },
];

impl Figure {
    /// Picks the figure.
    pub fn of(self, load: &Load) -> f64 {
        match self {
            Self::Iops => load.iops,
            Self::LatencyP50 => load.clat_ns_p50 / 1000.0,
            Self::Bandwidth => load.bw_bytes / 1_048_576.0,
        }
    }

    /// Its name, with the unit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::LatencyP50 => "p50 us",
            Self::Bandwidth => "MiB/s",
        }
    }
}

/// Runs one measure: pairs, alternating which side goes first.
pub fn run(measure: &Measure, options: &Options, bin: &Path, report: &mut Report) -> Result<()> {
    let bench = Bench::create(&options.dir, bin, options.disk_mib << 20)?;
    let mut pairs = Vec::with_capacity(options.pairs);
    for pair in 1..=options.pairs {
        let peer = || -> Result<Load> {
            let server = QemuNbd::start(&bench)?;
            fio::run(measure.job, &server.uri(), options.seconds)
        };
        let ours = || -> Result<Load> {
            let agents = Agents::start(&bench, measure.mode)?;
            let load = fio::run(measure.job, &agents.uri(), options.seconds)?;
            // No number is bought with correctness.
            agents.finish()?;
            Ok(load)
        };
        let (peer, ours) = if pair % 2 == 1 {
            let peer = peer()?;
            (peer, ours()?)
        } else {
            let ours = ours()?;
            (peer()?, ours)
        };
        report.run(measure, pair, "qemu-nbd", &peer)?;
        report.run(measure, pair, "backhaul", &ours)?;
        pairs.push((peer, ours));
    }
    report.measure(measure, &pairs)
}
