//! `status` for people.
//!
//! Pure: a reply in, text out. Scripts take `--json`; this may change shape.

use std::fmt::Write;

use proto::control::{LinkStatus, PeerStatus, ProcessServerStatus, SourceDiskStatus, SourceGroupStatus};
use proto::throttle::BitRate;

const GROUP_HEAD: [&str; 10] =
    ["GROUP", "STATE", "FOR", "ACKED SET", "RPO", "BACKLOG", "MEMORY", "SPOOL", "CAPTURED", "SENT"];
const DISK_HEAD: [&str; 5] = ["DISK", "SIZE", "DIRTY", "SYNC DONE", "SYNC"];

/// The whole reply as lines, the last one ended too.
pub fn render(status: &ProcessServerStatus) -> String {
    let mut text = format!("process-server {}\n", status.name);
    if let Some(peer) = &status.peer {
        push_line(&mut text, &peer_line(peer));
    }
    if let Some(link) = &status.link {
        push_line(&mut text, &link_line(link));
    }
    text.push('\n');
    push_table(&mut text, &GROUP_HEAD, status.groups.iter().map(group_row).collect());
    for group in status.groups.iter().filter(|group| group.reason.is_some()) {
        push_line(&mut text, &format!("{}: {}", group.name, group.reason.as_deref().unwrap_or_default()));
    }
    let disks = status.groups.iter().flat_map(|group| group.disks.iter().map(|disk| disk_row(group, disk)));
    text.push('\n');
    push_table(&mut text, &DISK_HEAD, disks.collect());
    text
}

fn peer_line(peer: &PeerStatus) -> String {
    let mut line = format!("master-target {} at {}: ", peer.name, peer.address);
    line.push_str(if peer.connected { "connected" } else { "not connected" });
    match peer.heard_seconds_ago {
        Some(seconds) => _ = write!(line, ", heard {} ago", duration(seconds)),
        None => line.push_str(", never heard"),
    }
    if let Some(error) = &peer.last_error {
        _ = write!(line, "; last error: {error}");
    }
    line
}

fn link_line(link: &LinkStatus) -> String {
    let sent = bytes(link.sent_bytes);
    let held = duration(link.throttled_seconds);
    match link.rate_limit_bits_per_second {
        Some(rate) => format!("link: {sent} sent; capped at {}, which held it back for {held}", BitRate(rate)),
        None => format!("link: {sent} sent; no cap"),
    }
}

fn group_row(group: &SourceGroupStatus) -> Vec<String> {
    vec![
        group.name.clone(),
        group.state.clone(),
        duration(group.state_seconds),
        group.acked_set.map_or_else(unknown, |set| set.to_string()),
        group.rpo_seconds.map_or_else(unknown, duration),
        bytes(group.backlog_bytes),
        used(group.memory_bytes, group.memory_limit_bytes),
        used(group.spool_bytes, group.spool_limit_bytes),
        bytes(group.captured_bytes),
        bytes(group.sent_bytes),
    ]
}

fn disk_row(group: &SourceGroupStatus, disk: &SourceDiskStatus) -> Vec<String> {
    let percent = disk.sync_done_bytes.saturating_mul(100).checked_div(disk.sync_total_bytes);
    vec![
        format!("{}/{}", group.name, disk.name),
        bytes(disk.size),
        bytes(disk.dirty_bytes),
        format!("{} of {}", bytes(disk.sync_done_bytes), bytes(disk.sync_total_bytes)),
        percent.map_or_else(unknown, |percent| format!("{percent} %")),
    ]
}

/// Part of a bound; nothing where there is no bound, because there is no such thing.
fn used(now: u64, limit: u64) -> String {
    if limit == 0 { unknown() } else { format!("{} of {}", bytes(now), bytes(limit)) }
}

fn unknown() -> String {
    "-".to_owned()
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// Columns as wide as their widest cell; the first two to the left, numbers to the right.
fn push_table(text: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    let head = head.iter().map(|&cell| cell.to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let columns = rows[0].len();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            match column {
                0 => _ = write!(line, "{cell:<width$}"),
                1 => _ = write!(line, "  {cell:<width$}"),
                _ => _ = write!(line, "  {cell:>width$}"),
            }
        }
        push_line(text, line.trim_end());
    }
}

