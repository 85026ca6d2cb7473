//! Replies of the agent as tables for people.
//!
//! Pure text; JSON for scripts is printed from the same replies by `commands.rs`.

use crate::amount::amount;
use proto::control::{
    CommitReply, FailbackEstimate, FailbackReport, MasterTargetStatus, MountStatus, Point, ScrubDamage, ScrubReport,
};

/// Cells of one row.
type Row = Vec<String>;

/// The groups, then their disks, then the peers.
pub fn status(status: &MasterTargetStatus) -> String {
    let mut text = format!("master-target {}\n\n", status.name);
    let mut rows = vec![row([
        "GROUP",
        "STATE",
        "FOR",
        "DURABLE",
        "APPLIED",
        "NEWEST POINT",
        "RECEIVED",
        "JOURNAL",
        "HISTORY",
        "ROOM FOR",
    ])];
    for group in &status.groups {
        rows.push(vec![
            group.name.clone(),
            group.state.clone(),
            seconds(group.state_seconds),
            number(group.durable_set),
            number(group.applied_set),
            group.newest_point_time.clone().unwrap_or_else(dash),
            amount(group.received_bytes),
            amount(group.journal_bytes),
            group.history_seconds.map_or_else(dash, span),
            group.forecast_seconds.map_or_else(dash, span),
        ]);
    }
    text.push_str(&align(&rows));
    for group in &status.groups {
        if let Some(reason) = &group.reason {
            text.push_str(&format!("{}: {reason}\n", group.name));
        }
    }
    text.push('\n');
    let mut rows = vec![row(["DISK", "TARGET", "SIZE", ""])];
    for group in &status.groups {
        for disk in &group.disks {
            rows.push(vec![
                format!("{}/{}", group.name, disk.name),
                disk.target.clone(),
                disk.size.map_or_else(dash, amount),
                disk.removed_after.map_or_else(String::new, |set| format!("removed; kept for points up to {set}")),
            ]);
        }
    }
    text.push_str(&align(&rows));
    text.push_str(&mounts(&status.mounts));
    text.push_str(&peers(status));
    text
}

fn mounts(mounts: &[MountStatus]) -> String {
    if mounts.is_empty() {
        return String::new();
    }
    let mut rows = vec![row(["MOUNT", "DISK", "POINT", "SINCE", "CLIENTS", "WRITTEN", "NBD"])];
    for mount in mounts {
        rows.push(vec![
            mount.id.clone(),
            format!("{}/{}", mount.group, mount.disk),
            mount.point.clone(),
            mount.since.clone(),
            mount.clients.to_string(),
            if mount.writable { amount(mount.overlay_bytes) } else { "read-only".to_owned() },
            mount.nbd.clone(),
        ]);
    }
    format!("\n{}", align(&rows))
}

fn peers(status: &MasterTargetStatus) -> String {
    if status.peers.is_empty() {
        return String::new();
    }
    let mut rows = vec![row(["PEER", "ADDRESS", "CONNECTED", "HEARD", "LAST ERROR"])];
    for peer in &status.peers {
        rows.push(vec![
            peer.name.clone(),
            peer.address.clone(),
            if peer.connected { "yes" } else { "no" }.to_owned(),
            peer.heard_seconds_ago.map_or_else(dash, |ago| format!("{} ago", seconds(ago))),
            peer.last_error.clone().unwrap_or_else(dash),
        ]);
    }
    format!("\n{}", align(&rows))
}

/// A stretch of history as people say it: "31 h", "12 min".
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

/// The points of a group, oldest first.
pub fn points(points: &[Point]) -> String {
    let mut rows =
        vec![row(["ID", "TIME", "KIND", "CHANGED", "CHURN", "SAVES", "STORED", "PINNED", "DAMAGED", "LABEL"])];
    for point in points {
        let disks = format!("(disks: {})", point.disks.join(", "));
        rows.push(vec![
            point.id.clone(),
            point.time.clone(),
            point.kind.clone(),
            amount(point.changed_bytes),
            point.churn_bytes_per_second.map_or_else(dash, |rate| format!("{}/s", amount(rate as u64))),
            point.compressibility.map_or_else(dash, |share| format!("{:.0} %", share * 100.0)),
            amount(point.stored_bytes),
            if point.pinned { "yes" } else { "" }.to_owned(),
            if point.damaged { "perhaps" } else { "no" }.to_owned(),
            [
                point.label.as_deref(),
                (!point.disks.is_empty()).then_some(&disks[..]),
                point.before_rollback.then_some("(latest before rollback)"),
                point.compressibility_drop.then_some("(compresses far worse than before: ransomware?)"),
                (point.unreadable_bytes > 0).then_some("(with blocks that could not be read)"),
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" "),
        ]);
    }
    align(&rows)
}

