//! Results: collected while the measures run, written as JSON lines at once, judged against the goals, and at the end
//! shown as a table and as one HTML page with plots.
//!
//! `verdict` compares figures with goals, `table` prints, `plots` draws, `html` puts the page together, `compare` reads
//! the JSON lines of two runs.

mod compare;
mod html;
mod plots;
mod table;
mod verdict;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use crate::contest::OURS;
use crate::host::Host;
use crate::measures::Measure;
use crate::outcome::Outcome;

pub use compare::compare;
pub use verdict::Verdict;

/// One run of one contestant.
#[derive(Debug)]
pub struct Run {
    /// Name of the measure.
    pub measure: &'static str,
    /// Counted from 1.
    pub pair: usize,
    /// Who.
    pub contestant: &'static str,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a measure came to.
#[derive(Debug)]
pub enum Line {
    /// It ran; one for each goal.
    Judged(Verdict),
    /// It could not, or not to its end.
    Failed {
        /// Name of the measure.
        measure: &'static str,
        /// Why.
        reason: String,
    },
}

/// Collects results.
pub struct Report {
    folder: PathBuf,
    file: File,
    host: Host,
    runs: Vec<Run>,
    lines: Vec<Line>,
}

impl Report {
    /// A report whose first line is the host. Files of an earlier run in the folder are replaced.
    pub fn create(folder: &Path, host: Host) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let path = folder.join("bench.jsonl");
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let mut report = Self { folder: folder.to_owned(), file, host, runs: Vec::new(), lines: Vec::new() };
        let host = json!({ "kind": "host", "host": report.host });
        report.write(&host)?;
        Ok(report)
    }

    /// Notes one run.
    pub fn run(&mut self, measure: &Measure, pair: usize, contestant: &'static str, outcome: Outcome) -> Result<()> {
        table::print_run(measure, pair, contestant, &outcome);
        let name = measure.name;
        self.write(&json!({ "kind": "run", "measure": name, "pair": pair, "server": contestant, "result": outcome }))?;
        for sample in &outcome.samples {
            self.write(&json!({ "kind": "sample", "measure": name, "pair": pair, "sample": sample }))?;
        }
        self.runs.push(Run { measure: name, pair, contestant, outcome });
        Ok(())
    }

    /// All pairs of a measure have run: compares them with its goals.
    pub fn judge(&mut self, measure: &Measure) -> Result<()> {
        for goal in measure.goals {
            let verdict = verdict::judge(measure.name, goal, &self.runs)?;
            self.write(&json!({ "kind": "measure", "measure": measure.name, "result": verdict }))?;
            self.lines.push(Line::Judged(verdict));
        }
        Ok(())
    }

    /// A measure did not come to its end.
    pub fn failed(&mut self, measure: &Measure, reason: &str) -> Result<()> {
        println!("{} FAILED: {reason}", measure.name);
        self.write(&json!({ "kind": "failed", "measure": measure.name, "reason": reason }))?;
        self.lines.push(Line::Failed { measure: measure.name, reason: reason.to_owned() });
        Ok(())
    }

    /// What the agents' runs of a measure have noted.
    pub fn notes(&self, measure: &str) -> impl Iterator<Item = String> {
        let ours = self.runs.iter().filter(move |run| run.measure == measure && run.contestant == OURS);
        ours.flat_map(|run| run.outcome.notes.clone())
    }

    /// Prints the table and writes the page.
    pub fn finish(&self) -> Result<()> {
        table::print(&self.lines);
        let page = self.folder.join("report.html");
        fs::write(&page, html::page(&self.host, &self.lines, &self.runs)?)
            .with_context(|| format!("write {}", page.display()))?;
        println!("\n{}\n{}", self.folder.join("bench.jsonl").display(), page.display());
        Ok(())
    }

    fn write(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.file.write_all(&line).context("write the JSON lines")
    }
}
