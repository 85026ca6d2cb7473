//! Measure 13: CPU time of all processes for each GiB that is replicated, from the first byte to the last on the disk.

use anyhow::Result;

use crate::agents::SYNC_MAX;
use crate::contest::{self, Bench, Contestant, OURS};
use crate::data::{self, Content};
use crate::link::{Kind, Link};
use crate::measures::{Measure, initial_sync};
use crate::peers::mirror;
use crate::report::Report;

/// Copies noise: with data that compresses the agents do more, on purpose.
pub fn run(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    let disk = bench.path("disk.img");
    data::create(&disk, bench.scale.cpu_mib << 20, Content::Noise, 1)?;
    let peer = || {
        let (folder, link) = (bench.subfolder()?, Link::new(Kind::Loopback)?);
        data::evict(&disk)?;
        mirror::run(folder.path(), &disk, &link, SYNC_MAX)
    };
    let ours = || {
        let (folder, mut link) = (bench.subfolder()?, Link::new(Kind::Loopback)?);
        data::evict(&disk)?;
        initial_sync::agents(folder.path(), &disk, &mut link)
    };
    let contestants = [Contestant::new("qemu mirror", peer), Contestant::new(OURS, ours)];
    contest::run(measure, bench.scale.pairs, report, |_| Ok(()), &contestants)
}