/// What a failback did.
pub fn failback(report: &FailbackReport) -> String {
    let fenced = match &report.fenced_at {
        Some(time) => format!("source fenced at {time}"),
        None => "the source was not fenced: it is when it comes back".to_owned(),
    };
    let mut text = format!(
        "group {} is failed back to point {} after {}; {fenced}\n\n",
        report.group,
        report.point,
        seconds(report.seconds)
    );
    let mut rows = vec![row(["DISK", "TARGET", "SIZE", "CHECKSUM"])];
    for disk in &report.disks {
        rows.push(vec![disk.name.clone(), disk.target.clone(), amount(disk.size), disk.checksum.clone()]);
    }
    text.push_str(&align(&rows));
    text.push_str(&left_as_is(&report.left_as_is));
    text.push_str(
        "\nThe disks are unlocked. Before the machine is started, take a snapshot of it: once it writes, the disks no \
         longer hold the point, and no other point can be put on them without going back to that snapshot.\n\
         Until `master-target commit` another point can be chosen: `master-target failback --point ...`.\n",
    );
    text
}

/// What a failback would take.
pub fn estimate(estimate: &FailbackEstimate) -> String {
    let FailbackEstimate { group, point, blocks_max, .. } = estimate;
    let mut text = format!("Group {group}, point {point}; nothing was changed:\n");
    match blocks_max {
        0 => text += "  the disks hold this point, once what is received is on them\n",
        _ => {
            let bytes = amount(estimate.bytes_max);
            text += &format!(
                "  at most {bytes} in {blocks_max} blocks are to be looked at, and written where they differ\n"
            );
        }
    }
    if estimate.apply_bytes > 0 {
        text +=
            &format!("  {} of received change sets are written to the disks before\n", amount(estimate.apply_bytes));
    }
    let verdict = if estimate.has_room { "enough" } else { "NOT ENOUGH: make room on the retention volume first" };
    let (needed, free) = (amount(estimate.undo_bytes_max), amount(estimate.free_bytes));
    text += &format!("  undo may need {needed} on the retention volume, {free} are free: {verdict}\n");
    text += &match estimate.seconds {
        Some(time) => format!("  about {}, without the drain of the source and the checksums\n", seconds(time)),
        None => "  how long it takes is not known: the disks are not open\n".to_owned(),
    };
    text += &left_as_is(&estimate.left_as_is);
    if estimate.compares {
        text += "  the disks were handed over: all of them are read first, and compared with what they were\n";
    }
    text
}

/// Disks that a failback does not touch.
fn left_as_is(disks: &[String]) -> String {
    match disks {
        [] => String::new(),
        disks => format!(
            "  NOT at this point: {}: added to the group after it, left as they are, and perhaps a mixture\n",
            disks.join(", ")
        ),
    }
}

/// What a commit discards or keeps.
pub fn commit(reply: &CommitReply) -> String {
    let CommitReply { group, point, points, .. } = reply;
    let what = if reply.keeps_points { "keeps" } else { "DISCARDS" };
    let span = match (&reply.oldest_point_time, &reply.newest_point_time) {
        (Some(oldest), Some(newest)) => format!(", from {oldest} to {newest}"),
        _ => String::new(),
    };
    format!(
        "Group {group} is failed back to point {point}.\nThe commit makes that final: no other point can be put on its disks \
         afterwards.\nIt {what} {points} recovery points{span}: {} on the retention volume.\n",
        amount(reply.bytes)
    )
}

fn row<const N: usize>(cells: [&str; N]) -> Row {
    cells.map(str::to_owned).to_vec()
}

fn dash() -> String {
    "-".to_owned()
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(dash, |value| value.to_string())
}

