//! From the process's arguments to its exit code.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use proto::ids::GroupName;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::args::{ClaimArgs, Cli, Command, PointArgs, RunArgs, StatusArgs, VerifyArgs};
use super::error::{CliError, RunError};
use super::run::{SpawnGroup, run, state_dir};
use super::{client, jobs, table, verify};
use crate::config;
use crate::quiesce::run_guard;

/// What the command line needs of the way in which writes are captured.
#[derive(Debug, Clone, Copy)]
pub struct Capture {
    /// Starts the thread of one group, for `run`.
    pub spawn_group: SpawnGroup,
    /// Lets a group count on from a start that its target knows, for `claim`: the group, its state folder, that start.
    pub claim: fn(&GroupName, &Path, u64) -> Result<(), String>,
}

/// Runs the agent's command line.
pub fn main(capture: Capture) -> ExitCode {
    // Wrong usage ends here, with clap's own message and exit code 2.
    let result = match Cli::parse().command {
        Command::FreezeGuard(args) => return run_guard(&args),
        Command::Run(args) => run_agent(&args, capture.spawn_group),
        Command::Claim(args) => claim(&args, capture),
        Command::Status(args) => status(&args),
        Command::Point(args) => point(args),
        Command::Verify(args) => verify(args),
        Command::Jobs(args) => {
            runtime().map_err(Into::into).and_then(|runtime| print(&runtime.block_on(jobs::run(&args))?))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // When standard error is closed there is nobody left to tell.
            _ = writeln!(std::io::stderr(), "process-server: {}", one_line(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn run_agent(args: &RunArgs, spawn_group: SpawnGroup) -> Result<(), CliError> {
    let config = config::load_for_run(&args.config)?;
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    let runtime = runtime()?;
    let result = runtime.block_on(run(config, spawn_group));
    // A worker that is still encoding for a connection that is gone must not hold the process up.
    runtime.shutdown_background();
    Ok(result?)
}

fn claim(args: &ClaimArgs, capture: Capture) -> Result<(), CliError> {
    let config = config::load(&args.config)?;
    let group = config.groups.iter().find(|group| group.name.as_str() == args.group);
    let group = group.ok_or_else(|| CliError::NoGroup { group: args.group.clone(), file: args.config.clone() })?;
    (capture.claim)(&group.name, &state_dir(&config, group), args.past).map_err(CliError::Agent)?;
    print(&format!(
        "group \"{}\" counts on after start {}: start the agent; everything is compared with the target\n",
        group.name, args.past
    ))
}

fn status(args: &StatusArgs) -> Result<(), CliError> {
    let config = config::load(&args.config)?;
    let status = runtime()?.block_on(client::status(&config.control))?;
    print(&if args.json { client::to_json(&status)? } else { table::render(&status) })
}

fn point(args: PointArgs) -> Result<(), CliError> {
    let config = config::load(&args.config)?;
    let id = runtime()?.block_on(client::point(&config.control, args))?;
    print(&format!("{id}\n"))
}

fn verify(args: VerifyArgs) -> Result<(), CliError> {
    let config = config::load(&args.config)?;
    let report = runtime()?.block_on(verify::run(&config.control, &args))?;
    print(&if args.json { client::to_json(&report)? } else { verify::render(&report) })?;
    verify::judge(&report)
}

fn runtime() -> Result<Runtime, RunError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // The threads of the groups are not of the runtime: what a guest waits for goes first.
    builder.enable_all().thread_name("async").on_thread_start(blockio::priority::step_back);
    builder.build().map_err(RunError::Runtime)
}

fn print(text: &str) -> Result<(), CliError> {
    std::io::stdout().write_all(text.as_bytes()).map_err(CliError::Output)
}

/// Errors of lower layers may bring line breaks along; a script reads one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
