//! `verify`: follows a verification on standard error and says what it found.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;

use proto::control::{VerifyReport, VerifyRequest};

use super::args::VerifyArgs;
use super::client::in_words;
use super::error::CliError;

/// Verifies, showing progress.
pub(super) async fn run(socket: &Path, args: &VerifyArgs) -> Result<VerifyReport, CliError> {
    let request = VerifyRequest { group: args.group.clone(), disk: args.disk.clone(), repair: args.repair };
    let mut stream = proto::uds::process_server(socket).await?.verify(request).await.map_err(in_words)?.into_inner();
    let is_terminal = std::io::stderr().is_terminal();
    let mut shown = None;
    let mut is_announced = false;
    while let Some(message) = stream.message().await.map_err(in_words)? {
        if !std::mem::replace(&mut is_announced, true) {
            jobs::cli::announce("process-server", message.job);
        }
        if let Some(report) = message.report {
            if is_terminal && shown.is_some() {
                eprintln!();
            }
            return Ok(report);
        }
        let percent = message.done_bytes.saturating_mul(100) / message.total_bytes.max(1);
        let step = if is_terminal { percent } else { percent / 10 * 10 };
        if shown.is_none_or(|shown| step > shown) {
            let line = format!("verifying {}: {step}% of {} bytes", args.group, message.total_bytes);
            if is_terminal {
                eprint!("\r{line}")
            } else {
                eprintln!("{line}")
            }
            shown = Some(step);
        }
    }
    Err(CliError::Agent("the agent ended before the group was verified: see its log".to_owned()))
}

/// The report for people; differences go to standard error.
pub(super) fn render(report: &VerifyReport) -> String {
    let mut text = String::new();
    for disk in &report.disks {
        let repaired = disk.differences.iter().filter(|found| found.repaired);
        let mended: u64 = repaired.map(|found| found.length).sum();
        let differing: u64 = disk.differences.iter().map(|found| found.length).sum::<u64>() - mended;
        let _ = writeln!(
            text,
            "{}: {} bytes compared, {differing} differ, {mended} repaired, {} unverified",
            disk.name, disk.compared_bytes, disk.unverified_bytes
        );
    }
    text
}

/// Fails where differences remain, with a line for each but the last, which the caller's error is.
pub(super) fn judge(report: &VerifyReport) -> Result<(), CliError> {
    let all = report.disks.iter().flat_map(|disk| disk.differences.iter().map(move |found| (disk, found)));
    let mut lines: Vec<String> = all
        .filter(|(_, found)| !found.repaired)
        .map(|(disk, found)| {
            format!(
                "group {}, disk {}: {} bytes at offset {} differ on the target; run verify with --repair",
                report.group, disk.name, found.length, found.offset
            )
        })
        .collect();
    let Some(last) = lines.pop() else { return Ok(()) };
    for line in lines {
        eprintln!("process-server: {line}");
    }
    Err(CliError::Differs(last))
}
