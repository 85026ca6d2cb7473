//! Jobs: each long operation of an agent, with its state, progress, rate, error and times (A2).
//!
//! Both agents have one [`Table`]: work begins a [`Job`] in it and tells it how far it is; `answer` shows the table on
//! the control interface, `cli` is the command line of it. A job is the agent's: it goes on when the command line that
//! began it ends. It decides nothing about the work: what can be cancelled looks at its job and ends.
//!
//! The history is one small JSON file in the agent's state folder, replaced durably when a job begins or ends. There are
//! a few hundred rows at most and a few writes a day, so a database would only bring a format that nobody can read with
//! an editor.
#![forbid(unsafe_code)]

pub mod answer;
pub mod cli;
mod job;
mod rate;
mod record;
mod store;
mod table;

pub use job::{Job, Meter};
pub use record::{Cancel, Kind, Outcome, State};
pub use table::{CancelError, Clock, Now, Table};
