//! What one run of one contestant gave: a figure that is compared, and all around it that is printed and drawn.

use serde::Serialize;

use crate::fio::Load;
use crate::spread::percentile;

const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_073_741_824.0;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Figure {
    /// Operations per second.
    #[serde(rename = "IOPS")]
    Iops,
    /// Median latency.
    #[serde(rename = "p50 us")]
    LatencyP50,
    /// Throughput.
    #[serde(rename = "MiB/s")]
    Throughput,
    /// CPU time of all processes that take part.
    #[serde(rename = "CPU s/GiB")]
    CpuPerGib,
    /// Bytes on the wire for each byte written.
    #[serde(rename = "wire/written")]
    WireShare,
    /// Part of the link's rate that was used.
    #[serde(rename = "of the link")]
    LinkUse,
    /// 99th percentile of the recovery point's age.
    #[serde(rename = "RPO p99 s")]
    RpoP99,
    /// Most memory that one of the agents had resident.
    #[serde(rename = "RSS MiB")]
    Memory,
}

impl Figure {
    /// Which way is better.
    pub fn lower_is_better(self) -> bool {
        !matches!(self, Self::Iops | Self::Throughput | Self::LinkUse)
    }

    /// Picks it, where the run has it.
    pub fn of(self, outcome: &Outcome) -> Option<f64> {
        let fio = outcome.fio.as_ref();
        match self {
            Self::Iops => fio.map(|load| load.iops),
            Self::LatencyP50 => fio.map(|load| load.clat_ns_at("50.000000") / 1000.0),
            Self::Throughput => fio.map(|load| load.bw_bytes / MIB).or_else(|| outcome.mib_per_second()),
            Self::CpuPerGib => Some(outcome.cpu_seconds? / (outcome.content()? / GIB)),
            Self::WireShare => Some(outcome.wire_bytes? as f64 / outcome.content()?),
            Self::LinkUse => outcome.link_use,
            Self::RpoP99 => {
                let ages: Vec<f64> = outcome.samples.iter().filter_map(|sample| sample.rpo_seconds).collect();
                (!ages.is_empty()).then(|| percentile(&ages, 99.0))
            }
            Self::Memory => outcome.peak_rss_bytes.map(|peaks| peaks[0].max(peaks[1]) as f64 / MIB),
        }
    }

    /// Its name, with the unit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::LatencyP50 => "p50 us",
            Self::Throughput => "MiB/s",
            Self::CpuPerGib => "CPU s/GiB",
            Self::WireShare => "wire/written",
            Self::LinkUse => "of the link",
            Self::RpoP99 => "RPO p99 s",
            Self::Memory => "RSS MiB",
        }
    }
}

/// One look at the agents.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Since the watch began.
    pub seconds: f64,
    /// State of the group on the source.
    pub source_state: String,
    /// How long it has been in it.
    pub source_state_seconds: f64,
    /// State of the group on the target.
    pub target_state: String,
    /// Age of the newest durable point.
    pub rpo_seconds: Option<f64>,
    /// Bytes that guests have written.
    pub captured_bytes: u64,
    /// Bytes of UDP payload that left for the target.
    pub wire_bytes: u64,
    /// Bytes that the target has written to its disks.
    pub applied_bytes: u64,
}

/// One run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// What fio saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fio: Option<Load>,
    /// Duration of what was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// CPU seconds of the servers, meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Bytes of content that were written or copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_bytes: Option<u64>,
    /// Bytes that travelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wire_bytes: Option<u64>,
    /// Part of the link's rate that was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_use: Option<f64>,
    /// Largest resident memory of process-server and master-target, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<[u64; 2]>,
    /// States of the group that were seen, source then target, in order of appearance.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<String>,
    /// Anything that whoever reads the figure has to know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What was seen over time; in the JSON lines on lines of its own.
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

impl Outcome {
    fn content(&self) -> Option<f64> {
        self.content_bytes.filter(|bytes| *bytes > 0).map(|bytes| bytes as f64)
    }

    /// Content over time.
    fn mib_per_second(&self) -> Option<f64> {
        Some(self.content()? / MIB / self.seconds?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_there_only_where_the_run_has_what_it_needs() {
        let outcome = Outcome {
            content_bytes: Some(2 << 30),
            seconds: Some(4.0),
            cpu_seconds: Some(3.0),
            wire_bytes: Some(1 << 30),
            ..Outcome::default()
        };
        assert_eq!(Figure::Throughput.of(&outcome), Some(512.0));
        assert_eq!(Figure::CpuPerGib.of(&outcome), Some(1.5));
        assert_eq!(Figure::WireShare.of(&outcome), Some(0.5));
        for missing in [Figure::Iops, Figure::LinkUse, Figure::RpoP99, Figure::Memory] {
            assert_eq!(missing.of(&outcome), None);
        }
        assert_eq!(Figure::CpuPerGib.of(&Outcome { content_bytes: Some(0), ..outcome }), None);
    }
}
