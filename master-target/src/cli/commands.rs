//! The commands that ask a running agent: each is one call on the control socket, printed for people or as JSON.
//!
//! Results go to standard output, progress to standard error. Errors return to `main`, which prints one line.

use std::path::{Path, PathBuf};

use proto::control::master_target_client::MasterTargetClient;
use proto::control::{
    MountRequest, PinRequest, PointsRequest, RestoreRequest, ScrubRequest, StatusRequest, UnmountRequest,
};
use serde::Serialize;
use tonic::transport::Channel;

use super::args::{MountArgs, PinArgs, PointsArgs, RestoreArgs, ScrubArgs, StatusArgs, UnmountArgs};
use super::progress::Progress;
use super::tables;
use crate::amount::amount;
use crate::check::{MachineFiles, Preflight};
use crate::config::Config;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] proto::config::ConfigError),
    /// The agent does not answer on its control socket.
    #[error(transparent)]
    Unreachable(#[from] proto::uds::UdsError),
    /// The agent refused, or failed at it.
    #[error("{0}")]
    Agent(String),
    /// The disk named is not that of one group.
    #[error("{0}")]
    Disk(String),
    /// The connection to the agent ended before its answer.
    #[error("the agent stopped before it was done; see its log, then run the command again")]
    Interrupted,
    /// A scrub found damage.
    #[error(
        "{0} damaged: keep a copy of what the points it spoils can still give (`master-target restore`), and check the disk \
         under the retention volume"
    )]
    Damaged(String),
    /// Nobody confirmed.
    #[error("{0}")]
    Unconfirmed(String),
    /// A preflight found what would make a failback fail.
    #[error("{0} of the checks failed: do what stands behind \"->\" (`remedy` in JSON), then check again")]
    Preflight(usize),
    /// The path of the file to write can't be made absolute.
    #[error("{path}: {source}", path = path.display())]
    Path {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The answer could not be printed.
    #[error("printing JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl From<tonic::Status> for CommandError {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            tonic::Code::Unavailable | tonic::Code::Cancelled => Self::Interrupted,
            _ => Self::Agent(status.message().to_owned()),
        }
    }
}

/// `check`: works without a running agent, and beside one.
pub fn check(args: &StatusArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.config)?;
    let machine = MachineFiles::of_this_machine();
    let report = Preflight::of(&config, &machine).report(config.name.as_str(), &config.control);
    if args.json {
        print_json(&report)?;
    } else {
        print!("{}", report.text());
    }
    match report.failures() {
        0 => Ok(()),
        count => Err(CommandError::Preflight(count)),
    }
}

/// `status`
pub async fn status(args: &StatusArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.config)?;
    let status = client(&config).await?.status(StatusRequest {}).await?.into_inner();
    if args.json {
        return print_json(&status);
    }
    print!("{}", tables::status(&status));
    Ok(())
}

/// `points`
pub async fn points(args: &PointsArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.config)?;
    let request = PointsRequest { group: args.group.clone() };
    let points = client(&config).await?.points(request).await?.into_inner().points;
    if args.json {
        return print_json(&points);
    }
    print!("{}", tables::points(&points));
    Ok(())
}

/// `pin` and `unpin`
pub async fn pin(args: &PinArgs, unpin: bool) -> Result<(), CommandError> {
    let config = Config::load(&args.config.config)?;
    let request = PinRequest { group: args.group.clone(), point: args.point.clone(), unpin };
    println!("{}", client(&config).await?.pin(request).await?.into_inner().point);
    Ok(())
}

