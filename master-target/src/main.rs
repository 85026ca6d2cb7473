//! `master-target`: the target agent and its command line.
//!
//! Exit codes: 0 done, 1 failed with one line on standard error, 2 wrong usage.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use master_target::agent;
use master_target::cli::{Cli, Command, commands, failback, jobs};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long blocking work may go on after the agent has stopped.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    blockio::memory::keep_freed();
    let cli = Cli::parse();
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("master-target: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Pki(args) => {
            let files = proto::pki::generate(&args.dir, &args.process_server, &args.master_target, &args.sans)?;
            for file in files {
                println!("{}", file.display());
            }
            Ok(())
        }
        Command::Check(args) => Ok(commands::check(&args)?),
        Command::Run(args) => {
            start_log();
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            // No guest's write waits for this agent; where both run on one host, guests go first.
            let runtime = builder.enable_all().on_thread_start(blockio::priority::step_back).build()?;
            let done = runtime.block_on(async { Ok(agent::run(&args.config, stop_signal()?).await?) });
            // Blocking work that is still under way (checksums of a failback) is done again after the next start.
            runtime.shutdown_timeout(STOP_TIME_MAX);
            done
        }
        Command::Status(args) => ask(commands::status(&args)),
        Command::Points(args) => ask(commands::points(&args)),
        Command::Pin(args) => ask(commands::pin(&args, false)),
        Command::Unpin(args) => ask(commands::pin(&args, true)),
        Command::Restore(args) => ask(commands::restore(&args)),
        Command::Mount(args) => ask(commands::mount(&args)),
        Command::Unmount(args) => ask(commands::unmount(&args)),
        Command::Scrub(args) => ask(commands::scrub(&args)),
        Command::Failback(args) => ask(failback::failback(&args)),
        Command::Commit(args) => ask(failback::commit(&args)),
        Command::Reprotect(args) => ask(failback::reprotect(&args)),
        Command::Jobs(args) => ask(jobs::jobs(&args)),
    }
}

fn ask(command: impl Future<Output = Result<(), master_target::cli::CommandError>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(command)?)
}

fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
}

/// Completes on SIGTERM or SIGINT.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
