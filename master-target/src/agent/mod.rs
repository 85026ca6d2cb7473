//! The agent as a whole: `clock` (the one place that reads it), `registry` (groups and peers), `run` (start and stop).

mod clock;
mod registry;
mod run;

pub use clock::Clock;
pub use registry::{Agent, Member};
pub use run::{RunError, run};
