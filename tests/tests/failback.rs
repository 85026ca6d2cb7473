//! Failback: the source is fenced, the chosen point is on the VMDKs, the locks are gone, and it stays so (F3, F5, R4).

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tests::guest::Model;
use tests::load::{Load, Pace, Summary};
use tests::nbd::{Command, Connection, ESHUTDOWN};
use tests::site::{GROUP, Site};
use tests::verdict::{self, Taken, model_with_content};
use tests::{image, random, tool, wait};

const MIB: u64 = 1 << 20;

fn pace(seed: u64) -> Pace {
    Pace { seed: random::seed(seed), writes_per_second: 120, sectors_used: 16384, trims: true }
}

#[track_caller]
fn failback(site: &Site, more: &[&str]) -> Value {
    let words = [&["failback", "--group", GROUP, "--json"], more].concat();
    site.target.ask(&words).ok().json()
}

#[track_caller]
fn assert_fenced(site: &Site, disk: usize) {
    let mut client = Connection::open(&site.disks[disk].nbd, &site.export(disk)).expect("fenced exports can be opened");
    assert_eq!(client.write(0, &[1; 4096]).expect("an answer"), ESHUTDOWN, "a write");
    for command in [Command::Trim, Command::WriteZeroes] {
        let done = client.call(command, 0, 0, 4096, &[]).expect("an answer");
        assert_eq!(done.error, ESHUTDOWN, "{command:?}");
    }
    client.read(0, 65536).expect("reads still work");
    assert_eq!(site.source.group(GROUP)["state"], "fenced");
}

/// Two disks under load until the failback has fenced them.
fn failed_back_under_load(seed: u64) -> (Site, Arc<Model>, Summary, Value) {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let model = model_with_content(&site);
    site.start();
    let load = Load::start(&model, &site.clients(2, 6), pace(seed));
    load.wait_for_writes(300);
    let report = failback(&site, &[]);
    let summary = load.stop();
    (site, model, summary, report)
}

#[test]
fn failing_back_to_latest_under_load_leaves_the_vmdks_identical_to_the_fenced_sources() {
    let (site, model, summary, report) = failed_back_under_load(301);
    let errors: Vec<u32> = summary.refused.keys().copied().collect();
    assert_eq!(errors, [ESHUTDOWN], "the clients learn that the disks are fenced: {summary:?}");
    for disk in 0..2 {
        site.assert_vmdk_equals_source(disk);
        assert_fenced(&site, disk);
    }
    verdict::judge_sources(&site, &model);

    assert_eq!(report["group"], GROUP, "{report}");
    assert!(
        report["point"].is_string() && report["seconds"].is_number() && report["fenced_at"].is_string(),
        "{report}"
    );
    let disks = report["disks"].as_array().expect("disks");
    assert_eq!(disks.len(), 2, "{report}");
    for (told, disk) in disks.iter().zip(&site.disks) {
        assert_eq!(
            (told["name"].as_str(), told["size"].as_u64()),
            (Some(disk.name.as_str()), Some(disk.size)),
            "{report}"
        );
        assert_eq!(told["target"].as_str(), Some(disk.target.as_str()), "{report}");
        assert!(told["checksum"].as_str().is_some_and(|checksum| checksum.len() >= 8), "{report}");
    }
    assert_eq!(site.target.group(GROUP)["state"], "failed-back");
    site.finish(&[]);
}

#[test]
fn a_failed_back_group_stays_so_through_restarts_and_nobody_touches_its_vmdks() {
    let (mut site, _model, _summary, _report) = failed_back_under_load(302);
    let before: Vec<Vec<u8>> = (0..2).map(|disk| extent(&site, disk)).collect();
    site.source.kill();
    site.target.kill();
    site.start_source();
    assert_fenced(&site, 0);
    site.start_target();
    wait::until("the fenced source to be connected again", tests::site::SYNC_MAX, || {
        let status = site.source.status();
        if status["peer"]["connected"] == true { Ok(()) } else { Err(status) }
    });
    assert_fenced(&site, 1);
    assert_eq!(site.target.group(GROUP)["state"], "failed-back");
    for (disk, content) in before.iter().enumerate() {
        assert!(*content == extent(&site, disk), "the VMDK of disk {disk} changed after the failback");
    }
    // The lock is gone: a hypervisor may start the machine.
    let vmdk = site.vmdk(0);
    tool::run("qemu-io", ["-f", "vmdk", "-c", "write -P 0x11 0 512", &vmdk.to_string_lossy()]).ok();
    site.finish(&[]);
}

