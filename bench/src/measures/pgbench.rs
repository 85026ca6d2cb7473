//! Measure 11: what PostgreSQL under pgbench writes, as bytes on the wire, beside zstd at level 3 over the same blocks.
//! The trace is recorded once, at the beginning, and played at its own pace in every pair.

use std::fs;

use anyhow::{Context, Result};

use crate::agents::Agents;
use crate::contest::{self, Bench, Contestant, OURS};
use crate::link::{Kind, Link};
use crate::measures::Measure;
use crate::outcome::Outcome;
use crate::report::Report;
use crate::trace;
use crate::watch::{self, Watch};

/// Records, then plays.
pub fn run(measure: &Measure, bench: &Bench, report: &mut Report) -> Result<()> {
    let (folder, base, disk) = (bench.subfolder()?, bench.path("base.img"), bench.path("disk.img"));
    // The folder above has to be passed by the database's user, too.
    fs::set_permissions(bench.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    let recorded = trace::record(folder.path(), &base, bench.scale.pgbench_seconds).context("record a trace")?;
    let content_bytes = Some(trace::bytes(&recorded));
    let peer = || {
        let wire_bytes = Some(trace::compressed(&recorded, 3)?);
        Ok(Outcome { content_bytes, wire_bytes, ..Outcome::default() })
    };
    let ours = || {
        fs::copy(&base, &disk)?;
        let (folder, mut link) = (bench.subfolder()?, Link::new(Kind::Loopback)?);
        let mut agents = Agents::prepare(folder.path(), std::slice::from_ref(&disk), &mut link)?;
        agents.start().context("the initial synchronisation")?;
        let (sent, cpu, watch) = (agents.sent_bytes()?, agents.cpu_seconds()?, Watch::begin(&agents.site));
        trace::replay(&recorded, &agents.site.disks[0].nbd, &agents.site.export(0))?;
        agents.compare([0])?;
        let (wire_bytes, cpu_seconds) = (Some(agents.sent_bytes()? - sent), Some(agents.cpu_seconds()? - cpu));
        let (samples, peak_rss_bytes) = (watch.end()?, Some(agents.peak_rss_bytes()));
        let (states, notes) = (watch::states(&samples), agents.stop());
        Ok(Outcome {
            content_bytes,
            wire_bytes,
            cpu_seconds,
            peak_rss_bytes,
            states,
            notes,
            samples,
            ..Outcome::default()
        })
    };
    let contestants = [Contestant::new("zstd -3", peer), Contestant::new(OURS, ours)];
    contest::run(measure, bench.scale.pairs, report, |_| Ok(()), &contestants)
}
