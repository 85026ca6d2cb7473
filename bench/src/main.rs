//! Where speed is argued: the agents beside their peers, in one run, on the same machine and the same data.
//!
//! `bench list` names the measures, `bench run NAME` (or `all`) runs pairs of peer and agents, alternating, and shows the
//! median of the pairs' ratios with their spread, as a table, as JSON lines and as one HTML page. Every run starts with
//! what it ran on and ends, where something was replicated, with a comparison of source and target. Absolute figures are
//! for orientation: `bench compare` compares ratios, and only of runs on one host. docs/benchmarks says how to read all that.

#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod agents;
mod contest;
mod data;
mod fio;
mod host;
mod interrupt;
mod link;
mod measures;
mod options;
mod outcome;
mod peers;
mod process;
mod report;
mod spread;
mod sweep;
mod trace;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Parser, Subcommand};

use contest::Bench;
use measures::{MEASURES, Measure};
use options::Options;
use report::Report;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Names the measures.
    List,
    /// Runs one measure, several (separated by commas), or all.
    Run {
        /// As `bench list` names it, or `all`.
        name: String,
        #[command(flatten)]
        options: Options,
    },
    /// Compares the ratios of two runs on one host.
    Compare {
        /// The JSON lines of the earlier run.
        before: PathBuf,
        /// Those of the later one.
        after: PathBuf,
    },
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::List => {
            for measure in MEASURES {
                println!("{:<23} {}", measure.name, measure.what);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Run { name, options } => run(&name, &options),
        Command::Compare { before, after } => report::compare(&before, &after).map(|()| ExitCode::SUCCESS),
    }
}

/// Runs all that were asked for, whatever becomes of one; the exit code says whether all came to their end.
fn run(name: &str, options: &Options) -> Result<ExitCode> {
    let chosen = choose(name)?;
    if options.pairs == 0 {
        bail!("at least one pair is needed");
    }
    interrupt::watch()?;
    let host = host::describe(&options.dir)?;
    println!("{host}\n");
    sweep::sweep(&options.dir)?;
    let mut report = Report::create(&options.output, host)?;
    let mut all_well = true;
    for measure in chosen {
        if let Err(error) = run_one(measure, options, &mut report) {
            all_well = false;
            report.failed(measure, &format!("{error:#}"))?;
        }
        if tests::wait::is_interrupted() {
            break;
        }
    }
    report.finish()?;
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn choose(names: &str) -> Result<Vec<&'static Measure>> {
    let mut chosen = Vec::new();
    for name in names.split(',') {
        let before = chosen.len();
        chosen.extend(MEASURES.iter().filter(|measure| name == "all" || measure.name == name));
        if chosen.len() == before {
            bail!("there is no measure {name:?}; `bench list` names them");
        }
    }
    Ok(chosen)
}

/// In a thread of its own: the harness of the tests panics where it can't go on, and takes everything down meanwhile.
fn run_one(measure: &'static Measure, options: &Options, report: &mut Report) -> Result<()> {
    let bench = Bench::new(&options.dir, options.scale())?;
    thread::scope(|scope| {
        let (bench, report) = (&bench, &mut *report);
        scope
            .spawn(move || (measure.run)(measure, bench, report))
            .join()
            .map_err(|panic| anyhow!("{}", said(&*panic)))?
    })
    .with_context(|| format!("measure {}", measure.name))
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic".to_owned())
}

#[cfg(test)]
mod command_line {
    use super::*;

    #[test]
    fn measures_are_chosen_by_name_and_all_of_them_at_once() {
        assert_eq!(choose("all").expect("measures").len(), MEASURES.len());
        let two = choose("restore,cpu").expect("measures");
        assert_eq!(two.iter().map(|measure| measure.name).collect::<Vec<_>>(), ["restore", "cpu"]);
        assert!(choose("restore,nothing").is_err() && choose("").is_err());
    }
}
