//! How a measure is run: contestants one after the other on the same data, in pairs, in alternating order.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::measures::Measure;
use crate::options::Scale;
use crate::outcome::Outcome;
use crate::process;
use crate::report::Report;

/// What the agents are called in results.
pub const OURS: &str = "backhaul";

/// A folder to work in, and how much to do.
#[derive(Debug)]
pub struct Bench {
    folder: TempDir,
    /// Sizes and durations.
    pub scale: Scale,
}

impl Bench {
    /// A new one inside `dir`.
    pub fn new(dir: &std::path::Path, scale: Scale) -> Result<Self> {
        let prefix = format!("{}{}-", crate::sweep::PREFIX, std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(dir);
        Ok(Self { folder: folder.with_context(|| format!("a folder in {}", dir.display()))?, scale })
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder in it that goes away when it is dropped.
    pub fn subfolder(&self) -> Result<TempDir> {
        Ok(tempfile::tempdir_in(self.folder.path())?)
    }
}

/// Who takes part.
pub struct Contestant<'a> {
    /// As goals name it.
    pub name: &'static str,
    /// Whether it runs in every pair; others run once, for orientation.
    pub always: bool,
    /// One run.
    pub run: Box<dyn Fn() -> Result<Outcome> + 'a>,
}

impl<'a> Contestant<'a> {
    /// One that runs in every pair.
    pub fn new(name: &'static str, run: impl Fn() -> Result<Outcome> + 'a) -> Self {
        Self { name, always: true, run: Box::new(run) }
    }

    /// One that runs once.
    pub fn once(name: &'static str, run: impl Fn() -> Result<Outcome> + 'a) -> Self {
        Self { name, always: false, run: Box::new(run) }
    }
}

/// Runs the pairs and judges them. `before` comes before each pair.
pub fn run(
    measure: &Measure,
    pairs: usize,
    report: &mut Report,
    mut before: impl FnMut(usize) -> Result<()>,
    contestants: &[Contestant<'_>],
) -> Result<()> {
    for pair in 1..=pairs {
        before(pair)?;
        let mut order: Vec<&Contestant<'_>> = contestants.iter().filter(|one| one.always || pair == 1).collect();
        if pair % 2 == 0 {
            order.reverse();
        }
        for contestant in order {
            process::check_interrupt()?;
            let outcome = (contestant.run)().with_context(|| format!("{} in pair {pair}", contestant.name))?;
            report.run(measure, pair, contestant.name, outcome)?;
        }
    }
    report.judge(measure)
}
