//! Measure 14: what the agents keep resident with 1 TiB of sparse disks, one or many, while guests write all over them.

use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use crate::agents::{Agents, SYNC_MAX};
use crate::contest::{self, Bench, Contestant, OURS};
use crate::fio;
use crate::link::{Kind, Link};
use crate::measures::Measure;
use crate::outcome::Outcome;
use crate::report::Report;
use crate::watch::{self, Watch};

const BYTES: u64 = 1 << 40;
const GIB: u64 = 1 << 30;
const JOB: &str = "randwrite-4k-sparse";
/// Disks that are compared in the end: qemu-img maps each of them whole.
const COMPARED_MAX: usize = 4;

/// One disk.
pub fn one_disk(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    run(measure, bench, report, 1)
}

/// As many as an agent may have.
pub fn many_disks(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    run(measure, bench, report, bench.scale.memory_disks)
}

fn run(measure: &Measure, bench: &Bench, report: &mut Report, count: usize) -> Result<()> {
    let ours = || {
        let (folder, mut link) = (bench.subfolder()?, Link::new(Kind::Loopback)?);
        let (mut disks, bytes) = (Vec::new(), BYTES / count as u64 / GIB * GIB);
        for index in 0..count {
            let disk = folder.path().join(format!("disk{index}.img"));
            std::fs::File::create(&disk)?.set_len(bytes)?;
            disks.push(disk);
        }
        let mut agents = Agents::prepare(folder.path(), &disks, &mut link)?;
        agents.site.start_target();
        agents.site.start_source();
        let (watch, started) = (Watch::begin(&agents.site), Instant::now());
        agents.wait_on_disk(SYNC_MAX).context("the initial synchronisation")?;
        let synced = started.elapsed().as_secs_f64();
        let iops = load(&agents, count, bench.scale.load_seconds)?;
        agents.compare(0..count.min(COMPARED_MAX))?;
        let (samples, peaks) = (watch.end()?, agents.peak_rss_bytes());
        let mut notes = agents.stop();
        notes.push(format!(
            "{count} disks of {} GiB, in step after {synced:.1} s, {iops:.0} IOPS: process-server {} MiB, master-target {} MiB",
            bytes / GIB,
            peaks[0] >> 20,
            peaks[1] >> 20
        ));
        Ok(Outcome {
            peak_rss_bytes: Some(peaks),
            states: watch::states(&samples),
            notes,
            samples,
            ..Outcome::default()
        })
    };
    contest::run(measure, 1, report, |_| Ok(()), &[Contestant::new(OURS, ours)])
}

/// One fio for each disk, all at once; the sum of their rates.
fn load(agents: &Agents, count: usize, seconds: u64) -> Result<f64> {
    let uris: Vec<String> = (0..count).map(|disk| agents.site.uri(disk)).collect();
    thread::scope(|scope| {
        let loads: Vec<_> = uris.iter().map(|uri| scope.spawn(move || fio::run(JOB, uri, seconds))).collect();
        let loads = loads.into_iter().map(|load| load.join().map_err(|_| anyhow!("a load panicked"))?);
        loads.map(|load| Ok(load?.iops)).sum()
    })
}
