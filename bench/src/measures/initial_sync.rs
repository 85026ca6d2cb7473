//! Measures 6, 7 and 8: how fast a whole disk gets to the other side and onto its disk, on a link that is as fast as it
//! goes or shaped, and how much of a shaped link is used.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::agents::{Agents, SYNC_MAX};
use crate::contest::{self, Bench, Contestant, OURS};
use crate::data::{self, Content};
use crate::link::{Kind, Link};
use crate::measures::Measure;
use crate::outcome::Outcome;
use crate::peers::{nbdcopy, rsync, zstd_pipe};
use crate::report::Report;
use crate::watch::{self, Watch};

/// Measure 6.
pub fn loopback(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    run(measure, bench, report, Kind::Loopback, bench.scale.sync_mib)
}

/// Measures 7 and 8 at 1 Gbit/s.
pub fn gbit(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    run(measure, bench, report, Kind::Gbit, bench.scale.gbit_mib)
}

/// Measures 7 and 8 at 100 Mbit/s.
pub fn mbit100(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    run(measure, bench, report, Kind::Mbit100, bench.scale.mbit100_mib)
}

fn run(measure: &Measure, bench: &Bench, report: &mut Report, kind: Kind, mib: u64) -> Result<()> {
    let disk = bench.path("disk.img");
    data::create(&disk, mib << 20, Content::Mixed, 1)?;
    let peer = |copy: &dyn Fn(&Path, &Link) -> Result<Outcome>| -> Result<Outcome> {
        let (folder, link) = (bench.subfolder()?, Link::new(kind)?);
        data::evict(&disk)?;
        copy(folder.path(), &link)
    };
    let rsync = |folder: &Path, link: &Link| {
        let copy = folder.join("copy.img");
        rsync::run(folder, &disk, &copy, rsync::How::WholeCompressed, link, SYNC_MAX)
    };
    let ours = || {
        let (folder, mut link) = (bench.subfolder()?, Link::new(kind)?);
        data::evict(&disk)?;
        agents(folder.path(), &disk, &mut link)
    };
    let mut contestants = vec![
        Contestant::new("nbdcopy", || peer(&|folder, link| nbdcopy::run(folder, &disk, link, SYNC_MAX))),
        Contestant::new(OURS, ours),
        Contestant::once("zstd pipe", || peer(&|folder, link| zstd_pipe::run(folder, &disk, link, SYNC_MAX))),
    ];
    let with_rsync = || peer(&rsync);
    contestants.insert(
        1,
        match kind {
            Kind::Loopback => Contestant::once("rsync", with_rsync),
            Kind::Gbit | Kind::Mbit100 | Kind::FarAway => Contestant::new("rsync", with_rsync),
        },
    );
    contest::run(measure, bench.scale.pairs, report, |_| Ok(()), &contestants)
}

/// One initial synchronisation, from the start of the source to everything on the target's disk; then the comparison.
pub fn agents(folder: &Path, disk: &Path, link: &mut Link) -> Result<Outcome> {
    agents_over(folder, disk, None, link)
}

/// The same over VMDKs that were there before, in the folder `before`: they are in the site meanwhile, and back after it.
pub fn agents_over(folder: &Path, disk: &Path, before: Option<&Path>, link: &mut Link) -> Result<Outcome> {
    let mut agents = Agents::prepare(folder, &[disk.to_owned()], link)?;
    let datastore = agents.site.path().join("datastore/web");
    if let Some(before) = before {
        for file in fs::read_dir(before)? {
            let file = file?.path();
            data::evict(&file)?;
            fs::rename(&file, datastore.join(file.file_name().unwrap_or_default()))?;
        }
    }
    agents.site.start_target();
    let (link_sent, target_cpu) = (link.sent_bytes(), crate::process::cpu_seconds(agents.site.target.id())?);
    let watch = Watch::begin(&agents.site);
    let started = Instant::now();
    agents.site.start_source();
    agents.wait_on_disk(SYNC_MAX).context("the initial synchronisation")?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu_seconds = Some(agents.cpu_seconds()? - target_cpu);
    let link_bytes = link.sent_bytes().zip(link_sent).map(|(now, then)| now - then);
    let wire_bytes = Some(link_bytes.map_or_else(|| agents.sent_bytes(), Ok)?);
    let samples = watch.end()?;
    agents.compare([0])?;
    let peak_rss_bytes = Some(agents.peak_rss_bytes());
    let bytes = disk.metadata()?.len();
    // The site goes with the agents.
    let site = before.map(|before| (before, datastore));
    agents.halt();
    if let Some((before, datastore)) = site {
        for file in fs::read_dir(datastore)? {
            let file = file?.path();
            fs::rename(&file, before.join(file.file_name().unwrap_or_default()))?;
        }
    }
    let notes = agents.alarms();
    Ok(Outcome {
        seconds: Some(seconds),
        cpu_seconds,
        content_bytes: Some(bytes),
        wire_bytes,
        link_use: link.share(wire_bytes, seconds),
        peak_rss_bytes,
        states: watch::states(&samples),
        notes,
        samples,
        ..Outcome::default()
    })
}