/// Bytes with a binary unit and three digits at least.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let exponent = (bytes.ilog2() / 10) as usize;
    let hundredths = (u128::from(bytes) * 100) >> (exponent * 10);
    let (whole, part) = (hundredths / 100, hundredths % 100);
    let unit = UNITS[exponent - 1];
    match whole {
        0..10 => format!("{whole}.{part:02} {unit}"),
        10..100 => format!("{whole}.{} {unit}", part / 10),
        _ => format!("{whole} {unit}"),
    }
}

/// A duration with the two units that matter.
fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    // Saturates, and a status never shows more than the age of the universe.
    let seconds = seconds as u64;
    match seconds {
        0..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> ProcessServerStatus {
        ProcessServerStatus {
            name: "ps-1".to_owned(),
            peer: Some(PeerStatus {
                name: "mt-1".to_owned(),
                address: "10.0.0.2:9443".to_owned(),
                connected: true,
                heard_seconds_ago: Some(0.42),
                last_error: None,
            }),
            link: Some(LinkStatus {
                rate_limit_bits_per_second: Some(50_000_000),
                sent_bytes: 3 << 20,
                throttled_seconds: 0.25,
            }),
            groups: vec![SourceGroupStatus {
                name: "web".to_owned(),
                state: "catching-up".to_owned(),
                reason: Some("initial synchronisation".to_owned()),
                state_seconds: 61.0,
                acked_set: Some(17),
                acked_time: None,
                rpo_seconds: None,
                backlog_bytes: 0,
                captured_bytes: 1536,
                sent_bytes: 10 << 30,
                memory_bytes: 1 << 20,
                memory_limit_bytes: 256 << 20,
                spool_bytes: 0,
                spool_limit_bytes: 4 << 30,
                state_totals: std::collections::BTreeMap::new(),
                disks: vec![SourceDiskStatus {
                    name: "os".to_owned(),
                    size: 1 << 30,
                    dirty_bytes: 0,
                    sync_done_bytes: 1 << 29,
                    sync_total_bytes: 1 << 30,
                }],
            }],
        }
    }

    #[test]
    fn a_status_reads_as_lines_and_aligned_tables() {
        let expected = "\
process-server ps-1
master-target mt-1 at 10.0.0.2:9443: connected, heard 0.4 s ago
link: 3.00 MiB sent; capped at 50 Mbit/s, which held it back for 0.2 s

GROUP  STATE              FOR  ACKED SET  RPO  BACKLOG               MEMORY            SPOOL  CAPTURED      SENT
web    catching-up  1 min 1 s         17    -      0 B  1.00 MiB of 256 MiB  0 B of 4.00 GiB  1.50 KiB  10.0 GiB
web: initial synchronisation

DISK    SIZE      DIRTY             SYNC DONE  SYNC
web/os  1.00 GiB    0 B  512 MiB of 1.00 GiB  50 %
";
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = render(&status());
        assert_eq!(squeeze(&text), squeeze(expected), "{text}");
        let widths: Vec<_> = text.lines().skip(4).take(2).map(|line| line.chars().count()).collect();
        assert_eq!(widths[0], widths[1], "{text}");
    }

    #[test]
    fn a_peer_that_was_never_heard_is_told_with_its_error() {
        let mut status = status();
        let peer = status.peer.as_mut().unwrap();
        (peer.connected, peer.heard_seconds_ago) = (false, None);
        peer.last_error = Some("refused".to_owned());
        assert!(render(&status).contains("not connected, never heard; last error: refused\n"));
    }

    #[test]
    fn nothing_to_synchronise_is_no_division_by_zero() {
        let mut status = status();
        status.groups[0].disks[0].sync_total_bytes = 0;
        assert!(render(&status).trim_end().ends_with('-'));
    }

    #[test]
    fn numbers_are_short_whatever_they_are() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.00 KiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
        assert_eq!(duration(59.94), "59.9 s");
        assert_eq!(duration(7265.0), "2 h 1 min");
        assert_eq!(duration(f64::MAX).split(' ').nth(1), Some("d"));
    }
}
