//! Recovery points taken under load: each is a state of the whole group that a power cut could have left (P1, P3, F1, F5).

use std::time::Duration;

use tests::load::{Load, Pace};
use tests::site::{GROUP, Site};
use tests::verdict::{self, assert_targets_equal_sources, judge_all, judge_point, judge_sources, model_with_content};
use tests::{guest, random};

const MIB: u64 = 1 << 20;

fn pace(seed: u64) -> Pace {
    Pace { seed: random::seed(seed), writes_per_second: 120, sectors_used: 16384, trims: true }
}

#[test]
fn every_point_taken_under_load_is_a_state_that_a_power_cut_could_have_left() {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let model = model_with_content(&site);
    site.start();
    let load = Load::start(&model, &site.clients(2, 6), pace(101));
    let mut taken = Vec::new();
    for round in 0..4 {
        load.wait_for_writes(150);
        taken.push(verdict::take(&site, &model, Some(&format!("round-{round}"))));
        // Replication goes on while this is restored.
        judge_point(&site, &model, &taken[round].id, guest::Bounds::default());
    }
    let summary = load.stop();
    assert_eq!((summary.dropped, summary.refused.len()), (0, 0), "{summary:?}");
    taken.push(verdict::take(&site, &model, Some("the end")));

    judge_sources(&site, &model);
    let points = judge_all(&site, &model, &taken);
    assert!(points.len() >= taken.len(), "points every second besides those by command: {points:?}");
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn a_disk_in_use_is_synchronised_and_its_first_point_is_ordered() {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let model = model_with_content(&site);
    site.start_source();
    // The guest writes before, while and after the target appears.
    let load = Load::start(&model, &site.clients(2, 6), pace(102));
    load.wait_for_writes(200);
    site.start_target();
    site.wait_protected();
    let taken = verdict::take(&site, &model, None);
    let summary = load.stop();
    assert_eq!((summary.dropped, summary.refused.len()), (0, 0), "{summary:?}");
    judge_sources(&site, &model);
    judge_all(&site, &model, &[taken]);
    verdict::take(&site, &model, None);
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn an_idle_group_makes_no_sets_and_its_rpo_stays_small() {
    let mut site = Site::new(&[4 * MIB]);
    let model = model_with_content(&site);
    site.start();
    site.wait_applied();
    let before = site.points();
    std::thread::sleep(Duration::from_secs(4));
    let after = site.points();
    assert_eq!(before.len(), after.len(), "nothing was written: {after:?}");
    let rpo = site.source.group(GROUP)["rpo_seconds"].as_f64().expect("a number");
    assert!(rpo < 4.0, "an idle disk is as new as its last heartbeat, but rpo_seconds is {rpo}");
    judge_all(&site, &model, &[]);
    site.finish(&[]);
}
