//! `jobs`, `jobs cancel ID`, `jobs follow ID`: arguments and output, the same for both agents.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use proto::control::Job;
use tonic::{Status, Streaming};

/// Arguments of `jobs`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = false)]
pub struct JobsArgs {
    /// Configuration file of the running agent
    #[arg(long, value_name = "FILE", global = true, required = false)]
    config: Option<PathBuf>,
    /// Print JSON for scripts
    #[arg(long)]
    pub json: bool,
    /// What to do; without it the jobs are listed, newest first
    #[command(subcommand)]
    pub action: Option<Action>,
}

impl JobsArgs {
    /// The configuration file; a global argument can't be a required one, so its absence shows only here.
    pub fn config(&self) -> Result<&std::path::Path, &'static str> {
        self.config.as_deref().ok_or("`jobs` needs --config FILE: the configuration of the agent whose jobs are meant")
    }
}

/// What to do with a job.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Ask a job to end
    Cancel {
        /// Number of the job
        id: u64,
    },
    /// Show a job until it has ended; fails where it does
    Follow {
        /// Number of the job
        id: u64,
    },
}

/// The jobs as a table.
#[must_use]
pub fn table(jobs: &[Job]) -> String {
    if jobs.is_empty() {
        return "no jobs yet\n".to_owned();
    }
    let mut text = format!(
        "{:>5}  {:<12}  {:<12}  {:<11}  {:<19}  {:>9}  {}\n",
        "ID", "GROUP", "KIND", "STATE", "BEGAN", "FOR", "WHAT"
    );
    for job in jobs {
        let began = job.began.get(..19).unwrap_or(&job.began);
        let _ = writeln!(
            text,
            "{:>5}  {:<12}  {:<12}  {:<11}  {began:<19}  {:>9}  {}",
            job.id,
            job.group.as_deref().unwrap_or("-"),
            job.kind,
            job.state,
            seconds(job.seconds),
            what(job),
        );
    }
    text
}

/// One line about a job.
#[must_use]
pub fn line(job: &Job) -> String {
    let group = job.group.as_ref().map(|group| format!(" of group {group}")).unwrap_or_default();
    format!("job {}: {}{group}: {}: {}", job.id, job.kind, job.state, what(job))
}

/// What there is to say of its end, or of its progress.
fn what(job: &Job) -> String {
    if let Some(text) = job.error.as_ref().or(job.result.as_ref()) {
        return text.clone();
    }
    if job.total_bytes == 0 {
        return job.step.clone();
    }
    let percent = u128::from(job.done_bytes) * 100 / u128::from(job.total_bytes);
    let mut text = format!("{}: {percent}% of {}", job.step, amount(job.total_bytes));
    if let Some(rate) = job.rate_bytes_per_second {
        let _ = write!(text, ", {}/s", amount(rate));
    }
    if let Some(left) = job.remaining_seconds {
        let _ = write!(text, ", {} left", seconds(left));
    }
    text
}

/// Shows a job on standard error until it has ended; its last state.
pub async fn follow(mut stream: Streaming<Job>) -> Result<Option<Job>, Status> {
    let mut last: Option<Job> = None;
    while let Some(job) = stream.message().await? {
        let is_news = last.as_ref().is_none_or(|last| is_worth_a_line(last, &job));
        if is_news && job.state == "running" {
            eprintln!("{}", line(&job));
        }
        if is_news || job.state != "running" {
            last = Some(job);
        }
    }
    Ok(last.filter(|job| job.state != "running"))
}

/// A new step, or a further tenth of it.
fn is_worth_a_line(last: &Job, job: &Job) -> bool {
    let tenth = |job: &Job| u128::from(job.done_bytes) * 10 / u128::from(job.total_bytes.max(1));
    last.step != job.step || last.total_bytes != job.total_bytes || tenth(job) > tenth(last)
}

/// Says which job does the work of a command, so that it can be followed and cancelled.
pub fn announce(program: &str, id: u64) {
    if id > 0 {
        eprintln!("job {id}: it goes on when this command is interrupted; `{program} jobs cancel {id}` ends it");
    }
}

fn amount(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        jobs: JobsArgs,
    }

    #[test]
    fn the_lines_of_the_contract_parse_with_the_configuration_before_or_behind() {
        for line in ["x --config f", "x --config f --json", "x --config f cancel 7", "x follow 7 --config f"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(cli.jobs.config().is_ok(), "{line}");
        }
        assert!(Cli::try_parse_from(["x", "cancel", "--config", "f"]).is_err());
        assert!(Cli::try_parse_from(["x", "cancel", "seven", "--config", "f"]).is_err());
        assert!(Cli::try_parse_from(["x"]).unwrap().jobs.config().unwrap_err().contains("--config"));
    }

    #[test]
    fn a_table_says_progress_result_or_error() {
        let job = Job {
            id: 7,
            group: Some("web".into()),
            kind: "restore".into(),
            state: "running".into(),
            step: "restoring os".into(),
            done_bytes: 1 << 20,
            total_bytes: 4 << 20,
            rate_bytes_per_second: Some(1 << 20),
            remaining_seconds: Some(3.0),
            began: "2026-11-23T10:00:00.000000Z".into(),
            ..Job::default()
        };
        let text = table(std::slice::from_ref(&job));
        assert!(text.contains("restoring os: 25% of 4.0 MiB, 1.0 MiB/s, 3.0 s left"), "{text}");
        let failed = Job { state: "failed".into(), error: Some("no room".into()), ..job };
        assert_eq!(line(&failed), "job 7: restore of group web: failed: no room");
        assert_eq!(table(&[]), "no jobs yet\n");
    }
}
