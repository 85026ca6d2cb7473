//! The table at the end, and the same facts as JSON lines.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use crate::fio::Load;
use crate::host::Host;
use crate::measure::{Better, Figure, Measure};

/// One measure, done.
struct Line {
    name: &'static str,
    figure: Figure,
    goal: f64,
    better: Better,
    peer: f64,
    ours: f64,
    ratios: Vec<f64>,
}

/// Collects results.
pub struct Report {
    file: File,
    lines: Vec<Line>,
}

/// The middle one; of an even number, the mean of both in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    (low + high) / 2.0
}

impl Report {
    /// A report whose first line is the host.
    pub fn create(path: &Path, host: &Host) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut report = Self { file, lines: Vec::new() };
        report.write(&json!({ "kind": "host", "host": host }))?;
        Ok(report)
    }

    /// Notes one run of fio.
    pub fn run(&mut self, measure: &Measure, pair: usize, server: &str, load: &Load) -> Result<()> {
        println!(
            "{:<28} pair {pair} {server:<12} {:>9.0} IOPS {:>8.1} MiB/s  p50 {:>7.1} us  p99 {:>8.1} us",
            measure.name,
            load.iops,
            load.bw_bytes / 1_048_576.0,
            load.clat_ns_p50 / 1000.0,
            load.clat_ns_p99 / 1000.0
        );
        self.write(&json!({ "kind": "run", "measure": measure.name, "pair": pair, "server": server, "fio": load }))
    }

    /// Notes a whole measure.
    pub fn measure(&mut self, measure: &Measure, pairs: &[(Load, Load)]) -> Result<()> {
        let figure = |load: &Load| measure.figure.of(load);
        let peer: Vec<f64> = pairs.iter().map(|(peer, _)| figure(peer)).collect();
        let ours: Vec<f64> = pairs.iter().map(|(_, ours)| figure(ours)).collect();
        let ratios: Vec<f64> = pairs.iter().map(|(peer, ours)| figure(ours) / figure(peer)).collect();
        let line = Line {
            name: measure.name,
            figure: measure.figure,
            goal: measure.goal,
            better: measure.better,
            peer: median(&peer),
            ours: median(&ours),
            ratios,
        };
        self.write(&json!({
            "kind": "measure", "measure": line.name, "figure": line.figure.name(), "peer_median": line.peer,
            "ours_median": line.ours, "ratios": line.ratios, "ratio_median": median(&line.ratios), "goal": line.goal,
        }))?;
        self.lines.push(line);
        Ok(())
    }

    /// Prints the table.
    pub fn print(&self) {
        println!();
        println!(
            "{:<28} {:>14} {:>12} {:>12} {:>7} {:>15} {:>9}",
            "measure", "figure", "peer", "ours", "ratio", "spread", "goal"
        );
        for line in &self.lines {
            let ratio = median(&line.ratios);
            let low = line.ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let high = line.ratios.iter().copied().fold(0.0, f64::max);
            let (sign, reached) = match line.better {
                Better::Higher => (">=", ratio >= line.goal),
                Better::Lower => ("<=", ratio <= line.goal),
            };
            println!(
                "{:<28} {:>14} {:>12.1} {:>12.1} {:>6.2}x {:>15} {:>5} {:.1}x {}",
                line.name,
                line.figure.name(),
                line.peer,
                line.ours,
                ratio,
                format!("{low:.2}..{high:.2}"),
                sign,
                line.goal,
                if reached { "reached" } else { "MISSED" }
            );
        }
    }

    fn write(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.file.write_all(&line).context("write the JSON lines")
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
    }
}
