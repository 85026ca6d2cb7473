//! Measures 1 to 5: what a guest gets from the tap, beside other NBD servers on the same file.
//!
//! qemu-nbd runs in every pair. Three more run once, to show where the ceilings are: nbdkit on the file, nbdkit without a disk,
//! and fio on the file itself.

use std::path::Path;

use anyhow::{Context, Result, bail};

use tests::site::GROUP;

use crate::agents::Agents;
use crate::contest::{self, Bench, Contestant, OURS};
use crate::data::{self, Content};
use crate::fio;
use crate::link::{Kind, Link};
use crate::measures::Measure;
use crate::outcome::Outcome;
use crate::peers::exports::{self, Export};
use crate::report::Report;
use crate::watch::{self, Watch};

/// The range that the jobs use.
const DISK_BYTES: u64 = 1 << 30;
/// Two seconds each, at a disk that manages over 10 MB/s.
const OVERFLOW_RUNS_MAX: usize = 20;

/// What becomes of the writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The target is away: only the bitmap is kept.
    LinkDown,
    /// Both agents on the same machine.
    Replicating,
}

/// Measure 1.
pub fn randwrite_link_down(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    run(measure, bench, report, "randwrite-4k-qd32", Mode::LinkDown)
}

/// Measure 2.
pub fn randwrite_replicating(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    run(measure, bench, report, "randwrite-4k-qd32", Mode::Replicating)
}

/// Measure 3.
pub fn latency_replicating(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    run(measure, bench, report, "randwrite-4k-qd1", Mode::Replicating)
}

/// Measure 4.
pub fn write_replicating(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    run(measure, bench, report, "write-256k-qd16", Mode::Replicating)
}

/// Measure 5.
pub fn randread(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    run(measure, bench, report, "randread-4k-qd32", Mode::Replicating)
}

fn run(measure: &Measure, bench: &Bench, report: &mut Report, job: &str, mode: Mode) -> Result<()> {
    let disk = bench.path("disk.img");
    data::create(&disk, DISK_BYTES, Content::Mixed, 1)?;
    let seconds = bench.scale.load_seconds;
    let served = |export: &dyn Fn(&Path) -> Result<Export>| -> Result<Outcome> {
        let folder = bench.subfolder()?;
        let export = export(folder.path())?;
        let cpu = export.server.cpu_seconds()?;
        let load = fio::run(job, &export.uri(), seconds)?;
        let cpu_seconds = Some(export.server.cpu_seconds()? - cpu);
        Ok(Outcome { fio: Some(load), cpu_seconds, ..Outcome::default() })
    };
    let direct = || -> Result<Outcome> {
        let load = fio::run_on_file(job, &disk, bench.subfolder()?.path(), seconds)?;
        Ok(Outcome { fio: Some(load), ..Outcome::default() })
    };
    let contestants = [
        Contestant::new("qemu-nbd", || served(&|folder| exports::qemu_nbd(folder, &disk))),
        Contestant::new(OURS, || ours(bench, &disk, job, mode)),
        Contestant::once("nbdkit file", || served(&|folder| exports::nbdkit_file(folder, &disk))),
        Contestant::once("nbdkit null", || served(&|folder| exports::nbdkit_null(folder, DISK_BYTES))),
        Contestant::once("fio direct", direct),
    ];
    contest::run(measure, bench.scale.pairs, report, |_| Ok(()), &contestants)
}

/// A link that has just gone down leaves sets in memory, up to the budget. Only when that is used up is it the bitmap alone.
fn overflow(agents: &Agents) -> Result<()> {
    for _ in 0..OVERFLOW_RUNS_MAX {
        fio::run("write-256k-qd16", &agents.site.uri(0), 1)?;
        let group = agents.site.source.group(GROUP);
        if group["disks"][0]["dirty_bytes"].as_u64().is_some_and(|bytes| bytes > 0) {
            return Ok(());
        }
    }
    bail!("the bitmap is still empty after {OVERFLOW_RUNS_MAX} runs of writes with the link down")
}

fn ours(bench: &Bench, disk: &Path, job: &str, mode: Mode) -> Result<Outcome> {
    let folder = bench.subfolder()?;
    let mut link = Link::new(Kind::Loopback)?;
    let mut agents = Agents::prepare(folder.path(), &[disk.to_owned()], &mut link)?;
    agents.start().context("the initial synchronisation")?;
    if mode == Mode::LinkDown {
        agents.site.target.stop();
        overflow(&agents)?;
    }
    let (captured, sent) = (agents.captured_bytes()?, agents.sent_bytes()?);
    let cpu_seconds = |agents: &Agents| match mode {
        Mode::LinkDown => crate::process::cpu_seconds(agents.site.source.id()),
        Mode::Replicating => agents.cpu_seconds(),
    };
    let cpu = cpu_seconds(&agents)?;
    let watch = Watch::begin(&agents.site);
    let load = fio::run(job, &agents.site.uri(0), bench.scale.load_seconds)?;
    let samples = watch.end()?;
    let captured = agents.captured_bytes()? - captured;
    if mode == Mode::LinkDown {
        agents.site.target.start();
    }
    agents.compare([0])?;
    // What was captured during the load has all been sent by now.
    let (cpu_seconds, wire_bytes) = match mode {
        Mode::LinkDown => (None, None),
        Mode::Replicating => (Some(cpu_seconds(&agents)? - cpu), Some(agents.sent_bytes()? - sent)),
    };
    let peak_rss_bytes = Some(agents.peak_rss_bytes());
    let mut notes = agents.stop();
    let departures = watch::departures(&samples);
    if mode == Mode::Replicating && departures > 0 {
        notes.push(format!("the group left streaming {departures} times: for a while only the bitmap was kept"));
    }
    Ok(Outcome {
        fio: Some(load),
        cpu_seconds,
        content_bytes: Some(captured),
        wire_bytes,
        peak_rss_bytes,
        states: watch::states(&samples),
        notes,
        samples,
        ..Outcome::default()
    })
}
