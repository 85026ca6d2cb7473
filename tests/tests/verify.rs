//! Verification and repair with real agents: no false alarm under load, one flipped byte found at its place and mended,
//! points before it as right as before, and errors in words (P7).

use serde_json::Value;
use tests::load::{Load, Pace};
use tests::site::{GROUP, Site};
use tests::verdict::{self, assert_targets_equal_sources, judge_point, judge_sources, model_with_content};
use tests::{guest, random};

const MIB: u64 = 1 << 20;
/// Place of the byte that rots.
const ROTTEN: u64 = 5 * MIB + 70_001;

fn pace(seed: u64, writes_per_second: u64, sectors_used: u64) -> Pace {
    Pace { seed: random::seed(seed), writes_per_second, sectors_used, trims: true }
}

fn differences(report: &Value, disk: usize) -> Vec<(u64, u64, bool)> {
    let all = report["disks"][disk]["differences"].as_array().unwrap_or_else(|| panic!("differences in {report}"));
    let number = |found: &Value, key: &str| found[key].as_u64().unwrap_or_else(|| panic!("{key} in {found}"));
    let one = |found: &Value| {
        (number(found, "offset"), number(found, "length"), found["repaired"].as_bool().expect("repaired"))
    };
    all.iter().map(one).collect()
}

#[test]
fn under_load_nothing_is_reported_that_is_no_difference() {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let model = model_with_content(&site);
    site.start();
    let load = Load::start(&model, &site.clients(2, 6), pace(701, 120, 16384));
    for round in 1..=2 {
        load.wait_for_writes(round * 100);
        let report = site.source.ask(&["verify", "--group", GROUP, "--json"]).ok().json();
        assert_eq!(report["group"], GROUP);
        assert!(report["seconds"].is_number(), "{report}");
        for (disk, size) in [(0, 16 * MIB), (1, 12 * MIB)] {
            assert!(differences(&report, disk).is_empty(), "{report}");
            let of = &report["disks"][disk];
            assert!(of["name"].is_string(), "{report}");
            let known = of["compared_bytes"].as_u64().zip(of["unverified_bytes"].as_u64());
            assert_eq!(known.map(|(compared, unverified)| compared + unverified), Some(size), "{report}");
        }
    }
    let summary = load.stop();
    assert_eq!((summary.dropped, summary.refused.len()), (0, 0), "{summary:?}");
    verdict::take(&site, &model, None);
    judge_sources(&site, &model);
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn one_flipped_byte_is_found_and_mended_under_load_and_earlier_points_stay_right() {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let model = model_with_content(&site);
    site.start();
    // The guest writes the first 4 MiB; what rots lies behind them.
    let load = Load::start(&model, &site.clients(1, 4), pace(702, 15, 4 * MIB / 512));
    load.wait_for_writes(100);
    let before = verdict::take(&site, &model, Some("before"));
    site.wait_applied();
    site.rot(0, ROTTEN);

    let place = format!("{}", ROTTEN / 4096 * 4096);
    site.source.ask(&["verify", "--group", GROUP]).fails_with(1).says(&place).says("disk");
    let report = site.source.ask(&["verify", "--group", GROUP, "--json"]).fails_with(1).json();
    assert_eq!(differences(&report, 0), [(ROTTEN / 4096 * 4096, 4096, false)]);
    assert!(differences(&report, 1).is_empty(), "{report}");

    let other = site.disks[1].name.clone();
    site.source.ask(&["verify", "--group", GROUP, "--disk", &other]).ok();
    let report = site.source.ask(&["verify", "--group", GROUP, "--repair", "--json"]).ok().json();
    assert_eq!(differences(&report, 0), [(ROTTEN / 4096 * 4096, 4096, true)]);
    let report = site.source.ask(&["verify", "--group", GROUP, "--json"]).ok().json();
    assert!(differences(&report, 0).is_empty(), "{report}");

    let summary = load.stop();
    assert_eq!((summary.dropped, summary.refused.len()), (0, 0), "{summary:?}");
    verdict::take(&site, &model, None);
    judge_point(&site, &model, &before.id, guest::Bounds::default());
    assert_targets_equal_sources(&site);
    site.finish(&["a target does not hold what was written to it"]);
}

#[test]
fn what_can_t_be_verified_is_refused_in_words() {
    let mut site = Site::new(&[4 * MIB]);
    let _model = model_with_content(&site);
    site.start();
    site.source.ask(&["verify", "--group", "nobody"]).fails_with(1).says("nobody").says(GROUP);
    site.source.ask(&["verify", "--group", GROUP, "--disk", "floppy"]).fails_with(1).says("floppy");
    site.source.ask(&["verify"]).fails_with(2);
    site.target.stop();
    tests::wait::until("the link to be found down", std::time::Duration::from_secs(30), || {
        let group = site.source.group(GROUP);
        if group["state"] == "connecting" { Ok(()) } else { Err(group) }
    });
    site.source.ask(&["verify", "--group", GROUP]).fails_with(1).says("connecting").says("streaming");
    site.finish(&[]);
}
