//! The report of a failback: kept in the journal, told on the control interface.

use proto::control::{FailbackDisk, FailbackReport};
use proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::Ranges;
use super::steps::Source;

/// What a failback did; kept in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The group.
    pub group: String,
    /// Id of the point that its disks hold.
    pub point: String,
    /// From the command to the checksums.
    pub seconds: f64,
    /// When the source was fenced, microseconds since the Unix epoch.
    pub fenced_at_us: Option<u64>,
    /// Its disks.
    pub disks: Vec<ReportDisk>,
    /// Key of its conversation with the source, and of what is kept of the disks.
    #[serde(default)]
    pub request: u64,
    /// The source was fenced and drained, or given up.
    #[serde(default = "fenced")]
    pub source: Source,
    /// What a machine wrote to the disks between two choices.
    #[serde(default)]
    pub spoilt: Ranges,
    /// Disks that the point does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_as_is: Vec<String>,
}

fn fenced() -> Source {
    Source::Fence
}

/// One disk of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportDisk {
    /// Its index in the journal; none: its place in the report, as earlier releases had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// Its name.
    pub name: String,
    /// Its target as configured.
    pub target: String,
    /// Bytes.
    pub size: u64,
    /// `blake3:` and the digest in hexadecimal.
    pub checksum: String,
}

impl Report {
    /// What `status` says of a group with this report.
    pub fn state_text(&self) -> String {
        let point = &self.point;
        format!("the disks were handed over at point {point}: choose another one, commit, or reprotect")
    }

    /// The same once the choice is final.
    pub fn committed_text(&self) -> String {
        format!("the disks were handed over at point {}, which is committed", self.point)
    }

    /// Its disks, each with its index in the journal.
    pub fn indexed(&self) -> impl Iterator<Item = (u32, &ReportDisk)> {
        (0..).zip(&self.disks).map(|(place, disk)| (disk.index.unwrap_or(place), disk))
    }

    /// The report as the control interface says it.
    pub fn to_message(&self) -> FailbackReport {
        let disk = |disk: &ReportDisk| FailbackDisk {
            name: disk.name.clone(),
            target: disk.target.clone(),
            size: disk.size,
            checksum: disk.checksum.clone(),
        };
        FailbackReport {
            group: self.group.clone(),
            point: self.point.clone(),
            seconds: self.seconds,
            fenced_at: self.fenced_at_us.map(|us| Timestamp(us).to_string()),
            disks: self.disks.iter().map(disk).collect(),
            left_as_is: self.left_as_is.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_kept_and_told_as_the_contract_says() {
        let report = Report {
            group: "web".into(),
            point: "17".into(),
            seconds: 1.5,
            fenced_at_us: Some(1_000_000),
            disks: vec![ReportDisk {
                index: None,
                name: "os".into(),
                target: "/x".into(),
                size: 512,
                checksum: "blake3:00".into(),
            }],
            request: 5,
            source: Source::Without,
            spoilt: Ranges::default(),
            left_as_is: Vec::new(),
        };
        let kept: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(kept, report);
        let old = r#"{"group":"web","point":"17","seconds":1.5,"fenced_at_us":null,"disks":[]}"#;
        assert_eq!(serde_json::from_str::<Report>(old).unwrap().request, 0, "as an earlier release wrote it");
        let message = kept.to_message();
        assert_eq!(message.fenced_at.as_deref(), Some("1970-01-01T00:00:01.000000Z"));
        assert_eq!(message.disks[0].checksum, "blake3:00");
    }
}
