//! The documented contract: commands, exit codes, JSON keys, how a point is named, what is refused and in which words.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use tests::nbd::Connection;
use tests::site::{self, GROUP, Site};
use tests::verdict::model_with_content;
use tests::{image, tool};

const MIB: u64 = 1 << 20;

#[track_caller]
fn assert_keys(value: &Value, keys: &[&str]) {
    let object = value.as_object().unwrap_or_else(|| panic!("an object, not {value}"));
    for key in keys {
        assert!(object.contains_key(*key), "key {key:?} is missing in {value}");
    }
}

#[test]
fn pki_makes_keys_for_both_agents_and_never_overwrites() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys");
    site::pki(&keys, "ps-7", "mt-7").ok();
    for name in ["ca.pem", "ca.key", "ps-7.pem", "ps-7.key", "mt-7.pem", "mt-7.key"] {
        let file = keys.join(name);
        let mode = fs::metadata(&file).unwrap_or_else(|error| panic!("{name}: {error}")).permissions().mode();
        if name.ends_with(".key") {
            assert_eq!(mode & 0o077, 0, "{name} is for its owner only");
        }
    }
    let verified =
        tool::run("openssl", ["verify", "-CAfile", &path(&keys.join("ca.pem")), &path(&keys.join("mt-7.pem"))]);
    verified.ok();
    let before = fs::read(keys.join("ca.key")).expect("a key");
    site::pki(&keys, "ps-7", "mt-7").fails_with(1).says("ca");
    assert_eq!(fs::read(keys.join("ca.key")).expect("a key"), before, "the key is still the same");
}

fn path(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn status_points_and_failback_have_the_documented_keys() {
    let mut site = Site::new(&[8 * MIB]);
    let _model = model_with_content(&site);
    site.start();
    site.point(Some("first"));
    site.wait_applied();

    let source = site.source.status();
    assert_keys(&source, &["name", "groups"]);
    assert_eq!(source["name"], "ps-1");
    let group = &source["groups"][0];
    let keys = ["name", "state", "reason", "state_seconds", "acked_set", "acked_time", "rpo_seconds", "backlog_bytes"];
    assert_keys(group, &keys);
    assert_keys(group, &["captured_bytes", "sent_bytes", "disks"]);
    assert_keys(&group["disks"][0], &["name", "size", "dirty_bytes", "sync_done_bytes", "sync_total_bytes"]);
    assert!(group["acked_set"].is_u64() && group["rpo_seconds"].is_number(), "{group}");
    assert_time(&group["acked_time"]);

    let target = site.target.status();
    assert_keys(&target, &["name", "groups"]);
    assert_eq!(target["name"], "mt-1");
    let group = &target["groups"][0];
    assert_keys(
        group,
        &["name", "state", "reason", "state_seconds", "durable_set", "applied_set", "newest_point_time"],
    );
    assert_keys(group, &["received_bytes", "journal_bytes", "applied_bytes", "disks"]);
    assert_keys(&group["disks"][0], &["name", "target", "size"]);
    assert_eq!(group["disks"][0]["size"].as_u64(), Some(8 * MIB), "{group}");
    assert_time(&group["newest_point_time"]);

    let points = site.target.ask(&["points", "--group", GROUP, "--json"]).ok().json();
    let newest = points.as_array().and_then(|points| points.last()).expect("a point");
    assert_keys(newest, &["id", "set", "time", "kind", "label", "changed_bytes", "stored_bytes"]);
    assert_eq!((newest["kind"].as_str(), newest["label"].as_str()), (Some("crash"), Some("first")), "{newest}");
    assert_time(&newest["time"]);

    // For people: no JSON, but the same facts.
    let text = site.source.ask(&["status"]).ok().stdout;
    assert!(text.contains("web") && text.contains("streaming"), "{text}");
    let text = site.target.ask(&["status"]).ok().stdout;
    assert!(text.contains("web") && text.contains("protected"), "{text}");
    let text = site.target.ask(&["points", "--group", GROUP]).ok().stdout;
    assert!(text.contains("first"), "{text}");

    let report = site.target.ask(&["failback", "--group", GROUP, "--json"]).ok().json();
    assert_keys(&report, &["group", "point", "seconds", "fenced_at", "disks"]);
    assert_keys(&report["disks"][0], &["name", "target", "size", "checksum"]);
    assert_time(&report["fenced_at"]);
    site.finish(&[]);
}

/// RFC 3339 with microseconds: `2026-11-23T18:00:00.123456Z`.
#[track_caller]
fn assert_time(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("a time, not {value}"));
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000Z", "{text}");
}

