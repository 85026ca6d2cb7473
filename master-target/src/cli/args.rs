//! The command line: names and meanings of the arguments, nothing else.
//!
//! clap prints usage errors itself and ends with exit code 2.

use clap::{Args, Parser, Subcommand, ValueEnum};
use jobs::cli::JobsArgs;
use proto::config::{ByteSize, NbdAddress};
use std::path::PathBuf;

/// Target agent of Backhaul: journals change sets, writes them to VMDKs, recovers any point.
#[derive(Debug, Parser)]
#[command(name = "master-target", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a certificate authority and a key pair for each agent; never overwrites.
    Pki(PkiArgs),
    /// Check what would make a failback fail, and which volumes can hold journals; the agent need not run.
    Check(StatusArgs),
    /// Run the agent until SIGTERM or SIGINT.
    Run(ConfigArgs),
    /// Show the state of every group.
    Status(StatusArgs),
    /// List the recovery points of a group, oldest first.
    Points(PointsArgs),
    /// Keep a point whatever retention says; prints its id.
    Pin(PinArgs),
    /// Let a pinned point go the way of all others; prints its id.
    Unpin(PinArgs),
    /// Write one disk as it was at a point into a new file, while replication goes on.
    Restore(RestoreArgs),
    /// Export the disks of a group as they were at a point over NBD, at once, while replication goes on.
    Mount(MountArgs),
    /// End a mount, or all of them.
    Unmount(UnmountArgs),
    /// Read whole journals and check every byte, while replication goes on; fails where anything is damaged.
    Scrub(ScrubArgs),
    /// Put a point on the disks of a group and hand them over; repeat it with another --point to change the choice.
    Failback(FailbackArgs),
    /// Make the choice of a failback final: its points are discarded, unless they are kept.
    Commit(CommitArgs),
    /// Protect a group again that was failed back: its source may write again, and is compared.
    Reprotect(ReprotectArgs),
    /// List the jobs of the agent, newest first; cancel or follow one.
    Jobs(JobsArgs),
}

/// Arguments of `pki`.
#[derive(Debug, Args)]
pub struct PkiArgs {
    /// Folder for the files; made if missing.
    #[arg(long)]
    pub dir: PathBuf,
    /// Name of the process-server, and of its files.
    #[arg(long)]
    pub process_server: String,
    /// Name of the master-target, and of its files.
    #[arg(long)]
    pub master_target: String,
    /// A further host name or address for the certificates; may be repeated.
    #[arg(long = "san", value_name = "HOST_OR_IP")]
    pub sans: Vec<String>,
}

/// The configuration file.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Configuration of the agent (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Arguments of `status` and `check`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    /// Which agent.
    pub config: ConfigArgs,
    /// Print JSON for scripts.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `points`.
#[derive(Debug, Args)]
pub struct PointsArgs {
    #[command(flatten)]
    /// Which agent.
    pub config: ConfigArgs,
    /// Name of the group.
    #[arg(long)]
    pub group: String,
    /// Print JSON for scripts.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `pin` and `unpin`.
#[derive(Debug, Args)]
pub struct PinArgs {
    #[command(flatten)]
    /// Which agent.
    pub config: ConfigArgs,
    /// Name of the group.
    #[arg(long)]
    pub group: String,
    /// `latest`, a point's id, a label, or an RFC 3339 time (the newest point not after it).
    #[arg(long)]
    pub point: String,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    /// Which agent.
    pub config: ConfigArgs,
    /// Name of the group; may be left out where only one group has the disk.
    #[arg(long)]
    pub group: Option<String>,
    /// Name of the disk.
    #[arg(long)]
    pub disk: String,
    /// `latest`, a point's id, a label, or an RFC 3339 time (the newest point not after it).
    #[arg(long)]
    pub point: String,
    /// File to write; must not exist.
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// Format of the file.
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    pub format: Format,
}

/// Format of a restored file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The bytes of the disk, sparse.
    Raw,
    /// A monolithicFlat VMDK.
    Vmdk,
    /// A compressed VMDK in one file, for transport.
    #[value(name = "streamOptimized")]
    StreamOptimized,
}

impl Format {
    /// The word on the control interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vmdk => "vmdk",
            Self::StreamOptimized => "streamOptimized",
        }
    }
}

/// Arguments of `mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    #[command(flatten)]
    /// Which agent.
    pub config: ConfigArgs,
    /// Name of the group.
    #[arg(long)]
    pub group: String,
    /// Name of a disk, to export it alone; it is the default export then.
    #[arg(long)]
    pub disk: Option<String>,
    /// `latest`, a point's id, a label, or an RFC 3339 time (the newest point not after it).
    #[arg(long)]
    pub point: String,
    /// Where clients connect: `unix:/PATH` or `tcp:HOST:PORT`; beyond loopback only with [nbd_tls].
    #[arg(long)]
    pub nbd: NbdAddress,
    /// Let clients write. What they write is thrown away with the mount.
    #[arg(long)]
    pub writable: bool,
    /// Most that clients may write, such as 10GiB; 4GiB where it is left out.
    #[arg(long, requires = "writable")]
    pub quota: Option<ByteSize>,
    /// Print JSON for scripts.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `unmount`.
