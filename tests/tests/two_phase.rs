//! A counter that is written to one disk, and to the other only once the first has acknowledged it (P1): no point of the group
//! shows the second ahead of the first, under random load on other disks.
//!
//! `BACKHAUL_POINTS=1000` judges more points than the tests of a day do.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use tests::load::{Load, Pace};
use tests::nbd::Connection;
use tests::site::Site;
use tests::verdict::model_with_content;
use tests::{random, wait};

const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;

fn points_wanted() -> usize {
    std::env::var("BACKHAUL_POINTS").ok().and_then(|points| points.parse().ok()).unwrap_or(100)
}

/// The counter that a restored disk holds.
fn counter(site: &Site, disk: usize, point: &str) -> u64 {
    let file = site.restore(disk, point);
    let content = fs::read(&file).expect("a restored disk");
    fs::remove_file(&file).expect("its removal");
    let (number, rest) = content[..SECTOR].split_first_chunk().expect("a sector");
    assert!(rest.iter().all(|byte| *byte == number[0]), "the sector is whole");
    u64::from_le_bytes(*number)
}

/// A sector that holds a number, and its lowest byte all over.
fn sector(number: u64) -> [u8; SECTOR] {
    let mut bytes = [number.to_le_bytes()[0]; SECTOR];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

#[test]
fn no_point_shows_the_second_disk_ahead_of_the_first() {
    let wanted = points_wanted();
    let mut site = Site::new(&[MIB, MIB, 12 * MIB, 8 * MIB]);
    site.source_config = site.source_config.replace("point_interval = \"1s\"", "point_interval = \"100ms\"");
    let model = model_with_content(&site);
    for disk in &site.disks[..2] {
        let source = fs::OpenOptions::new().write(true).open(&disk.source).expect("a source");
        source.write_all_at(&sector(0), 0).expect("the first number");
    }
    site.start();
    // The counters' own disks are no part of the random load.
    let clients: Vec<_> = site.clients(1, 4).into_iter().filter(|client| client.disk >= 2).collect();
    let pace = Pace { seed: random::seed(141), writes_per_second: 200, sectors_used: 16384, trims: true };
    let load = Load::start(&model, &clients, pace);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let open = |disk: usize| Connection::open(&site.disks[disk].nbd, &site.export(disk)).expect("a client");
            let (mut first, mut second) = (open(0), open(1));
            for number in (1..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                assert_eq!(first.write(0, &sector(number)).expect("a write"), 0);
                assert_eq!(second.write(0, &sector(number)).expect("a write"), 0);
            }
        });
        wait::until("the points", std::time::Duration::from_secs(60 + wanted as u64), || {
            let points = site.points().len();
            if points >= wanted { Ok(()) } else { Err(points) }
        });
        stop.store(true, Ordering::Relaxed);
    });
    let summary = load.stop();
    assert_eq!((summary.dropped, summary.refused.len()), (0, 0), "{summary:?}");
    let points = site.points();
    let (mut moved, mut last) = (0, 0);
    for point in &points {
        let (first, second) = (counter(&site, 0, &point.id), counter(&site, 1, &point.id));
        assert!(
            first == second || first == second + 1,
            "point {}: the first disk says {first}, the second {second}",
            point.id
        );
        assert!(first >= last, "point {}: {first} after {last}", point.id);
        moved += usize::from(first > last);
        last = first;
    }
    assert!(moved > points.len() / 2, "the counter stood still in most points: {moved} of {}", points.len());
    println!("{} points, the counter at {last} in the newest", points.len());
    site.finish(&[]);
}
