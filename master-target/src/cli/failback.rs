//! `failback`, `commit` and `reprotect`: begin, follow, ask, and print.

use std::io::{BufRead, IsTerminal, Write};

use proto::control::{CancelFailbackRequest, CommitRequest, FailbackRequest, ReprotectRequest};

use super::args::{CommitArgs, FailbackArgs, ReprotectArgs};
use super::commands::{Announced, CommandError, client, print_json};
use super::progress::Progress;
use super::tables;
use crate::config::Config;

/// `failback`
pub async fn failback(args: &FailbackArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.config)?;
    let mut client = client(&config).await?;
    if args.cancel {
        client.cancel_failback(CancelFailbackRequest { group: args.group.clone() }).await?;
        println!("the failback of group {} is cancelled: its source may write again", args.group);
        return Ok(());
    }
    let request =
        FailbackRequest { group: args.group.clone(), point: args.point.clone(), without_source: args.without_source };
    if args.dry_run {
        let estimate = client.estimate_failback(request).await?.into_inner();
        if args.json {
            return print_json(&estimate);
        }
        print!("{}", tables::estimate(&estimate));
        return Ok(());
    }
    let mut stream = client.failback(request).await?.into_inner();
    let mut progress = Progress::on_stderr();
    let mut announced = Announced::default();
    while let Some(message) = stream.message().await? {
        announced.job(message.job);
        if let Some(report) = message.report {
            progress.finish();
            if args.json {
                return print_json(&report);
            }
            print!("{}", tables::failback(&report));
            return Ok(());
        }
        if !message.step.is_empty() {
            progress.show(&message.step, message.done_bytes, message.total_bytes);
        }
    }
    Err(CommandError::Interrupted)
}

/// `commit`
pub async fn commit(args: &CommitArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.config)?;
    let mut client = client(&config).await?;
    let ask = CommitRequest {
        group: args.group.clone(),
        keep_points: args.keep_points,
        confirmed: false,
        point: String::new(),
    };
    let shown = client.commit(ask.clone()).await?.into_inner();
    if !args.json {
        print!("{}", tables::commit(&shown));
    }
    if !args.yes {
        confirm(&args.group)?;
    }
    let request = CommitRequest { confirmed: true, point: shown.point, ..ask };
    let done = client.commit(request).await?.into_inner();
    if args.json {
        return print_json(&done);
    }
    println!("committed: point {} of group {} is final", done.point, done.group);
    Ok(())
}

/// Lets the operator type the name of the group.
fn confirm(group: &str) -> Result<(), CommandError> {
    let needed = || CommandError::Unconfirmed("nothing was committed: confirm with --yes".to_owned());
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(needed());
    }
    eprint!("type the name of the group to commit: ");
    let _ = std::io::stderr().flush();
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|_| needed())?;
    if line.trim() == group {
        return Ok(());
    }
    Err(CommandError::Unconfirmed(format!("nothing was committed: what was typed is not \"{group}\"")))
}

/// `reprotect`
pub async fn reprotect(args: &ReprotectArgs) -> Result<(), CommandError> {
    let config = Config::load(&args.config.config)?;
    let request = ReprotectRequest { group: args.group.clone(), discard_points: args.discard_points };
    let mut stream = client(&config).await?.reprotect(request).await?.into_inner();
    let mut progress = Progress::on_stderr();
    let mut announced = Announced::default();
    while let Some(message) = stream.message().await? {
        announced.job(message.job);
        let Some(report) = message.report else {
            progress.show(&message.step, message.done_bytes, message.total_bytes);
            continue;
        };
        progress.finish();
        if args.json {
            return print_json(&report);
        }
        println!(
            "group {} replicates again: {} points kept, {} discarded; its source is compared as soon as it connects",
            report.group, report.points_kept, report.points_discarded
        );
        return Ok(());
    }
    Err(CommandError::Interrupted)
}
