//! Measure 8 on a long way: 40 ms there and back, 0.1 % lost. No peer: the link's rate is what counts.

use anyhow::Result;

use crate::contest::{self, Bench, Contestant, OURS};
use crate::data::{self, Content};
use crate::link::{Kind, Link};
use crate::measures::{Measure, initial_sync};
use crate::report::Report;

/// Sends noise, so that nothing but the link limits.
pub fn run(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    let disk = bench.path("disk.img");
    data::create(&disk, bench.scale.far_mib << 20, Content::Noise, 1)?;
    let ours = || {
        let (folder, mut link) = (bench.subfolder()?, Link::new(Kind::FarAway)?);
        initial_sync::agents(folder.path(), &disk, &mut link)
    };
    contest::run(measure, bench.scale.pairs, report, |_| Ok(()), &[Contestant::new(OURS, ours)])
}