/// `restore`
pub async fn restore(args: &RestoreArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.config)?;
    let (group, disk) = find_disk(&config, args.group.as_deref(), &args.disk)?;
    let to = absolute(&args.to)?;
    let request = RestoreRequest {
        group,
        disk: disk.clone(),
        point: args.point.clone(),
        to: to.to_string_lossy().into_owned(),
        format: args.format.as_str().to_owned(),
    };
    let mut stream = client(&config).await?.restore(request).await?.into_inner();
    let mut progress = Progress::on_stderr();
    let step = format!("restoring {disk}");
    let mut announced = Announced::default();
    while let Some(message) = stream.message().await? {
        announced.job(message.job);
        progress.show(&step, message.done_bytes, message.total_bytes);
        if let Some(report) = message.report {
            progress.finish();
            println!(
                "{} holds disk {disk} at point {} ({}, {} in {})",
                to.display(),
                report.point,
                report.checksum,
                amount(message.total_bytes),
                tables::seconds(report.seconds)
            );
            return Ok(());
        }
    }
    Err(CommandError::Interrupted)
}

/// `mount`
pub async fn mount(args: &MountArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.config)?;
    let request = MountRequest {
        group: args.group.clone(),
        disk: args.disk.clone(),
        point: args.point.clone(),
        nbd: args.nbd.to_string(),
        writable: args.writable,
        quota_bytes: args.quota.as_ref().map(|quota| quota.0),
    };
    let reply = client(&config).await?.mount(request).await?.into_inner();
    if args.json {
        return print_json(&reply);
    }
    println!("{}", reply.id);
    reply.nbd.iter().for_each(|uri| println!("{uri}"));
    Ok(())
}

/// `unmount`
pub async fn unmount(args: &UnmountArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.config)?;
    client(&config).await?.unmount(UnmountRequest { id: args.id.clone() }).await?;
    Ok(())
}

/// `scrub`
pub async fn scrub(args: &ScrubArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.config)?;
    let mut stream = client(&config).await?.scrub(ScrubRequest { group: args.group.clone() }).await?.into_inner();
    let mut progress = Progress::on_stderr();
    let mut announced = Announced::default();
    while let Some(message) = stream.message().await? {
        announced.job(message.job);
        let Some(report) = message.report else {
            progress.show(&format!("scrubbing {}", message.group), message.done_bytes, message.total_bytes);
            continue;
        };
        progress.finish();
        if args.json {
            print_json(&report)?;
        } else {
            print!("{}", tables::scrub(&report));
        }
        return match report.groups.iter().map(|group| group.damages.len()).sum() {
            0 => Ok(()),
            1 => Err(CommandError::Damaged("1 place of the journals is".to_owned())),
            count => Err(CommandError::Damaged(format!("{count} places of the journals are"))),
        };
    }
    Err(CommandError::Interrupted)
}

/// Says once which job does the work.
#[derive(Debug, Default)]
pub(super) struct Announced {
    is_said: bool,
}

impl Announced {
    pub(super) fn job(&mut self, id: u64) {
        if id > 0 && !std::mem::replace(&mut self.is_said, true) {
            jobs::cli::announce("master-target", id);
        }
    }
}

pub(super) async fn client(config: &Config) -> Result<MasterTargetClient<Channel>, CommandError> {
    Ok(proto::uds::master_target(&config.control).await?)
}

pub(super) fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf, CommandError> {
    std::path::absolute(path).map_err(|source| CommandError::Path { path: path.to_owned(), source })
}

/// The group and disk that are meant: `DISK` with a group, `GROUP/DISK`, or a bare name that only one group has.
fn find_disk(config: &Config, group: Option<&str>, disk: &str) -> Result<(String, String), CommandError> {
    if let Some(group) = group {
        return Ok((group.to_owned(), disk.to_owned()));
    }
    if let Some((group, disk)) = disk.split_once('/') {
        return Ok((group.to_owned(), disk.to_owned()));
    }
    let mut owners = config.groups.iter().filter(|group| group.disks.iter().any(|other| other.name.as_str() == disk));
    match (owners.next(), owners.next()) {
        (Some(only), None) => Ok((only.name.as_str().to_owned(), disk.to_owned())),
        (None, _) => Err(CommandError::Disk(format!("no group has a disk \"{disk}\": see `master-target status`"))),
        (Some(first), Some(second)) => Err(CommandError::Disk(format!(
            "disk \"{disk}\" exists in the groups {} and {}: say which with --group",
            first.name, second.name
        ))),
    }
}
