//! Measure 10: a guest that changes 100 MB a second for two minutes. The newest point must stay young, and the group must
//! not leave `streaming`, not even between two looks at it.

use anyhow::{Context, Result, bail};

use crate::agents::Agents;
use crate::contest::{self, Bench, Contestant, OURS};
use crate::data::{self, Content};
use crate::fio;
use crate::link::{Kind, Link};
use crate::measures::Measure;
use crate::outcome::Outcome;
use crate::report::Report;
use crate::watch::{self, Watch};

const DISK_BYTES: u64 = 1 << 30;
const JOB: &str = "sustained-100mb";
/// fio may fall behind its own rate at the start.
const REACHED_MIN: f64 = 0.95;
const BYTES_PER_SECOND: f64 = 100e6;

/// One run: its length is its own repetition.
pub fn run(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    let disk = bench.path("disk.img");
    data::create(&disk, DISK_BYTES, Content::Mixed, 1)?;
    let ours = || {
        let (folder, mut link) = (bench.subfolder()?, Link::new(Kind::Loopback)?);
        let mut agents = Agents::prepare(folder.path(), std::slice::from_ref(&disk), &mut link)?;
        agents.start().context("the initial synchronisation")?;
        let (captured, sent, cpu) = (agents.captured_bytes()?, agents.sent_bytes()?, agents.cpu_seconds()?);
        let watch = Watch::begin(&agents.site);
        let load = fio::run(JOB, &agents.site.uri(0), bench.scale.sustained_seconds)?;
        let samples = watch.end()?;
        agents.compare([0])?;
        let content_bytes = Some(agents.captured_bytes()? - captured);
        let (wire_bytes, cpu_seconds) = (Some(agents.sent_bytes()? - sent), Some(agents.cpu_seconds()? - cpu));
        let peak_rss_bytes = Some(agents.peak_rss_bytes());
        let mut notes = agents.stop();
        if load.bw_bytes < REACHED_MIN * BYTES_PER_SECOND {
            notes.push(format!("the guest reached only {:.1} of 100 MB/s", load.bw_bytes / 1e6));
        }
        let departures = watch::departures(&samples);
        if departures > 0 {
            notes.push(format!("the group left streaming {departures} times"));
        }
        let outcome = Outcome {
            fio: Some(load),
            cpu_seconds,
            content_bytes,
            wire_bytes,
            peak_rss_bytes,
            states: watch::states(&samples),
            notes,
            samples,
            ..Outcome::default()
        };
        Ok(outcome)
    };
    contest::run(measure, 1, report, |_| Ok(()), &[Contestant::new(OURS, ours)])?;
    let notes: Vec<String> = report.notes(measure.name).collect();
    if !notes.is_empty() {
        bail!("{}", notes.join("; "));
    }
    Ok(())
}
