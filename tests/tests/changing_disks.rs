//! Disks are added to a group and removed from it while it is protected; older points stay usable (R7, F5, P1).

use tests::changing::{Kept, judge_whole, refuses, stop, two_of_three, with, write};
use tests::site::{GROUP, SYNC_MAX, Site};
use tests::{tool, verdict, wait};

const MIB: u64 = 1 << 20;

#[test]
fn r7_a_disk_is_added_and_another_removed_and_every_point_keeps_its_own() {
    let (mut site, configs, model, first, second) = two_of_three(901);
    stop(&mut site);
    configs.choose(&mut site, &[0, 1, 2]);
    site.start();
    first.check(&site);
    second.check(&site);
    assert_eq!(second.listed(&site)["disks"], serde_json::json!(["disk0", "disk1"]));
    refuses(&site, 2, &second);
    // P1: one order over all three.
    let taken = write(&site, &model, &[0, 1, 2], 902);
    judge_whole(&site, &model, &taken);
    let third = Kept::take(&site, &[0, 1, 2]);
    assert_eq!(third.listed(&site)["disks"], serde_json::json!([]));

    // The rest changes its order, so the agents count the disks otherwise than the journal does; the target is killed in the
    // middle of the change.
    stop(&mut site);
    configs.choose(&mut site, &[2, 1]);
    site.target.clear_log();
    site.start_target();
    site.start_source();
    wait::until("the disks to change", SYNC_MAX, || {
        let log = site.target.log();
        if log.contains("the disks of the group change") { Ok(()) } else { Err(log) }
    });
    site.target.kill();
    site.start_target();
    site.wait_protected();
    for kept in [&first, &second, &third] {
        kept.check(&site);
    }
    assert_eq!(third.listed(&site)["disks"], serde_json::json!(["disk0", "disk1", "disk2"]));
    write(&site, &model, &[1, 2], 903);
    let fourth = Kept::take(&site, &[1, 2]);
    assert_eq!(fourth.listed(&site)["disks"], serde_json::json!([]));
    fourth.check(&site);
    refuses(&site, 0, &fourth);
    third.check(&site);
    let status = site.target.group(GROUP);
    let removed = status["disks"].as_array().expect("disks").iter().find(|disk| disk["name"] == "disk0").cloned();
    assert!(removed.is_some_and(|disk| disk["removed_after"].is_u64()), "{status}");
    // Its target stays locked.
    let vmdk = site.vmdk(0);
    tool::run("qemu-io", ["-f", "vmdk", "-c", "write -P 0x11 0 512", &vmdk.to_string_lossy()]).fails_with(1);
    site.wait_applied();
    for disk in [1, 2] {
        site.assert_vmdk_equals_source(disk);
    }
    // It comes back: what its points need there stays.
    stop(&mut site);
    configs.choose(&mut site, &[2, 1, 0]);
    site.start();
    write(&site, &model, &[0, 1, 2], 904);
    let fifth = Kept::take(&site, &[0, 1, 2]);
    for kept in [&first, &second, &third, &fourth, &fifth] {
        kept.check(&site);
    }
    verdict::judge_sources(&site, &model);
    verdict::assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn f5_a_group_is_failed_back_to_points_from_before_its_disks_changed() {
    let (mut site, configs, model, first, _second) = two_of_three(911);
    stop(&mut site);
    configs.choose(&mut site, &[1, 2]);
    site.start();
    write(&site, &model, &[1, 2], 912);
    let third = Kept::take(&site, &[1, 2]);
    let words = ["failback", "--group", GROUP, "--point", first.id.as_str()];
    let estimate = site.target.ask(&[&words[..], &["--dry-run", "--json"]].concat()).ok().json();
    assert_eq!(estimate["left_as_is"], serde_json::json!(["disk2"]), "{estimate}");
    let report = site.target.ask(&[&words[..], &["--json"]].concat()).ok().json();
    assert_eq!(report["left_as_is"], serde_json::json!(["disk2"]), "{report}");
    assert_eq!(report["disks"].as_array().map(Vec::len), Some(3), "with the one that was removed: {report}");
    first.is_on_targets(&site);
    Kept { id: third.id.clone(), copies: third.copies[1..].to_vec() }.is_on_targets(&site);
    // The choice is not final.
    third.check(&site);
    let words = ["failback", "--group", GROUP, "--point", third.id.as_str(), "--json"];
    let report = site.target.ask(&words).ok().json();
    assert_eq!(report["left_as_is"], serde_json::json!([]), "{report}");
    third.is_on_targets(&site);
    first.check(&site);
    site.finish(&["left as they are"]);
}

#[test]
fn disks_that_the_agents_list_differently_or_that_do_not_fit_are_refused_with_the_reason() {
    let (mut site, configs, _model, first, _second) = two_of_three(921);
    stop(&mut site);
    configs.choose(&mut site, &[0, 1, 2]);
    site.source_config = with(&configs.source, &[0, 1]);
    site.start_target();
    site.start_source();
    let refused = |site: &Site, words: &str| {
        wait::until("the refusal", SYNC_MAX, || {
            let status = site.source.group(GROUP);
            let said = status.to_string();
            if said.contains(words) { Ok(()) } else { Err(said) }
        });
    };
    refused(&site, "make both lists equal, in the same order");
    first.check(&site);
    // The new disk is written where the removed one still is.
    stop(&mut site);
    configs.choose(&mut site, &[1, 2]);
    site.target_config = site.target_config.replace("web/disk2.vmdk", "web/disk0.vmdk");
    site.start_target();
    site.start_source();
    refused(&site, "give it a target of its own");
    first.check(&site);
    stop(&mut site);
    configs.choose(&mut site, &[1, 2]);
    site.start();
    first.check(&site);
    site.finish(&[]);
}

#[test]
fn r7_a_removed_disk_is_let_go_with_its_last_point_and_is_a_new_one_when_it_comes_back() {
    let (mut site, configs, model, _first, second) = two_of_three(931);
    stop(&mut site);
    configs.choose(&mut site, &[1, 2]);
    site.start();
    // Without a history there is no point that has it.
    site.target.ask(&["failback", "--group", GROUP]).ok();
    site.target.ask(&["commit", "--group", GROUP, "--yes"]).ok();
    site.target.ask(&["reprotect", "--group", GROUP]).ok();
    site.wait_protected();
    wait::until("the removed disk to be let go", SYNC_MAX, || {
        let (log, status) = (site.target.log(), site.target.group(GROUP));
        let is_listed = status["disks"].to_string().contains("disk0");
        if log.contains("its target is unlocked") && !is_listed { Ok(()) } else { Err(status) }
    });
    let vmdk = site.vmdk(0);
    tool::run("qemu-io", ["-f", "vmdk", "-c", "write -P 0x11 0 512", &vmdk.to_string_lossy()]).ok();
    write(&site, &model, &[1, 2], 932);
    site.target.kill();
    site.start_target();
    site.wait_protected();
    stop(&mut site);
    configs.choose(&mut site, &[0, 1, 2]);
    site.start();
    let received = site.target.group(GROUP)["received_bytes"].as_u64().expect("bytes");
    assert!(received < 2 * MIB, "it is compared, not copied: {received} bytes");
    write(&site, &model, &[0, 1, 2], 933);
    Kept::take(&site, &[0, 1, 2]).check(&site);
    verdict::assert_targets_equal_sources(&site);
    site.target.ask(&["points", "--group", GROUP]).ok();
    drop(second);
    site.finish(&["the target no longer has what it had acknowledged"]);
}
