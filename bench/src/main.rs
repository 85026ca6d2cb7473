//! Where speed is argued: the agents beside their peers, in one run, on the same machine and the same file.
//!
//! `bench list` names the measures, `bench run NAME` (or `all`) runs pairs of peer and agent, alternating, and prints the
//! median of the pairs' ratios with their spread. Every run starts with what it ran on and ends, where something was
//! replicated, with a comparison of source and target. Absolute figures are for orientation: they are not compared
//! across runs.

#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod fio;
mod host;
mod measure;
mod report;
mod servers;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use measure::{MEASURES, Measure};

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
    /// Runs one measure, or all.
    Run {
        /// As `bench list` names it, or `all`.
        name: String,
        #[command(flatten)]
        options: Options,
    },
}

/// How to run.
#[derive(clap::Args)]
struct Options {
    /// Pairs of peer and agent.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Seconds of load in each run, after one second to settle.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Size of the disk in MiB; at least 1024, the range that the jobs use.
    #[arg(long, default_value_t = 1024)]
    disk_mib: u64,
    /// A folder on the file system to measure on; needs four times the disk.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// The agents' binaries; default: those beside this program.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Where the JSON lines go.
    #[arg(long, default_value = "target/bench.jsonl")]
    output: PathBuf,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::List => {
            for measure in MEASURES {
                println!("{:<28} {}", measure.name, measure.what);
            }
            Ok(())
        }
        Command::Run { name, options } => run(&name, &options),
    }
}

fn run(name: &str, options: &Options) -> Result<()> {
    let chosen: Vec<&Measure> = MEASURES.iter().filter(|measure| name == "all" || measure.name == name).collect();
    if chosen.is_empty() {
        bail!("there is no measure {name:?}; `bench list` names them");
    }
    if options.pairs == 0 || options.disk_mib < 1024 {
        bail!("at least one pair and a disk of 1024 MiB are needed");
    }
    let bin = match &options.bin {
        Some(bin) => bin.clone(),
        None => std::env::current_exe()?.parent().context("a program lies in a folder")?.to_owned(),
    };
    let host = host::describe(&options.dir)?;
    println!("{host}");
    let mut report = report::Report::create(&options.output, &host)?;
    for measure in chosen {
        measure::run(measure, options, &bin, &mut report).with_context(|| format!("measure {}", measure.name))?;
    }
    report.print();
    Ok(())
}
