//! What can be changed about a failback and until when: another choice, the undo, commit, cancel, and protection again
//! (F3, F4), with kill -9 in the middle and a machine that has written the disks in between (REVIEW J6).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tests::guest::Model;
use tests::load::{Load, Pace};
use tests::mounts::{mount, unmount};
use tests::nbd::{Connection, ESHUTDOWN};
use tests::site::{GROUP, SYNC_MAX, Site};
use tests::tool::Output;
use tests::verdict::{self, model_with_content};
use tests::{image, mounts, random, tool, wait};

const MIB: u64 = 1 << 20;

fn pace(seed: u64) -> Pace {
    Pace { seed: random::seed(seed), writes_per_second: 120, sectors_used: 16384, trims: true }
}

/// A site with the points "good" and "better" and more after them, all of it applied.
fn site_with_history(seed: u64) -> (Site, Arc<Model>) {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let model = model_with_content(&site);
    site.start();
    make_history(&site, &model, seed);
    (site, model)
}

fn make_history(site: &Site, model: &Arc<Model>, seed: u64) {
    let load = Load::start(model, &site.clients(2, 6), pace(seed));
    for label in ["good", "better"] {
        load.wait_for_writes(if label == "good" { 150 } else { 300 });
        verdict::take(site, model, Some(label));
    }
    load.wait_for_writes(450);
    drop(load.stop());
    site.point(Some("last"));
    site.wait_applied();
}

/// Both disks as they were at a point, in files.
fn copies(site: &Site, point: &str) -> Vec<PathBuf> {
    (0..2).map(|disk| site.restore(disk, point)).collect()
}

#[track_caller]
fn assert_disks_hold(site: &Site, copies: &[PathBuf]) {
    for (disk, copy) in copies.iter().enumerate() {
        let vmdk = site.vmdk(disk);
        let files = [copy.to_string_lossy(), vmdk.to_string_lossy()];
        tool::run("qemu-img", ["compare", "-f", "raw", "-F", "vmdk", &files[0], &files[1]]).ok();
    }
}

#[track_caller]
fn failback(site: &Site, more: &[&str]) -> Output {
    site.target.ask(&[&["failback", "--group", GROUP], more].concat())
}

#[track_caller]
fn points(site: &Site) -> Vec<Value> {
    let points = site.target.ask(&["points", "--group", GROUP, "--json"]).ok().json();
    points.as_array().expect("points").clone()
}

fn write(site: &Site, disk: usize, value: u8) -> u32 {
    let mut client = Connection::open(&site.disks[disk].nbd, &site.export(disk)).expect("a client");
    client.write(0, &[value; 4096]).expect("an answer")
}

#[track_caller]
fn wait_unfenced(site: &Site) {
    wait::until("the fence to be lifted", SYNC_MAX, || {
        let group = site.source.group(GROUP);
        if group["state"] == "fenced" { Err(group) } else { Ok(()) }
    });
    assert_eq!(write(site, 0, 0x21), 0, "the guest's writes are taken again");
}

fn flat(site: &Site, disk: usize) -> fs::File {
    let vmdk = site.vmdk(disk);
    let stem = vmdk.file_stem().expect("a name").to_string_lossy().into_owned();
    let path = vmdk.with_file_name(format!("{stem}-flat.vmdk"));
    fs::File::options().read(true).write(true).open(path).expect("the content of the VMDK")
}