#[test]
fn a_point_is_named_by_latest_its_id_its_label_or_a_time() {
    let mut site = Site::new(&[4 * MIB]);
    site.start();
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    let mut ids = Vec::new();
    for round in 1..=3u8 {
        assert_eq!(client.write(0, &[round; 512]).expect("an answer"), 0);
        ids.push(site.point(Some(&format!("round-{round}"))));
    }
    let points = site.points();
    let second = points.iter().find(|point| point.id == ids[1]).expect("the second point is listed");
    let first_byte = |point: &str| {
        let file = site.restore(0, point);
        let byte = image::read(&file)[0];
        fs::remove_file(file).expect("it can be removed");
        byte
    };
    assert_eq!(first_byte("latest"), 3);
    assert_eq!(first_byte(&ids[0]), 1, "by id");
    assert_eq!(first_byte("round-2"), 2, "by label");
    assert_eq!(first_byte(&second.time), 2, "by its own time");
    let third = points.iter().find(|point| point.id == ids[2]).expect("the third point is listed");
    assert_eq!(first_byte(&just_before(&third.time)), 2, "the newest point not after a time");
    let missing = site.restore_to(0, "no-such-point", &site.path().join("none"), "raw");
    missing.fails_with(1).says("no-such-point");
    assert!(!site.path().join("none").exists(), "a failed restore leaves no file");
    site.finish(&[]);
}

/// One microsecond earlier, where the time does not end in zeroes; else an equivalent spelling of almost the same moment.
fn just_before(time: &str) -> String {
    let digits = &time[20..26];
    let microseconds: u32 = digits.parse().expect("microseconds");
    if microseconds == 0 {
        return time.to_owned();
    }
    format!("{}{:06}Z", &time[..20], microseconds - 1)
}

#[test]
fn commands_end_with_0_1_or_2_and_one_clear_line() {
    let mut site = Site::new(&[4 * MIB]);
    site.write_configs();
    // Nobody listens yet.
    for (agent, command) in [(&site.source, "process-server"), (&site.target, "master-target")] {
        let down = agent.ask(&["status"]).fails_with(1).says("run");
        assert_eq!(down.stderr.trim_end().lines().count(), 1, "one line: {down:?}");
        tool::run(tool::binary(command), ["no-such-command"]).fails_with(2);
        tool::run(tool::binary(command), ["status"]).fails_with(2);
        tool::run(tool::binary(command), ["--help"]).ok();
        tool::run(tool::binary(command), ["--version"]).ok();
    }
    site.start();
    site.source.ask(&["point", "--group", "nobody"]).fails_with(1).says("nobody");
    site.target.ask(&["points", "--group", "nobody"]).fails_with(1).says("nobody");
    site.target.ask(&["restore", "--group", GROUP]).fails_with(2);
    site.restore_to(0, "latest", &site.path().join("x"), "qcow2").fails_with(2);
    let taken = site.path().join("taken");
    fs::write(&taken, "mine").expect("a file");
    site.restore_to(0, "latest", &taken, "raw").fails_with(1).says("taken");
    assert_eq!(fs::read_to_string(&taken).expect("a file"), "mine", "a file that exists is never overwritten");
    site.finish(&[]);
}

#[test]
fn a_bare_disk_name_is_enough_where_only_one_group_has_it() {
    let mut site = Site::new(&[4 * MIB]);
    site.start();
    site.point(None);
    let file = path(&site.path().join("bare.raw"));
    site.target.ask(&["restore", "--disk", "disk0", "--point", "latest", "--to", &file]).ok();
    image::assert_same(&site.path().join("bare.raw"), &site.disks[0].source);
    site.finish(&[]);
}
