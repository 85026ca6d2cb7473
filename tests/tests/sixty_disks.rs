//! A group as large as is promised: 60 disks, one point for all of them (M3, P1, F5).

use std::fs;

use tests::mounts::{listed, mount, open, unmount};
use tests::nbd::Connection;
use tests::site::{GROUP, Site};

const MIB: u64 = 1 << 20;
const DISKS: usize = 60;
/// What each agent may use, in bytes: some megabytes for each disk, in a debug build.
const MEMORY_MAX: u64 = 1 << 30;

/// What a round writes to a disk.
fn content(disk: usize, round: u8) -> Vec<u8> {
    vec![disk as u8 ^ (round << 6) ^ 0x1f; 64 << 10]
}

fn write(site: &Site, round: u8) {
    for (index, disk) in site.disks.iter().enumerate() {
        let mut client = Connection::open(&disk.nbd, &site.export(index)).expect("a client");
        assert_eq!(client.write(512 << 10, &content(index, round)).expect("an answer"), 0, "disk {index}");
    }
}

#[test]
fn sixty_disks_have_their_points_in_common_and_are_mounted_restored_and_failed_back_together() {
    let mut site = Site::new(&[2 * MIB; DISKS]);
    site.start();
    write(&site, 1);
    let first = site.point(Some("first"));
    write(&site, 2);
    site.point(Some("second"));
    site.wait_applied();

    let mounted = mount(&site, &first, "all", &[]);
    assert_eq!((mounted.uris.len(), listed(&site).len()), (DISKS, DISKS));
    for (index, disk) in site.disks.iter().enumerate() {
        let mut reader = open(&mounted, &disk.name);
        let read = reader.read(512 << 10, 64 << 10).expect("a read");
        assert!(read == content(index, 1), "disk {index} at the first point");
    }
    unmount(&site, &mounted);
    for index in [0, 31, DISKS - 1] {
        let restored = fs::read(site.restore(index, "second")).expect("a file");
        assert!(restored[512 << 10..576 << 10] == content(index, 2), "disk {index} at the second point");
    }
    let report = site.target.ask(&["failback", "--group", GROUP, "--point", "first", "--json"]).ok().json();
    let disks = report["disks"].as_array().expect("disks");
    assert!(disks.len() == DISKS && disks.iter().all(|disk| disk["checksum"].is_string()), "{report}");
    let (source, target) = (site.source.peak_memory(), site.target.peak_memory());
    println!(
        "{DISKS} disks: peak memory {} MiB of process-server, {} MiB of master-target",
        source >> 20,
        target >> 20
    );
    assert!(source < MEMORY_MAX && target < MEMORY_MAX, "{source} and {target} bytes");
    site.target.ask(&["failback", "--group", GROUP, "--point", "second"]).ok();
    (0..DISKS).for_each(|disk| site.assert_vmdk_equals_source(disk));
    site.finish(&[]);
}
