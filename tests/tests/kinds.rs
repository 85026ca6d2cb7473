//! Groups whose targets are split and sparse VMDKs, and exports as compressed ones: through load, a killed agent, a preflight
//! beside it, and a failback; QEMU judges what is left.

use std::path::Path;

use tests::load::{Load, Pace};
use tests::site::{GROUP, Site};
use tests::verdict::{self, judge_all, judge_sources, model_with_content};
use tests::{random, tool};

const MIB: u64 = 1 << 20;

/// A site whose first disk goes to a sparse, whose second to a split VMDK.
fn sparse_and_split() -> Site {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    for (disk, kind) in [("disk0", "monolithicSparse"), ("disk1", "twoGbMaxExtentFlat")] {
        let target = format!("target = \"[ds1] web/{disk}.vmdk\"\n");
        assert!(site.target_config.contains(&target), "{}", site.target_config);
        site.target_config = site.target_config.replace(&target, &format!("{target}kind = \"{kind}\"\n"));
    }
    site
}

#[track_caller]
fn assert_same(vmdk: &Path, source: &Path) {
    let (vmdk, source) = (vmdk.to_string_lossy(), source.to_string_lossy());
    tool::run("qemu-img", ["check", "-U", "-f", "vmdk", &vmdk]).ok();
    tool::run("qemu-img", ["compare", "-U", "-f", "vmdk", "-F", "raw", &vmdk, &source]).ok();
}

#[test]
fn split_and_sparse_targets_hold_every_point_through_a_killed_agent_and_a_failback() {
    let mut site = sparse_and_split();
    let model = model_with_content(&site);
    site.start();
    let pace = Pace { seed: random::seed(601), writes_per_second: 100, sectors_used: 16384, trims: true };
    let load = Load::start(&model, &site.clients(2, 6), pace);
    let mut taken = Vec::new();
    for _ in 0..2 {
        load.wait_for_writes(120);
        taken.push(verdict::take(&site, &model, None));
        site.target.kill();
        load.wait_for_writes(100);
        site.start_target();
        load.wait_for_writes(100);
        site.wait_protected();
        taken.push(verdict::take(&site, &model, None));
    }
    let summary = load.stop();
    assert!(summary.refused.is_empty(), "{summary:?}");
    taken.push(verdict::take(&site, &model, None));
    judge_sources(&site, &model);
    judge_all(&site, &model, &taken);
    let exported = site.path().join("exported.vmdk");
    site.restore_to(0, "latest", &exported, "streamOptimized").ok();
    assert_same(&exported, &site.disks[0].source);
    site.target.ask(&["failback", "--group", GROUP]).ok();
    for disk in 0..2 {
        assert_same(&site.vmdk(disk), &site.disks[disk].source);
    }
    // Where the agent was killed between the two copies of a table, it says so.
    site.finish(&["redundant grain tables"]);
}

#[test]
fn a_preflight_passes_before_beside_and_after_its_agent() {
    let mut site = sparse_and_split();
    site.write_configs();
    let before = site.target.ask(&["check", "--json"]).ok().json();
    assert!(before["name"] == "mt-1" && before["outcome"] == "warning", "{before}");
    site.start();
    let beside = site.target.ask(&["check", "--json"]).ok().json();
    let checks = beside["groups"][0]["checks"].as_array().expect("the checks");
    assert_eq!(beside["groups"][0]["name"], GROUP);
    let in_use: Vec<_> = checks.iter().filter(|check| check["id"] == "target-in-use").collect();
    assert!(in_use.len() == 2 && in_use.iter().all(|check| check["outcome"] == "pass"), "{beside}");
    for check in checks {
        assert!(check["subject"].is_string() && check["message"].is_string(), "{check}");
        assert_eq!(check["remedy"].is_null(), check["outcome"] == "pass", "{check}");
    }
    let volume = &beside["retention"][0];
    assert!(volume["size_bytes"].is_u64() && volume["eligible"].is_boolean(), "{volume}");
    // For people: no JSON, but the same facts.
    let text = site.target.ask(&["check"]).ok().stdout;
    assert!(text.contains("target-in-use") && text.contains("volumes for retention"), "{text}");
    site.target.stop();
    std::fs::write(site.path().join("datastore/web/disk0-000001.vmdk"), "somebody's").expect("a file");
    let failed = site.target.ask(&["check", "--json"]).fails_with(1).says("remedy");
    assert_eq!(failed.json()["outcome"], "failure");
    site.finish(&[]);
}
