//! Measure 12: a point of a disk comes back as a raw file, while newer changes lie on the VMDK: against a plain copy of
//! the VMDK's extent. Both files are durable at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::agents::{self, Agents, SYNC_MAX};
use crate::contest::{self, Bench, Contestant, OURS};
use crate::data::{self, Content};
use crate::fio;
use crate::link::{Kind, Link};
use crate::measures::Measure;
use crate::outcome::Outcome;
use crate::process;
use crate::report::Report;

const LABEL: &str = "restored";
/// What makes the VMDK differ from the point.
const JOB: &str = "randwrite-4k-qd1";

/// One site for all pairs: nothing changes in it.
pub fn run(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    let (disk, expected) = (bench.path("disk.img"), bench.path("expected.img"));
    // The job writes to the first GiB; a smaller disk would refuse it.
    let bytes = (bench.scale.restore_mib << 20).max(1 << 30);
    data::create(&disk, bytes, Content::Mixed, 1)?;
    let (folder, mut link) = (bench.subfolder()?, Link::new(Kind::Loopback)?);
    let mut agents = Agents::prepare(folder.path(), std::slice::from_ref(&disk), &mut link)?;
    agents.start().context("the initial synchronisation")?;
    fio::run(JOB, &agents.site.uri(0), bench.scale.load_seconds)?;
    agents.site.point(Some(LABEL));
    fs::copy(&disk, &expected)?;
    fio::run(JOB, &agents.site.uri(0), bench.scale.load_seconds)?;
    agents.compare([0])?;

    let extent = extent_of(&agents)?;
    let peer = || {
        let (folder, copy) = (bench.subfolder()?, |folder: &Path| folder.join("copy.img"));
        data::evict(&extent)?;
        let started = Instant::now();
        let mut command = process::command(None, "cp");
        command.args(["--reflink=never", "--sparse=never"]).arg(&extent).arg(copy(folder.path()));
        process::run(command, SYNC_MAX)?;
        fs::File::open(copy(folder.path()))?.sync_all()?;
        let seconds = Some(started.elapsed().as_secs_f64());
        Ok(Outcome { seconds, content_bytes: Some(bytes), ..Outcome::default() })
    };
    let ours = || {
        let folder = bench.subfolder()?;
        let restored = folder.path().join("restored.img");
        data::evict(&extent)?;
        let started = Instant::now();
        agents.site.restore_to(0, LABEL, &restored, "raw").ok();
        fs::File::open(&restored)?.sync_all()?;
        let seconds = started.elapsed().as_secs_f64();
        agents::same(&expected, "raw", &restored, "raw")?;
        Ok(Outcome { seconds: Some(seconds), content_bytes: Some(bytes), ..Outcome::default() })
    };
    let contestants = [Contestant::new("cp", peer), Contestant::new(OURS, ours)];
    contest::run(measure, bench.scale.pairs, report, |_| Ok(()), &contestants)
}

/// The file with the content of the VMDK: the largest beside its descriptor.
fn extent_of(agents: &Agents) -> Result<PathBuf> {
    let descriptor = agents.site.vmdk(0);
    let folder = descriptor.parent().context("a VMDK lies in a folder")?;
    let files = fs::read_dir(folder)?.map(|file| {
        let file = file?;
        Ok((file.metadata()?.len(), file.path()))
    });
    let files: Vec<(u64, PathBuf)> = files.collect::<Result<_>>()?;
    files.into_iter().max().map(|(_, path)| path).context("a VMDK has an extent")
}
