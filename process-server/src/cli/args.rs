//! The command line as people type it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use jobs::cli::JobsArgs;

use crate::quiesce::GuardArgs;

/// Source agent of Backhaul: captures the writes of protected disks and streams them to a master-target.
#[derive(Debug, Parser)]
#[command(name = "process-server", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent until SIGTERM or SIGINT
    Run(RunArgs),
    /// Show the running agent's groups and disks
    Status(StatusArgs),
    /// Take a recovery point; returns when it is durable on the target and prints its id
    Point(PointArgs),
    /// Compare the disks of a group with the target's, while guests write; fails where they differ
    Verify(VerifyArgs),
    /// Make this agent the source of a group again whose state it lost; the agent must not run
    Claim(ClaimArgs),
    /// Freeze, hold and thaw machines for the agent; not for people
    #[command(hide = true)]
    FreezeGuard(GuardArgs),
    /// List the jobs of the agent, newest first; cancel or follow one
    Jobs(JobsArgs),
}

/// Of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Configuration file of the running agent
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Of `point`.
#[derive(Debug, Args)]
pub struct PointArgs {
    /// Configuration file of the running agent
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Replication group to take a point of
    #[arg(long, value_name = "NAME")]
    pub group: String,
    /// Name for the point, for people and for `master-target restore --point`
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Run the group's hook, so that the machines are quiesced while the point is cut
    #[arg(long)]
    pub app_consistent: bool,
}

/// Of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Configuration file of the running agent
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Replication group to verify
    #[arg(long, value_name = "NAME")]
    pub group: String,
    /// Only this disk of the group
    #[arg(long, value_name = "NAME")]
    pub disk: Option<String>,
    /// Write the source's content over what differs
    #[arg(long)]
    pub repair: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Of `claim`.
#[derive(Debug, Args)]
pub struct ClaimArgs {
    /// Configuration file of the agent
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Replication group whose target refuses this source as a copy
    #[arg(long, value_name = "NAME")]
    pub group: String,
    /// The start that the target knows, as its refusal says: this agent counts on from there
    #[arg(long, value_name = "START")]
    pub past: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn kind_of(line: &str) -> ErrorKind {
        Cli::try_parse_from(line.split(' ')).unwrap_err().kind()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_lines_of_the_contract_are_understood() {
        for line in [
            "process-server run --config f.toml",
            "process-server status --config f.toml",
            "process-server status --config f.toml --json",
            "process-server point --config f.toml --group web",
            "process-server point --config f.toml --group web --label x",
            "process-server point --config f.toml --group web --app-consistent",
            "process-server verify --config f.toml --group web",
            "process-server verify --config f.toml --group web --disk os --repair --json",
            "process-server claim --config f.toml --group web --past 57",
            "process-server jobs --config f.toml --json",
            "process-server jobs --config f.toml cancel 7",
            "process-server jobs follow 7 --config f.toml",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        assert_eq!(kind_of("process-server"), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
        assert_eq!(kind_of("process-server run"), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind_of("process-server point --config f"), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind_of("process-server verify --config f"), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind_of("process-server claim --config f --group web"), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind_of("process-server stop --config f"), ErrorKind::InvalidSubcommand);
        assert_eq!(kind_of("process-server status --config f --yaml"), ErrorKind::UnknownArgument);
        assert_eq!(kind_of("process-server run --config f --json"), ErrorKind::UnknownArgument);
    }
}
