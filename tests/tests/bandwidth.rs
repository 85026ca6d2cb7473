//! The cap of the link, measured from outside: what leaves the host, to the byte, and what the cap must not break (P8, P4).

use std::time::Duration;

use tests::agent::Role;
use tests::guest::Model;
use tests::nbd::Connection;
use tests::proxy::{Proxy, Weather};
use tests::site::Site;
use tests::torture::capped::Capped;
use tests::torture::kill_loop::KillLoop;
use tests::wait::Stopwatch;
use tests::{image, random, wait};

const MIB: u64 = 1 << 20;

/// A site that begins to synchronise 64 MiB, of which half doesn't compress, over a capped link.
fn syncing(rate: &str) -> (Site, Proxy) {
    let mut site = Site::new(&[64 * MIB]);
    let model = Model::new(&[64 * MIB]);
    (0..64).for_each(|piece| image::fill(&site.disks[0].source, &model, 0, piece * 2048, 2048));
    let proxy = site.through_proxy(1, Weather::default());
    site.cap(rate);
    site.start_target();
    site.start_source();
    (site, proxy)
}

/// Lets it run for some seconds and checks the rate to 2 %, from outside and in the agent's own words.
fn assert_rate(site: &Site, proxy: &Proxy, seconds: u32, bits_per_second: u64, mut each_second: impl FnMut(&Site)) {
    let begun = bits_per_second / 80;
    wait::until("the synchronisation to fill the link", Duration::from_secs(20), || {
        if proxy.from_source() > begun { Ok(()) } else { Err(proxy.from_source()) }
    });
    let (stopwatch, sent) = (Stopwatch::start(), proxy.from_source());
    for second in 1..=seconds {
        each_second(site);
        let left = f64::from(second) - stopwatch.seconds();
        std::thread::sleep(Duration::from_secs_f64(left.max(0.0)));
    }
    let (elapsed, sent) = (stopwatch.seconds(), proxy.from_source() - sent);
    let ratio = sent as f64 * 8.0 / elapsed / bits_per_second as f64;
    assert!((0.98..=1.02).contains(&ratio), "{sent} bytes in {elapsed:.3} s are {ratio:.4} of {bits_per_second} bit/s");

    let counted = proxy.from_source();
    let link = site.source.status()["link"].clone();
    assert_eq!(link["rate_limit_bits_per_second"], bits_per_second, "{link}");
    let told = link["sent_bytes"].as_u64().expect("a number");
    let later = proxy.from_source();
    let fine = (counted * 98 / 100..=later * 102 / 100).contains(&told);
    assert!(fine, "the agent says {told} bytes, the proxy has seen {counted} before and {later} after");
    assert!(link["throttled_seconds"].as_f64().expect("a number") > 0.5 * elapsed, "{link}");
}

#[test]
fn ten_seconds_at_a_cap_of_20_mbit_are_exact_to_two_percent() {
    let (site, proxy) = syncing("20 Mbit/s");
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    let mut slowest = 0.0_f64;
    assert_rate(&site, &proxy, 10, 20_000_000, |_| {
        let stopwatch = Stopwatch::start();
        assert_eq!(client.write(0, &[0x5a; 4096]).expect("an answer"), 0);
        slowest = slowest.max(stopwatch.seconds());
    });
    assert!(slowest < 1.0, "P4: a write took {slowest:.3} s while the link was full");
    drop(client);
    site.finish(&[]);
}

#[test]
fn at_a_cap_of_1_mbit_the_link_stays_up_under_a_backlog() {
    let (site, proxy) = syncing("1 Mbit/s");
    assert_rate(&site, &proxy, 12, 1_000_000, |site| {
        for peer in [&site.source.status()["peer"], &site.target.status()["peers"][0]] {
            let heard = peer["heard_seconds_ago"].as_f64().unwrap_or(f64::MAX);
            assert!(peer["connected"] == true && heard < 3.0, "heartbeats come every second: {peer}");
        }
    });
    assert_eq!(site.source.log().matches("connected to the master-target").count(), 1);
    site.finish(&[]);
}

#[test]
fn fio_at_full_speed_over_10_mbit_leaves_memory_bounded_and_the_disks_identical() {
    let figures = Capped { seconds: 10, disk_bytes: 8 * MIB, compared: false, seed: random::seed(411) }.run();
    eprintln!("{figures:?}");
}

#[test]
fn whichever_agent_is_killed_ten_times_the_group_comes_back_and_nothing_is_lost() {
    let seed = random::seed(412);
    let tell = |cycle, victim: Role, seconds| eprintln!("cycle {cycle}: {} back in {seconds:.1} s", victim.binary());
    KillLoop { victim: None, cycles: 10, seed }.run(tell);
}