#[test]
fn a_choice_is_changed_undone_and_in_the_end_committed() {
    let (mut site, _model) = site_with_history(801);
    let (good, better, last) = (copies(&site, "good"), copies(&site, "better"), copies(&site, "last"));

    let estimate = failback(&site, &["--point", "good", "--dry-run", "--json"]).ok().json();
    assert!(estimate["blocks_max"].as_u64() > Some(0) && estimate["has_room"] == true, "{estimate}");
    assert!(estimate["undo_bytes_max"].as_u64() >= estimate["bytes_max"].as_u64(), "{estimate}");
    assert!(estimate["seconds"].is_number(), "{estimate}");
    assert_eq!(write(&site, 1, 0), 0, "an estimate fences nobody");
    let before = site.target.group(GROUP);
    assert_eq!(before["state"], "protected", "{before}");
    let count = points(&site).len();

    let report = failback(&site, &["--point", "good", "--json"]).ok().json();
    assert_disks_hold(&site, &good);
    let listed = points(&site);
    assert!(listed.len() >= count, "no point goes before the commit");
    let undo: Vec<&Value> = listed.iter().filter(|point| point["before_rollback"] == true).collect();
    assert_eq!(undo.len(), 1, "{listed:?}");
    assert_eq!(undo[0]["id"], listed.last().expect("a point")["id"], "the newest is what the rollback began from");

    // Another one, older and newer, and the undo; each through a comparison with what was handed over.
    failback(&site, &["--point", "better"]).ok();
    assert_disks_hold(&site, &better);
    failback(&site, &["--point", "latest"]).ok();
    site.assert_vmdk_equals_source(0);
    site.assert_vmdk_equals_source(1);
    failback(&site, &["--point", "last"]).ok();
    assert_disks_hold(&site, &last);
    site.target.kill();
    site.start_target();
    wait::until("the group to be shown as failed back", SYNC_MAX, || {
        let group = site.target.group(GROUP);
        if group["state"] == "failed-back" { Ok(()) } else { Err(group) }
    });
    failback(&site, &["--point", "good"]).ok();
    assert_disks_hold(&site, &good);
    assert_eq!(points(&site).len(), listed.len(), "all points are still there");

    // A commit says what it discards, and is not done without a confirmation.
    let asked = site.target.ask(&["commit", "--group", GROUP]).fails_with(1).says("--yes");
    assert!(asked.stdout.contains("DISCARDS") && asked.stdout.contains(&listed.len().to_string()), "{asked:?}");
    assert_eq!(points(&site).len(), listed.len());
    let done = site.target.ask(&["commit", "--group", GROUP, "--yes", "--json"]).ok().json();
    assert_eq!((done["is_done"].as_bool(), done["point"].as_str()), (Some(true), report["point"].as_str()), "{done}");
    assert_eq!(points(&site), Vec::<Value>::new());
    failback(&site, &["--point", "latest"]).fails_with(1);
    site.target.kill();
    site.start_target();
    wait::until("the group to be shown as failed back", SYNC_MAX, || {
        let group = site.target.group(GROUP);
        if group["state"] == "failed-back" { Ok(()) } else { Err(group) }
    });
    assert_eq!(points(&site), Vec::<Value>::new());
    assert_eq!(write(&site, 0, 1), ESHUTDOWN, "a commit lifts no fence");
    assert_disks_hold(&site, &good);
    site.finish(&[]);
}

#[test]
fn points_that_a_commit_keeps_are_kept_and_the_choice_is_final_all_the_same() {
    let (site, _model) = site_with_history(802);
    let (better, last) = (copies(&site, "better"), copies(&site, "last"));
    failback(&site, &["--point", "good"]).ok();
    let listed = points(&site);
    site.target.ask(&["commit", "--group", GROUP, "--keep-points", "--yes"]).ok();
    assert_eq!(points(&site), listed);
    // They can be used while the machine has the disks.
    for (point, copies) in [("better", &better), ("last", &last)] {
        let mounted = mount(&site, point, &format!("kept-{point}"), &[]);
        for (disk, copy) in copies.iter().enumerate() {
            let restored = site.path().join(format!("kept-{disk}-{point}.raw"));
            site.restore_to(disk, point, &restored, "raw").ok();
            image::assert_same(&restored, copy);
            image::assert_same(&mounts::copy(&site, &mounted.uris[disk], &format!("mounted-{disk}-{point}")), copy);
        }
        unmount(&site, &mounted);
    }
    failback(&site, &["--point", "better"]).fails_with(1).says("committed");
    site.target.ask(&["commit", "--group", GROUP, "--yes"]).fails_with(1).says("committed");
    site.target.ask(&["reprotect", "--group", GROUP]).ok();
    site.wait_protected();
    wait_unfenced(&site);
    site.finish(&["the target no longer has what it had acknowledged"]);
}