fn extent(site: &Site, disk: usize) -> Vec<u8> {
    let vmdk = site.vmdk(disk);
    let name = vmdk.file_stem().expect("a name").to_string_lossy().into_owned();
    image::read(&vmdk.with_file_name(format!("{name}-flat.vmdk")))
}

#[test]
fn failing_back_to_an_older_point_puts_all_disks_of_the_group_on_it() {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let model = model_with_content(&site);
    site.start();
    let load = Load::start(&model, &site.clients(2, 6), pace(303));
    load.wait_for_writes(200);
    verdict::take(&site, &model, Some("good"));
    load.wait_for_writes(300);
    let good: Vec<_> = (0..2).map(|disk| site.restore(disk, "good")).collect();
    let report = failback(&site, &["--point", "good"]);
    drop(load);
    assert_eq!(report["disks"].as_array().map(Vec::len), Some(2), "{report}");
    for (disk, restored) in good.iter().enumerate() {
        let vmdk = site.vmdk(disk);
        let files = [restored.to_string_lossy(), vmdk.to_string_lossy()];
        let words = ["compare", "-f", "raw", "-F", "vmdk", &files[0], &files[1]];
        tool::run("qemu-img", words).ok();
        assert_fenced(&site, disk);
    }
    site.finish(&[]);
}

/// A group under load whose process-server is killed after a last point by command.
fn source_lost(seed: u64) -> (Site, Arc<Model>, Taken) {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let model = model_with_content(&site);
    site.start();
    let load = Load::start(&model, &site.clients(2, 6), pace(seed));
    load.wait_for_writes(300);
    let last = verdict::take(&site, &model, None);
    site.source.kill();
    drop(load);
    (site, model, last)
}

#[track_caller]
fn assert_failed_back_without_source(site: &mut Site, model: &Model, last: &Taken) {
    let report = failback(site, &["--without-source"]);
    assert_eq!(report["fenced_at"], Value::Null, "{report}");
    let images: Vec<Vec<u8>> = (0..2).map(|disk| extent(site, disk)).collect();
    let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    let newest = site.points().pop().expect("a point");
    assert!(newest.id.parse::<u64>().ok() >= last.id.parse().ok(), "{newest:?}");
    verdict::judge_images(model, &images, last);

    // When the source returns, it is fenced: there must not be two live histories.
    site.start_source();
    wait::until("the returning source to be fenced", tests::site::SYNC_MAX, || {
        let group = site.source.group(GROUP);
        if group["state"] == "fenced" { Ok(()) } else { Err(group) }
    });
    assert_fenced(site, 0);
}

#[test]
fn without_its_source_a_group_fails_back_to_the_newest_point() {
    let (mut site, model, last) = source_lost(304);
    wait::until("the target to notice that the source is gone", tests::site::SYNC_MAX, || {
        let status = site.target.status();
        if status["peers"][0]["connected"] == true { Err(status) } else { Ok(()) }
    });
    // A plain failback says so, and what to do.
    site.target.ask(&["failback", "--group", GROUP]).fails_with(1).says("--without-source");
    assert_failed_back_without_source(&mut site, &model, &last);
    site.finish(&["nothing heard"]);
}

#[test]
fn a_failback_that_waits_for_a_lost_source_can_be_told_to_go_on_without_it() {
    let (mut site, model, last) = source_lost(305);
    // The target has not noticed yet; the command is interrupted, its failback goes on waiting.
    let waiting = site.target.ask_within(Duration::from_secs(2), &["failback", "--group", GROUP]);
    assert_eq!(waiting.code, None, "{waiting:?}");
    assert_failed_back_without_source(&mut site, &model, &last);
    site.finish(&[]);
}

#[test]
fn a_point_that_is_not_there_fails_nothing_back() {
    let mut site = Site::new(&[8 * MIB]);
    let _model = model_with_content(&site);
    site.start();
    let id = site.point(None);
    site.target.ask(&["failback", "--group", GROUP, "--point", "no-such-label"]).fails_with(1).says("no-such-label");
    site.target.ask(&["failback", "--group", GROUP, "--point", "1999-01-01T00:00:00Z"]).fails_with(1);
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    assert_eq!(client.write(0, &[1; 4096]).expect("an answer"), 0, "the group is not fenced");
    fs::remove_file(site.restore(0, &id)).expect("the point is still there");
    site.finish(&[]);
}
