//! Both agents in one deterministic process: the source's group core with its marks, the target's journal, apply,
//! sessions, failback and point reader, on simulated disks, with a simulated link and guest.
//!
//! A seed gives everything. `world` takes one step after the other; `source`, `target`, `link`, `failback`, `faults` and
//! `verify` carry out and inject, `settle` ends, `history`, `judge` and `rot` judge, `log` and `trace` keep what a failure has to say.
//! docs/simulation.md says what is simulated, what is judged, and what is not.

mod failback;
mod faults;
mod history;
mod judge;
mod link;
pub mod log;
mod rot;
mod settle;
mod source;
mod target;
pub mod trace;
mod verify;
mod world;

use std::panic::AssertUnwindSafe;

use world::World;

/// Steps with faults.
const STEPS: u32 = 900;

/// What a run came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Played {
    /// Points that were judged.
    pub points: u64,
    /// Lives of the source.
    pub lives: u64,
    /// Verifications that ended.
    pub verified: u64,
    /// Failbacks that ended.
    pub failbacks: u64,
    /// Sectors that rotted.
    pub rotted: u64,
    /// Blocks that points refused for that.
    pub refused: u64,
    /// Differs wherever two runs differ.
    pub trace: u64,
}

/// Plays a seed to its end.
///
/// # Panics
/// Where a judge finds something.
#[must_use]
pub fn play(seed: u64) -> Played {
    trace::begin();
    drop(log::take());
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
    world.played()
}

/// Plays a seed; a failure is told with its last steps and the command that plays it again.
///
/// # Errors
/// What the judge found.
pub fn try_play(seed: u64) -> Result<Played, String> {
    std::panic::catch_unwind(AssertUnwindSafe(|| play(seed))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        format!("seed {seed}: {text}\nlast steps:\n{}replay: make sim SEED={seed}", trace::tail())
    })
}