#[test]
fn what_the_machine_has_overwritten_is_never_shown_as_a_point() {
    let (mut site, _model) = site_with_history(808);
    // A new history, whose points have nearly all of their content on the disks only.
    failback(&site, &[]).ok();
    site.target.ask(&["commit", "--group", GROUP, "--yes"]).ok();
    site.target.ask(&["reprotect", "--group", GROUP]).ok();
    site.wait_protected();
    wait_unfenced(&site);
    site.point(Some("kept"));
    let kept = copies(&site, "kept");
    failback(&site, &[]).ok();
    site.target.ask(&["commit", "--group", GROUP, "--keep-points", "--yes"]).ok();
    site.target.kill();
    site.start_target();
    wait::until("the group to be shown as failed back", SYNC_MAX, || {
        let group = site.target.group(GROUP);
        if group["state"] == "failed-back" { Ok(()) } else { Err(group) }
    });
    // The machine writes a part of its second disk.
    let disk = flat(&site, 1);
    disk.write_all_at(&[0x77; 1 << 20], 4 << 20).expect("a write");
    disk.sync_all().expect("a sync");
    let lost = site.path().join("lost.raw");
    site.restore_to(1, "kept", &lost, "raw").fails_with(1).says("the recovered machine has written there");
    assert!(!lost.exists(), "nothing is left of it");
    let whole = site.path().join("whole.raw");
    site.restore_to(0, "kept", &whole, "raw").ok();
    image::assert_same(&whole, &kept[0]);
    let mounted = mount(&site, "kept", "kept", &["--disk", "disk1"]);
    let mut reader = mounts::open(&mounted, "disk1");
    assert!(reader.read(4 << 20, 4096).is_err(), "what stood there is gone");
    let mut reader = mounts::open(&mounted, "disk1");
    let expected = fs::read(&kept[1]).expect("a copy");
    for at in [1 << 20, 5 << 20, 7 << 20] {
        assert!(reader.read(at as u64, 65536).expect("a read") == expected[at..at + 65536], "at {at}");
    }
    site.finish(&["the target no longer has what it had acknowledged", "the recovered machine has written there"]);
}

#[test]
fn a_rollback_that_is_killed_in_the_middle_goes_on_and_its_choice_can_still_change() {
    let (mut site, _model) = site_with_history(803);
    let copies =
        [("good", copies(&site, "good")), ("better", copies(&site, "better")), ("last", copies(&site, "last"))];
    let mut waits = (0..6).map(|round| Duration::from_millis(40 + 90 * round));
    for ((point, copy), (next, of_next)) in copies.iter().zip(copies.iter().cycle().skip(1)) {
        let after = waits.next().expect("a wait");
        let cut = site.target.ask_within(after, &["failback", "--group", GROUP, "--point", point]);
        site.target.kill();
        site.start_target();
        // Interrupted before anything was durable, or under way, or over.
        wait::until("the target to have opened the group", SYNC_MAX, || {
            let group = site.target.group(GROUP);
            let is_open = group["durable_set"].is_u64() && group["state"] != "failed";
            if is_open { Ok(()) } else { Err(group) }
        });
        wait::until("the source to be connected", SYNC_MAX, || {
            let status = site.source.status();
            if status["peer"]["connected"] == true { Ok(()) } else { Err((status, cut.clone())) }
        });
        let after = waits.next().expect("a wait");
        site.target.ask_within(after, &["failback", "--group", GROUP, "--point", point]);
        // Changed while it runs, or after it: either way the last choice is what stands.
        wait::until("the other choice to be put", SYNC_MAX, || {
            let output = failback(&site, &["--point", next, "--json"]);
            if output.code == Some(0) { Ok(()) } else { Err(output) }
        });
        assert_disks_hold(&site, of_next);
        failback(&site, &["--point", point]).ok();
        assert_disks_hold(&site, copy);
    }
    let jobs = site.target.ask(&["jobs", "--json"]).ok().json();
    let of_failback = |job: &&Value| job["kind"] == "failback";
    assert!(jobs.as_array().expect("jobs").iter().filter(of_failback).all(|job| job["state"] != "running"), "{jobs}");
    site.finish(&[]);
}

