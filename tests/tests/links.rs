//! Links that are bad, that fail and that come back: the guest doesn't notice, every point is right, and a failback to
//! latest is identical (M2, P1, P4, F3).

use std::sync::Arc;
use std::time::Duration;

use tests::load::{Load, Pace};
use tests::proxy::{Proxy, Weather};
use tests::random;
use tests::site::Site;
use tests::torture::history::fail_back;
use tests::torture::link_faults::LinkFaults;
use tests::verdict::{self, judge_all, model_with_content};

const MIB: u64 = 1 << 20;
const SMALL: [u64; 2] = [8 * MIB, 6 * MIB];
/// For links that carry little.
const TINY: [u64; 2] = [2 * MIB, MIB];

/// A group under load on a link with this weather, through `trouble`.
fn through(
    sizes: [u64; 2],
    seed: u64,
    weather: Weather,
    expected: &[&str],
    trouble: impl FnOnce(&Site, &Proxy, &Load),
) {
    let seed = random::seed(seed);
    let mut site = Site::new(&sizes);
    let model = model_with_content(&site);
    let proxy = site.through_proxy(seed, weather);
    site.start();
    let pace = Pace { seed, writes_per_second: 60, sectors_used: 12_288, trims: true };
    let load = Load::start(&model, &site.clients(1, 6), pace);
    load.wait_for_writes(100);
    let before = verdict::take(&site, &model, None);
    trouble(&site, &proxy, &load);
    // P4: writes are still taken, whatever the link does.
    load.wait_for_writes(60);
    site.wait_protected();
    let after = verdict::take(&site, &model, None);
    let summary = load.stop();
    assert!(summary.refused.is_empty() && summary.dropped == 0, "{summary:?}");
    let points = judge_all(&site, &Arc::clone(&model), &[before, after]);
    assert!(points.len() >= 2, "{points:?}");
    fail_back(&site, &model);
    site.finish(expected);
}

fn connected(site: &Site) -> bool {
    site.source.status()["peer"]["connected"] == true
}

/// How often the process-server has begun a session.
fn sessions(site: &Site) -> usize {
    site.source.log().matches("connected to the master-target").count()
}

#[test]
fn a_long_link_that_loses_one_datagram_in_a_thousand_is_only_slower() {
    let weather = Weather { delay: Duration::from_millis(20), lost_ppm: 1000, ..Weather::default() };
    through(SMALL, 401, weather, &[], |site, _, load| {
        load.wait_for_writes(200);
        assert_eq!(sessions(site), 1);
    });
}

#[test]
fn datagrams_that_overtake_each_other_and_arrive_twice_do_no_harm() {
    let weather = Weather {
        delay: Duration::from_millis(2),
        jitter: Duration::from_millis(1),
        doubled_ppm: 100_000,
        late_ppm: 100_000,
        ..Weather::default()
    };
    through(TINY, 402, weather, &[], |site, _, load| {
        load.wait_for_writes(200);
        assert_eq!(sessions(site), 1);
    });
}

#[test]
fn a_link_that_swallows_everything_for_20_seconds_is_given_up_and_made_anew() {
    through(SMALL, 403, Weather::default(), &["nothing heard"], |site, proxy, load| {
        proxy.cut();
        std::thread::sleep(Duration::from_secs(20));
        assert!(!connected(site), "a peer that was silent for 20 s counts as connected");
        load.wait_for_writes(20);
        proxy.mend();
    });
}

#[test]
fn a_change_of_the_source_address_keeps_the_session() {
    through(SMALL, 404, Weather::default(), &[], |site, proxy, load| {
        for _ in 0..3 {
            proxy.change_address();
            load.wait_for_writes(60);
            site.point(None);
        }
        assert_eq!(sessions(site), 1, "the connection moves along with the address");
    });
}

#[test]
fn a_link_that_comes_and_goes_leaves_every_point_right() {
    through(SMALL, 405, Weather::default(), &["nothing heard"], |_, proxy, _| {
        for dark_ms in [300, 900, 1500, 2500, 700] {
            proxy.cut();
            std::thread::sleep(Duration::from_millis(dark_ms));
            proxy.mend();
            std::thread::sleep(Duration::from_millis(1200));
        }
    });
}

#[test]
fn every_kind_of_link_fault_in_a_row_costs_nothing() {
    let seed = random::seed(406);
    LinkFaults { faults: 16, seed }.run(|number, fault| println!("{number}: {fault}"));
}