/// Columns padded to their widest cell, two spaces between, no space at the end of a line.
fn align(rows: &[Row]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// What a scrub read, and each damaged place.
pub fn scrub(report: &ScrubReport) -> String {
    let mut text = String::new();
    for group in &report.groups {
        let damage = match group.damages.len() {
            0 => "no damage".to_owned(),
            count => format!("{count} damaged"),
        };
        let (files, records) = (group.files, group.records);
        text += &format!("{}: {files} files, {records} records, {}: {damage}\n", group.name, amount(group.bytes));
        for ScrubDamage { file, offset, what, points, oldest_point, newest_point } in &group.damages {
            let spoils = match (oldest_point, newest_point) {
                (Some(oldest), Some(newest)) => format!("may spoil {points} points, {oldest} to {newest}"),
                _ => "spoils no point".to_owned(),
            };
            text += &format!("  {file} at offset {offset}: {what}; {spoils}\n");
        }
    }
    text + &format!("done in {}\n", seconds(report.seconds))
}

/// Seconds as people say them: `0.4 s`, `12 s`, `3m 5s`, `2h 4m`, `3d 4h`.
pub fn seconds(value: f64) -> String {
    let whole = value.max(0.0) as u64;
    match whole {
        0..10 => format!("{:.1} s", value.max(0.0)),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{}m {}s", whole / 60, whole % 60),
        3600..86400 => format!("{}h {}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d {}h", whole / 86400, whole / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::control::{FailbackDisk, PeerStatus, TargetDiskStatus, TargetGroupStatus};

    fn sample() -> MasterTargetStatus {
        MasterTargetStatus {
            name: "mt-1".into(),
            peers: vec![PeerStatus { name: "ps-1".into(), connected: true, ..PeerStatus::default() }],
            groups: vec![TargetGroupStatus {
                name: "web".into(),
                state: "waiting".into(),
                reason: Some("ps-1 has not connected yet".into()),
                state_seconds: 61.0,
                disks: vec![TargetDiskStatus {
                    name: "os".into(),
                    target: "[ds1] web/os.vmdk".into(),
                    size: None,
                    removed_after: None,
                }],
                ..TargetGroupStatus::default()
            }],
            mounts: vec![MountStatus {
                id: "web-1".into(),
                group: "web".into(),
                disk: "os".into(),
                point: "17".into(),
                nbd: "nbd+unix:///web/os?socket=/run/m.sock".into(),
                writable: true,
                overlay_bytes: 2 << 20,
                clients: 3,
                since: "2026-11-23T10:00:00.000000Z".into(),
            }],
        }
    }

    #[test]
    fn status_shows_state_reason_disks_and_peers() {
        let text = status(&sample());
        for expected in ["web", "waiting", "1m 1s", "web: ps-1 has not connected yet", "web/os", "[ds1] web/os.vmdk"] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        assert!(text.contains("ps-1"));
        let mount = text.lines().find(|line| line.starts_with("web-1 ")).unwrap();
        for expected in ["web/os", "17", "2.0 MiB", " 3 ", "nbd+unix:///web/os?socket=/run/m.sock"] {
            assert!(mount.contains(expected), "{expected} is missing in\n{mount}");
        }
    }

    #[test]
    fn columns_line_up_and_no_line_ends_in_a_space() {
        let text = align(&[row(["A", "B"]), row(["longer", ""]), row(["x", "y"])]);
        assert_eq!(text, "A       B\nlonger\nx       y\n");
    }

    #[test]
    fn points_keep_their_order_and_labels() {
        let point = |id: &str, label: Option<&str>| Point {
            id: id.into(),
            time: "2026-11-23T10:00:00.000000Z".into(),
            kind: "crash".into(),
            label: label.map(str::to_owned),
            ..Point::default()
        };
        let undo = Point { before_rollback: true, ..point("3", None) };
        let text = points(&[point("1", None), point("2", Some("before upgrade")), undo]);
        assert!(text.trim_end().ends_with("(latest before rollback)"), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with('1') && lines[2].starts_with('2') && lines[2].ends_with("before upgrade"));
    }

    #[test]
    fn a_failback_report_names_point_fence_and_checksums() {
        let report = FailbackReport {
            group: "web".into(),
            point: "17".into(),
            seconds: 2.5,
            fenced_at: None,
            disks: vec![FailbackDisk { name: "os".into(), checksum: "blake3:ab".into(), ..FailbackDisk::default() }],
            left_as_is: vec![],
        };
        let text = failback(&report);
        assert!(text.contains("point 17") && text.contains("was not fenced") && text.contains("blake3:ab"));
    }

    #[test]
    fn an_estimate_says_what_is_written_and_whether_there_is_room() {
        let some = FailbackEstimate {
            group: "web".into(),
            point: "17".into(),
            blocks_max: 512,
            bytes_max: 2 << 20,
            undo_bytes_max: 3 << 20,
            free_bytes: 1 << 20,
            compares: true,
            ..FailbackEstimate::default()
        };
        let text = estimate(&some);
        for expected in ["point 17", "2.0 MiB in 512 blocks", "NOT ENOUGH", "is not known", "read first"] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        let none = FailbackEstimate { has_room: true, seconds: Some(0.0), ..FailbackEstimate::default() };
        let text = estimate(&none);
        assert!(text.contains("hold this point") && text.contains("enough") && text.contains("about 0.0 s"), "{text}");
    }

    #[test]
    fn a_commit_says_what_it_discards() {
        let reply = CommitReply { points: 3, bytes: 5 << 20, point: "7".into(), ..CommitReply::default() };
        let text = commit(&reply);
        assert!(text.contains("DISCARDS 3 recovery points") && text.contains("5.0 MiB"), "{text}");
        assert!(commit(&CommitReply { keeps_points: true, ..reply }).contains("keeps 3"));
    }

    #[test]
    fn sizes_and_times_read_well_at_their_borders() {
        assert_eq!(
            [amount(0), amount(1023), amount(1024), amount(1536 << 20)],
            ["0 B", "1023 B", "1.0 KiB", "1.5 GiB"]
        );
        assert_eq!(amount(u64::MAX), "16384.0 PiB");
        let times = [0.42, 12.9, 60.0, 3600.0, 90_000.0, -1.0].map(seconds);
        assert_eq!(times, ["0.4 s", "12 s", "1m 0s", "1h 0m", "1d 1h", "0.0 s"]);
    }
}
