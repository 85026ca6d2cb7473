//! One page with everything: host, table, plots. It opens from a file, without a network.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::Result;

use crate::contest::OURS;
use crate::fio::PERCENTILES;
use crate::host::Host;
use crate::outcome::{Figure, Sample};
use crate::report::plots::{self, Bar, Series};
use crate::report::{Line, Run, table};

const MIB: f64 = 1_048_576.0;
const STYLE: &str = "body{font:15px sans-serif;max-width:1100px;margin:2em auto;color:#222}\
table{border-collapse:collapse}td,th{border-bottom:1px solid #ccc;padding:3px 10px;text-align:left}\
.missed{color:#a00}pre{background:#f4f4f4;padding:8px}svg{display:block;margin:12px 0}";

/// The page.
pub fn page(host: &Host, lines: &[Line], runs: &[Run]) -> Result<String> {
    let mut page =
        String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Backhaul bench</title>");
    write!(page, "<style>{STYLE}</style><h1>Backhaul bench</h1><pre>{}</pre>", escaped(&host.to_string()))?;
    results(&mut page, lines)?;
    page.push_str("<h2>Latency percentiles</h2>");
    for measure in measures(runs) {
        page.push_str(&latency(measure, runs)?);
    }
    page.push_str("<h2>Throughput and age of the newest point over time</h2>");
    for run in runs.iter().filter(|run| run.pair == 1 && run.outcome.samples.len() > 2) {
        page.push_str(&over_time(run)?);
    }
    page.push_str("<h2>Bytes written and bytes on the wire</h2>");
    page.push_str(&plots::bars("first pair of each measure", "MiB", &bytes(runs))?);
    page.push_str("<h2>CPU time</h2>");
    page.push_str(&plots::bars(
        "first pair of each measure, all processes of the contestant",
        "CPU s/GiB",
        &cpu(runs),
    )?);
    page.push_str("<h2>Notes</h2><ul>");
    for run in runs {
        for note in &run.outcome.notes {
            write!(page, "<li>{}, pair {}: {}", run.measure, run.pair, escaped(note))?;
        }
    }
    page.push_str("</ul></html>\n");
    Ok(page)
}

fn results(page: &mut String, lines: &[Line]) -> Result<()> {
    page.push_str("<h2>Results</h2><table><tr>");
    for head in table::HEADS {
        write!(page, "<th>{head}")?;
    }
    for line in lines {
        match line {
            Line::Judged(verdict) => {
                write!(page, "<tr{}>", if verdict.reached { "" } else { " class=\"missed\"" })?;
                for column in table::columns(verdict) {
                    write!(page, "<td>{}", escaped(&column))?;
                }
            }
            Line::Failed { measure, reason } => {
                write!(page, "<tr class=\"missed\"><td><td>{measure}<td colspan=\"6\">FAILED: {}", escaped(reason))?;
            }
        }
    }
    page.push_str("</table>");
    Ok(())
}

fn measures(runs: &[Run]) -> Vec<&'static str> {
    let mut seen = BTreeSet::new();
    runs.iter().map(|run| run.measure).filter(|measure| seen.insert(*measure)).collect()
}

/// Of the first pair: percentile as "so many nines" against microseconds, both logarithmic in effect.
fn latency(measure: &str, runs: &[Run]) -> Result<String> {
    let of_measure = runs.iter().filter(|run| run.measure == measure && run.pair == 1);
    let series = of_measure.filter_map(|run| {
        let fio = run.outcome.fio.as_ref()?;
        let point = |name: &&str| {
            let percent: f64 = name.parse().unwrap_or(0.0);
            (-(1.0 - percent / 100.0).log10(), (fio.clat_ns_at(name) / 1000.0).max(1.0).log10())
        };
        Some(Series { name: run.contestant.to_owned(), points: PERCENTILES.iter().map(point).collect() })
    });
    let series: Vec<Series> = series.collect();
    if series.is_empty() {
        return Ok(String::new());
    }
    let x_name = "nines (1: p90, 2: p99, 3: p99.9)";
    plots::lines(measure, x_name, "powers of ten us", &series)
}

fn over_time(run: &Run) -> Result<String> {
    let samples = &run.outcome.samples;
    let rate = |name: &str, count: fn(&Sample) -> u64| Series {
        name: name.to_owned(),
        points: samples
            .windows(2)
            .filter_map(|pair| {
                let seconds = pair[1].seconds - pair[0].seconds;
                let bytes = count(&pair[1]).checked_sub(count(&pair[0]))?;
                Some((pair[1].seconds, bytes as f64 / MIB / seconds))
            })
            .collect(),
    };
    let rates = [
        rate("written by the guest", |sample| sample.captured_bytes),
        rate("on the wire", |sample| sample.wire_bytes),
        rate("applied to the target", |sample| sample.applied_bytes),
    ];
    let mut drawn = plots::lines(&format!("{}: throughput", run.measure), "s", "MiB/s", &rates)?;
    let ages = samples.iter().filter_map(|sample| Some((sample.seconds, sample.rpo_seconds?)));
    let age = Series { name: "age of the newest point".to_owned(), points: ages.collect() };
    if !age.points.is_empty() {
        drawn.push_str(&plots::lines(&format!("{}: RPO", run.measure), "s", "s", &[age])?);
    }
    Ok(drawn)
}

fn bytes(runs: &[Run]) -> Vec<Bar> {
    let mut bars = Vec::new();
    for run in runs.iter().filter(|run| run.pair == 1) {
        let (Some(content), Some(wire)) = (run.outcome.content_bytes, run.outcome.wire_bytes) else { continue };
        for (kind, (what, bytes)) in [("written", content), ("wire", wire)].into_iter().enumerate() {
            let name = format!("{}, {}: {what}", run.measure, run.contestant);
            bars.push(Bar { name, value: bytes as f64 / MIB, kind });
        }
    }
    bars
}

fn cpu(runs: &[Run]) -> Vec<Bar> {
    let first = runs.iter().filter(|run| run.pair == 1);
    let bars = first.filter_map(|run| {
        let value = Figure::CpuPerGib.of(&run.outcome)?;
        let name = format!("{}, {}", run.measure, run.contestant);
        Some(Bar { name, value, kind: usize::from(run.contestant != OURS) })
    });
    bars.collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_text_and_not_markup() {
        assert_eq!(escaped("a<b & c>"), "a&lt;b &amp; c&gt;");
    }
}