#[derive(Debug, Args)]
pub struct UnmountArgs {
    #[command(flatten)]
    /// Which agent.
    pub config: ConfigArgs,
    /// Name of the mount, as `mount` printed it and `status` lists it.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub id: Option<String>,
    /// End all mounts of all groups.
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `scrub`.
#[derive(Debug, Args)]
pub struct ScrubArgs {
    #[command(flatten)]
    /// Which agent.
    pub config: ConfigArgs,
    /// Name of the group; all groups where it is left out.
    #[arg(long)]
    pub group: Option<String>,
    /// Print the report as JSON for scripts.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `failback`.
#[derive(Debug, Args)]
pub struct FailbackArgs {
    #[command(flatten)]
    /// Which agent.
    pub config: ConfigArgs,
    /// Name of the group.
    #[arg(long)]
    pub group: String,
    /// `latest` (default), a point's id, a label, or an RFC 3339 time (the newest point not after it).
    #[arg(long)]
    pub point: Option<String>,
    /// The source is gone: what it has not sent yet is lost. It is fenced when it comes back.
    #[arg(long)]
    pub without_source: bool,
    /// Only say what it would take: nothing is changed, and nobody is fenced.
    #[arg(long, conflicts_with = "without_source")]
    pub dry_run: bool,
    /// End the failback that is under way, before its disks are handed over: the source may write again.
    #[arg(long, conflicts_with_all = ["point", "without_source", "dry_run", "json"])]
    pub cancel: bool,
    /// Print the report as JSON for scripts.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `commit`.
#[derive(Debug, Args)]
pub struct CommitArgs {
    #[command(flatten)]
    /// Which agent.
    pub config: ConfigArgs,
    /// Name of the group.
    #[arg(long)]
    pub group: String,
    /// Keep the recovery points.
    #[arg(long)]
    pub keep_points: bool,
    /// Don't ask.
    #[arg(long)]
    pub yes: bool,
    /// Print the report as JSON for scripts.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `reprotect`.
#[derive(Debug, Args)]
pub struct ReprotectArgs {
    #[command(flatten)]
    /// Which agent.
    pub config: ConfigArgs,
    /// Name of the group.
    #[arg(long)]
    pub group: String,
    /// Give up all recovery points: needed where a machine has written the disks since they were handed over.
    #[arg(long)]
    pub discard_points: bool,
    /// Print the report as JSON for scripts.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_contract_parses() {
        for line in [
            "master-target pki --dir d --process-server ps-1 --master-target mt-1 --san a --san 10.0.0.1",
            "master-target run --config f",
            "master-target check --config f --json",
            "master-target status --config f --json",
            "master-target points --config f --group web --json",
            "master-target restore --config f --group web --disk os --point latest --to x --format vmdk",
            "master-target restore --config f --disk os --point latest --to x.vmdk --format streamOptimized",
            "master-target restore --config f --disk os --point 2026-11-23T10:00:00Z --to x",
            "master-target mount --config f --group web --point latest --nbd unix:/run/m.sock",
            "master-target mount --config f --group web --disk os --point 7 --nbd tcp:127.0.0.1:10809 --writable --quota 4GiB",
            "master-target unmount --config f web-1",
            "master-target unmount --config f --all",
            "master-target scrub --config f --group web --json",
            "master-target scrub --config f",
            "master-target failback --config f --group web --point 12 --without-source --json",
            "master-target failback --config f --group web --point 12 --dry-run --json",
            "master-target failback --config f --group web --cancel",
            "master-target commit --config f --group web --keep-points --yes --json",
            "master-target reprotect --config f --group web --discard-points --json",
            "master-target jobs --config f --json",
            "master-target jobs cancel 7 --config f",
            "master-target jobs --config f follow 7",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn wrong_usage_ends_with_exit_code_two() {
        for line in [
            "master-target",
            "master-target points --config f",
            "master-target restore --config f --disk os --point 1 --to x --format qcow2",
            "master-target status --config f --verbose",
            "master-target failback --config f --group web --cancel --point 3",
            "master-target failback --config f --group web --dry-run --without-source",
            "master-target jobs --config f cancel",
            "master-target commit --config f",
            "master-target mount --config f --group web --point latest",
            "master-target mount --config f --group web --point latest --nbd /run/m.sock",
            "master-target mount --config f --group web --point latest --nbd unix:/m --quota 1GiB",
            "master-target unmount --config f",
            "master-target unmount --config f web-1 --all",
        ] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
