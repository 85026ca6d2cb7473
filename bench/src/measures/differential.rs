//! Measure 9: a target that was there before, of which 1 % differs. The agents compare by digest, rsync by its rolling
//! checksums; both have to read everything on both sides.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::agents::{Agents, SYNC_MAX};
use crate::contest::{self, Bench, Contestant, OURS};
use crate::data::{self, Content};
use crate::link::{Kind, Link};
use crate::measures::{Measure, initial_sync};
use crate::peers::rsync::{self, How};
use crate::report::Report;

const CHANGED_PERMILLE: u64 = 10;

/// Changes the disk before each pair; both sides catch up with the same change.
pub fn run(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    let (disk, copy, vmdks) = (bench.path("disk.img"), bench.path("copy.img"), bench.path("vmdks"));
    data::create(&disk, bench.scale.differential_mib << 20, Content::Mixed, 1)?;
    fs::copy(&disk, &copy)?;
    first_copy(bench, &disk, &vmdks)?;
    let peer = || {
        let (folder, link) = (bench.subfolder()?, Link::new(Kind::Gbit)?);
        data::evict(&disk)?;
        data::evict(&copy)?;
        rsync::run(folder.path(), &disk, &copy, How::InPlace, &link, SYNC_MAX)
    };
    let ours = || {
        let (folder, mut link) = (bench.subfolder()?, Link::new(Kind::Gbit)?);
        data::evict(&disk)?;
        initial_sync::agents_over(folder.path(), &disk, Some(&vmdks), &mut link)
    };
    let contestants = [Contestant::new("rsync", peer), Contestant::new(OURS, ours)];
    let change = |pair| data::change(&disk, CHANGED_PERMILLE, pair as u64 + 100).map(drop);
    contest::run(measure, bench.scale.pairs, report, change, &contestants)
}

/// The target's disks as a first synchronisation leaves them.
fn first_copy(bench: &Bench, disk: &Path, vmdks: &Path) -> Result<()> {
    let (folder, mut link) = (bench.subfolder()?, Link::new(Kind::Loopback)?);
    let mut agents = Agents::prepare(folder.path(), &[disk.to_owned()], &mut link)?;
    agents.start().context("the first synchronisation")?;
    let made = agents.site.path().join("datastore/web");
    agents.site.source.stop();
    agents.site.target.stop();
    fs::rename(made, vmdks)?;
    Ok(())
}