#[test]
fn what_a_machine_wrote_is_found_and_only_points_that_do_not_need_it_can_be_had() {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let model = model_with_content(&site);
    site.start();
    // The journal of the first synchronisation holds all of the disks. Without it only what is written later is there.
    failback(&site, &[]).ok();
    site.target.ask(&["reprotect", "--group", GROUP, "--discard-points"]).ok();
    wait_unfenced(&site);
    site.wait_protected();
    make_history(&site, &model, 804);
    let (good, last) = (copies(&site, "good"), copies(&site, "last"));
    failback(&site, &["--point", "last"]).ok();
    assert_disks_hold(&site, &last);

    // The machine starts and writes where nothing was written since: the points end at the disk there.
    let place = 15 * MIB + 4096;
    let file = flat(&site, 0);
    let mut was = [0; 512];
    file.read_exact_at(&mut was, place).expect("a sector");
    file.write_all_at(&[0xee; 512], place).expect("a sector");
    file.sync_all().expect("on the disk");
    failback(&site, &["--point", "good"]).fails_with(1).says("written since it was handed over");
    let state = site.target.group(GROUP);
    assert_eq!(state["state"], "failed-back", "{state}");
    let mut now = [0; 512];
    file.read_exact_at(&mut now, place).expect("a sector");
    assert_eq!(now, [0xee; 512], "a refused choice writes nothing");
    site.target.ask(&["reprotect", "--group", GROUP]).fails_with(1).says("--discard-points");
    assert_eq!(site.target.group(GROUP)["state"], "failed-back");
    assert_eq!(write(&site, 0, 1), ESHUTDOWN, "what is refused lifts no fence");

    // As from the snapshot that was taken before its start.
    file.write_all_at(&was, place).expect("a sector");
    file.sync_all().expect("on the disk");
    failback(&site, &["--point", "good"]).ok();
    assert_disks_hold(&site, &good);

    // A machine ran, and the source is to go on: everything comes from there.
    file.write_all_at(&[0xdd; 8192], 3 * MIB).expect("some sectors");
    file.sync_all().expect("on the disk");
    let report = site.target.ask(&["reprotect", "--group", GROUP, "--discard-points", "--json"]).ok().json();
    assert_eq!(report["points_kept"], 0, "{report}");
    site.wait_protected();
    wait_unfenced(&site);
    site.point(Some("anew"));
    site.wait_applied();
    verdict::assert_targets_equal_sources(&site);
    site.finish(&["the target no longer has what it had acknowledged"]);
}

#[test]
fn a_point_that_the_journal_holds_whole_is_put_over_what_a_machine_wrote() {
    let (site, _model) = site_with_history(807);
    let (good, better) = (copies(&site, "good"), copies(&site, "better"));
    failback(&site, &["--point", "good"]).ok();
    for place in [5 * MIB, 15 * MIB + 4096] {
        flat(&site, 0).write_all_at(&[0xee; 8192], place).expect("some sectors");
    }
    failback(&site, &["--point", "better"]).ok();
    assert_disks_hold(&site, &better);
    failback(&site, &["--point", "good"]).ok();
    assert_disks_hold(&site, &good);
    // What was written there is in no undo, and a point that would need it can't be had: none is kept on trust.
    site.target.ask(&["reprotect", "--group", GROUP]).fails_with(1).says("--discard-points");
    site.target.ask(&["reprotect", "--group", GROUP, "--discard-points"]).ok();
    site.wait_protected();
    wait_unfenced(&site);
    site.finish(&["the target no longer has what it had acknowledged"]);
}

