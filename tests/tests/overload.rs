//! More than memory takes at once: spooling to the cache volume, and back to streaming, with every point kept (P4).

use std::time::Duration;

use serde_json::Value;
use tests::guest::{Kind, Model};
use tests::nbd::Connection;
use tests::site::{GROUP, Site};
use tests::verdict::{self, assert_targets_equal_sources, judge_all, judge_sources, model_with_content};
use tests::wait;

const MIB: u64 = 1 << 20;
/// Sectors of one write of a burst.
const WRITE: u64 = 2048;
/// Beside the memory budget: code, buffers of requests and of the link, bitmaps, the pool's idle buffers.
const BESIDE_MEMORY: u64 = 224 * MIB;

/// Writes `count` times a mebibyte, on both disks in turn, as fast as the export takes it.
fn burst(site: &Site, model: &Model, count: u64) {
    let open = |disk: usize| Connection::open(&site.disks[disk].nbd, &site.export(disk)).expect("a client");
    let mut clients = [open(0), open(1)];
    for index in 0..count {
        let disk = index % 2;
        let places = site.disks[disk as usize].size / MIB;
        let sector = index / 2 % places * WRITE;
        let write = model.issue(disk as u32, sector, WRITE, Kind::Data);
        let answer = clients[disk as usize].write(sector * 512, &model.content(write)).expect("an answer");
        assert_eq!(answer, 0);
        model.acknowledge(write);
    }
}

fn number(group: &Value, key: &str) -> u64 {
    group[key].as_u64().unwrap_or_else(|| panic!("{key} is a number: {group}"))
}

#[test]
fn a_burst_larger_than_memory_goes_through_the_spool_and_every_point_of_it_is_kept() {
    let mut site = Site::new(&[8 * MIB, 8 * MIB]);
    site.give_cache("64MiB", "512MiB");
    site.cap("100 Mbit/s");
    let model = model_with_content(&site);
    site.start();
    let sets_before = number(&site.source.group(GROUP), "acked_set");
    burst(&site, &model, 96);
    let group = site.source.group(GROUP);
    assert_eq!(group["state"], "spooling", "{group}");
    assert!(group["reason"].as_str().is_some_and(|reason| reason.starts_with("memory-budget")), "{group}");
    assert!(number(&group, "spool_bytes") > 16 * MIB && number(&group, "spool_limit_bytes") == 512 * MIB, "{group}");
    assert!(number(&group, "memory_bytes") <= number(&group, "memory_limit_bytes"), "{group}");
    assert!(number(&group, "backlog_bytes") > 48 * MIB, "most of it waits: {group}");

    site.wait_protected_within(Duration::from_secs(60));
    let taken = verdict::take(&site, &model, Some("after the burst"));
    wait::until("the spool to be empty", Duration::from_secs(20), || {
        let group = site.source.group(GROUP);
        if number(&group, "spool_bytes") == 0 { Ok(()) } else { Err(group) }
    });
    let group = site.source.group(GROUP);
    let totals = &group["state_totals"];
    assert!(totals["spooling"].as_f64().expect("seconds") > 1.0, "{group}");
    let changes = site.source.log().matches("state=catching-up").count();
    assert_eq!(changes, 1, "only the first synchronisation: nothing went through the bitmap");
    judge_sources(&site, &model);
    let points = judge_all(&site, &model, &[taken]);
    let burst_points = points.iter().filter(|point| point.set > sets_before).count();
    assert!(burst_points >= 10, "a set is cut at an eighth of the memory: {points:?}");
    assert_targets_equal_sources(&site);
    let peak = site.source.peak_memory();
    assert!(peak < 64 * MIB + BESIDE_MEMORY, "the process-server has used {} MiB", peak / MIB);
    assert_eq!(std::fs::read_dir(site.path().join("cache")).expect("the folder").count(), 0, "the file has no name");
    site.finish(&[]);
}
