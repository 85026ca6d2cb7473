//! What a preflight says: checks with outcome and remedy, volumes with the reason why one is not eligible. It is the JSON of
//! `master-target check --json`, field by field, and the text for people.

use std::fmt::Write as _;

use serde::Serialize;

use crate::amount::amount;

/// How a check ended. The worse is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is as it should be.
    Pass,
    /// It works, but somebody should look.
    Warning,
    /// A failback would fail: the group is not accepted.
    Failure,
}

/// One check of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Which check; `docs/preflight.md` has them all.
    pub id: &'static str,
    /// What was checked: a target as configured, or a path.
    pub subject: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub message: String,
    /// What to do, unless it is a pass.
    pub remedy: Option<String>,
}

impl Check {
    /// All is well.
    pub fn pass(id: &'static str, subject: &str, message: impl Into<String>) -> Check {
        Check { id, subject: subject.to_owned(), outcome: Outcome::Pass, message: message.into(), remedy: None }
    }

    /// Somebody should look.
    pub fn warning(id: &'static str, subject: &str, message: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { outcome: Outcome::Warning, remedy: Some(remedy.into()), ..Self::pass(id, subject, message) }
    }

    /// The group can't be accepted.
    pub fn failure(id: &'static str, subject: &str, message: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { outcome: Outcome::Failure, remedy: Some(remedy.into()), ..Self::pass(id, subject, message) }
    }
}

/// The checks of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupReport {
    /// Its name.
    pub name: String,
    /// Its checks, disk by disk.
    pub checks: Vec<Check>,
}

/// A mounted volume as a place for journals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeReport {
    /// Where it is mounted.
    pub path: String,
    /// Its file system.
    pub file_system: String,
    /// Its size.
    pub size_bytes: u64,
    /// What is free for this agent.
    pub free_bytes: u64,
    /// Whether it can be the retention volume.
    pub eligible: bool,
    /// Why it can't.
    pub reason: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Name of the agent.
    pub name: String,
    /// The groups of the configuration.
    pub groups: Vec<GroupReport>,
    /// Every mounted volume.
    pub retention: Vec<VolumeReport>,
    /// The worst of all checks.
    pub outcome: Outcome,
}

impl Report {
    /// A report, whose outcome is that of its worst check.
    pub fn new(name: String, groups: Vec<GroupReport>, retention: Vec<VolumeReport>) -> Report {
        let outcomes = groups.iter().flat_map(|group| &group.checks).map(|check| check.outcome);
        let outcome = outcomes.max().unwrap_or(Outcome::Pass);
        Report { name, groups, retention, outcome }
    }

    /// Number of checks that failed.
    pub fn failures(&self) -> usize {
        let checks = self.groups.iter().flat_map(|group| &group.checks);
        checks.filter(|check| check.outcome == Outcome::Failure).count()
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = format!("master-target {}\n", self.name);
        let mut line = |words: std::fmt::Arguments<'_>| writeln!(text, "{words}").expect("a string takes all");
        for group in &self.groups {
            line(format_args!("\ngroup {}", group.name));
            for check in &group.checks {
                let outcome = match check.outcome {
                    Outcome::Pass => "pass   ",
                    Outcome::Warning => "WARNING",
                    Outcome::Failure => "FAILURE",
                };
                line(format_args!("  {outcome}  {:<18}  {}: {}", check.id, check.subject, check.message));
                if let Some(remedy) = &check.remedy {
                    line(format_args!("           {:<18}  -> {remedy}", ""));
                }
            }
        }
        line(format_args!("\nvolumes for retention"));
        for volume in &self.retention {
            let (size, free) = (amount(volume.size_bytes), amount(volume.free_bytes));
            let verdict = volume.reason.as_ref().map_or("eligible".to_owned(), |reason| format!("no: {reason}"));
            line(format_args!("  {}  {}, {size}, {free} free  {verdict}", volume.path, volume.file_system));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_fields_that_scripts_rely_on() {
        let checks = vec![
            Check::pass("snapshots", "[ds1] os.vmdk", "it has none"),
            Check::failure("datastore-nfs", "[ds1] os.vmdk", "it is on NFS", "move it"),
        ];
        let volume = VolumeReport {
            path: "/mnt/retention".into(),
            file_system: "ext4".into(),
            size_bytes: 2,
            free_bytes: 1,
            eligible: true,
            reason: None,
        };
        let report = Report::new("mt-1".into(), vec![GroupReport { name: "web".into(), checks }], vec![volume]);
        assert_eq!((report.outcome, report.failures()), (Outcome::Failure, 1));
        let expected = serde_json::json!({
            "name": "mt-1",
            "groups": [{ "name": "web", "checks": [
                { "id": "snapshots", "subject": "[ds1] os.vmdk", "outcome": "pass", "message": "it has none", "remedy": null },
                { "id": "datastore-nfs", "subject": "[ds1] os.vmdk", "outcome": "failure", "message": "it is on NFS", "remedy": "move it" },
            ] }],
            "retention": [{ "path": "/mnt/retention", "file_system": "ext4", "size_bytes": 2, "free_bytes": 1, "eligible": true, "reason": null }],
            "outcome": "failure",
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
        let text = report.text();
        assert!(text.contains("FAILURE") && text.contains("-> move it") && text.contains("eligible"), "{text}");
    }
}
