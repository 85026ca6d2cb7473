//! The measures: what each compares, with whom, and what is to be reached.
//!
//! `catalogue` is the list; the other files run one kind of measure each.

mod catalogue;
mod cpu;
mod differential;
mod far;
mod guest_load;
mod initial_sync;
mod memory;
mod pgbench;
mod restore;
mod sustained;

pub use catalogue::MEASURES;

use anyhow::Result;

use crate::contest::Bench;
use crate::outcome::Figure;
use crate::report::Report;

/// What is to be reached.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Number in the table of goals.
    pub number: u32,
    /// What is compared.
    pub figure: Figure,
    /// The peer whose figure divides ours; without one ours is judged alone.
    pub against: Option<&'static str>,
    /// The ratio, or our figure.
    pub value: f64,
}

/// One measure.
#[derive(Debug)]
pub struct Measure {
    /// For `bench run`.
    pub name: &'static str,
    /// For `bench list`.
    pub what: &'static str,
    /// What is to be reached; at least one.
    pub goals: &'static [Goal],
    /// Runs it.
    pub run: fn(&Measure, &Bench, &mut Report) -> Result<()>,
}