#[test]
fn a_group_that_was_failed_back_is_protected_again_with_all_its_points() {
    let (mut site, _model) = site_with_history(805);
    let (good, better) = (copies(&site, "good"), copies(&site, "better"));
    failback(&site, &["--point", "good"]).ok();
    let count = points(&site).len();
    let report = site.target.ask(&["reprotect", "--group", GROUP, "--json"]).ok().json();
    assert_eq!((report["points_kept"].as_u64(), report["points_discarded"].as_u64()), (Some(count as u64), Some(0)));
    // Whoever crashes now: what was durable is enough.
    site.target.kill();
    site.source.kill();
    site.start_target();
    site.start_source();
    site.wait_protected();
    wait_unfenced(&site);
    site.point(Some("anew"));
    site.wait_applied();
    verdict::assert_targets_equal_sources(&site);
    for (point, copies) in [("good", &good), ("better", &better)] {
        for (disk, copy) in copies.iter().enumerate() {
            let again = site.path().join(format!("again-{disk}-{point}.raw"));
            site.restore_to(disk, point, &again, "raw").ok();
            image::assert_same(copy, &again);
        }
    }
    site.source.ask(&["verify", "--group", GROUP]).ok();
    site.target.ask(&["reprotect", "--group", GROUP]).fails_with(1).says("not failed back");
    // And once more, from a history that has a rollback in it.
    failback(&site, &["--point", "better"]).ok();
    assert_disks_hold(&site, &better);
    site.finish(&["the target no longer has what it had acknowledged", "nothing heard"]);
}

#[test]
fn a_failback_is_cancelled_before_its_disks_are_handed_over_and_the_source_goes_on() {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let _model = model_with_content(&site);
    site.cap("2 Mbit/s");
    site.start_target();
    site.start_source();
    site.wait_protected_within(Duration::from_secs(240));
    site.target.ask(&["failback", "--group", GROUP, "--cancel"]).fails_with(1).says("no failback");

    // Much to drain: the source is fenced long before it has sent everything.
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    let mut noise = random::Random::new(806);
    for piece in 0..12 {
        let bytes: Vec<u8> = (0..MIB).map(|_| noise.below(256) as u8).collect();
        assert_eq!(client.write(piece * MIB, &bytes).expect("an answer"), 0);
    }
    let waiting = site.target.ask_within(Duration::from_secs(2), &["failback", "--group", GROUP]);
    assert_eq!(waiting.code, None, "the command was interrupted: {waiting:?}");
    assert!(waiting.stderr.contains("jobs cancel"), "{waiting:?}");
    wait::until("the source to be fenced", SYNC_MAX, || {
        let group = site.source.group(GROUP);
        if group["state"] == "fenced" { Ok(()) } else { Err(group) }
    });
    let jobs = site.target.ask(&["jobs", "--json"]).ok().json();
    let job = &jobs[0];
    assert_eq!((job["kind"].as_str(), job["state"].as_str()), (Some("failback"), Some("running")), "{jobs}");
    let id = job["id"].as_u64().expect("an id").to_string();
    site.target.ask(&["jobs", "cancel", &id]).ok();
    wait_unfenced(&site);
    let jobs = site.target.ask(&["jobs", "--json"]).ok().json();
    assert_eq!(jobs[0]["state"], "cancelled", "{jobs}");
    assert_ne!(site.target.group(GROUP)["state"], "failing-back");

    // One that waits for a source that is gone, through a restart of the target.
    site.source.kill();
    site.target.ask_within(Duration::from_secs(1), &["failback", "--group", GROUP]);
    site.target.kill();
    site.start_target();
    wait::until("the failback to go on", SYNC_MAX, || {
        let group = site.target.group(GROUP);
        if group["state"] == "failing-back" { Ok(()) } else { Err(group) }
    });
    site.target.ask(&["failback", "--group", GROUP, "--cancel"]).ok();
    site.source_config = site.source_config.replace("rate = \"2 Mbit/s\"\n", "");
    site.start_source();
    site.wait_protected();
    wait_unfenced(&site);
    site.finish(&["nothing heard"]);
}
