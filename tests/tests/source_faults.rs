//! Faults of the source's machine: a state volume that fails and comes back, a protected disk that is full or can't be
//! read. The guest keeps writing wherever that is possible, the state says what is wrong, the log is not flooded, and the
//! group comes back by itself. They need root.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;

use tests::faulty_disk::{FaultyDisk, Request};
use tests::guest::Bounds;
use tests::load::{Load, Pace};
use tests::loop_device::LoopDevice;
use tests::mounted::Mounted;
use tests::nbd::{Connection, ENOSPC};
use tests::random::{self, Random};
use tests::site::{GROUP, SYNC_MAX, Site};
use tests::torture::history::fail_back;
use tests::verdict::{self, assert_targets_equal_sources, judge_point, judge_sources, model_with_content};
use tests::wait::{Stopwatch, until};

const MIB: u64 = 1 << 20;
const EIO: u32 = 5;
/// Lines about one trouble, at most: it begins, and it may be said once more.
const LINES_MAX: usize = 3;

fn client(site: &Site) -> Connection {
    Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client")
}

/// A mebibyte that doesn't compress.
fn mebibyte(seed: u64) -> Vec<u8> {
    Random::new(seed).noise(MIB as usize)
}

/// Everything that was written before is on the target, and the copy is the same.
#[track_caller]
fn assert_same_at_a_point(site: &Site) {
    let _ = site.point(None);
    assert_targets_equal_sources(site);
}

/// A flood would be one line for each of thousands of failures.
fn assert_no_flood(site: &Site) {
    let alarms = site.source.alarms(&[]);
    assert!(alarms.len() <= LINES_MAX, "{} lines:\n{}", alarms.len(), alarms.join("\n"));
}

fn reason(site: &Site) -> String {
    site.source.group(GROUP)["reason"].as_str().unwrap_or_default().to_owned()
}

fn wait_for_reason(site: &Site, text: &str) {
    until(text, SYNC_MAX, || {
        let seen = reason(site);
        if seen.contains(text) { Ok(()) } else { Err(seen) }
    });
}

/// The state of the process-server lies on a volume of its own; nothing is marked any more.
fn with_state_volume() -> (Site, Mounted) {
    let mut site = Site::new(&[64 * MIB]);
    let volume = Mounted::new(&site.path().join("state.img"), &site.path().join("process-server"), 16);
    site.start();
    assert_eq!(client(&site).write(0, &mebibyte(1)).expect("an answer"), 0);
    let _ = site.point(None);
    until("the marks to be cleared", SYNC_MAX, || {
        let marks = fs::read(site.path().join("process-server/groups/web/web.marks")).expect("the marks");
        let set: u32 = marks.chunks_exact(4096).flat_map(|page| &page[64..]).map(|byte| byte.count_ones()).sum();
        if set == 0 { Ok(()) } else { Err(set) }
    });
    (site, volume)
}

#[test]
#[ignore = "needs root: loop devices"]
fn guests_write_on_while_the_state_volume_fails_and_the_marks_are_good_again_when_it_is_back() {
    let (site, volume) = with_state_volume();
    volume.fail();
    let mut client = client(&site);
    let clock = Stopwatch::start();
    for megabyte in 20..24 {
        assert_eq!(client.write(megabyte * MIB, &mebibyte(megabyte)).expect("an answer"), 0);
    }
    // The first waits for the target's note, no longer than that.
    assert!(clock.seconds() < 5.0, "writes took {} s", clock.seconds());
    wait_for_reason(&site, "state-volume: the write-intent marks can't be written; guest writes go on");
    let _ = site.point(None);

    volume.unmount();
    volume.mount();
    until("the marks to be written again", SYNC_MAX, || {
        let log = site.target.log();
        let seen = reason(&site);
        if log.contains("marks count again") && seen.is_empty() { Ok(()) } else { Err(seen) }
    });
    assert_no_flood(&site);
    assert_same_at_a_point(&site);
    site.finish(&["the write-intent marks can't be written"]);
}

#[test]
#[ignore = "needs root: loop devices"]
fn a_crash_while_the_state_volume_fails_costs_a_comparison_of_everything_and_loses_nothing() {
    let (mut site, volume) = with_state_volume();
    volume.fail();
    assert_eq!(client(&site).write(20 * MIB, &mebibyte(2)).expect("an answer"), 0);
    wait_for_reason(&site, "guest writes go on");
    site.target.kill();
    // No mark says so, and the target does not have it.
    assert_eq!(client(&site).write(40 * MIB, &mebibyte(3)).expect("an answer"), 0);
    site.source.kill();
    volume.unmount();
    volume.mount();
    site.start_target();
    site.start_source();
    site.wait_protected();
    assert!(site.source.log().contains("marks-void"), "it is said why everything is compared");
    assert_same_at_a_point(&site);
    site.finish(&["the write-intent marks can't be written"]);
}

#[test]
#[ignore = "needs root: loop devices"]
fn a_state_volume_that_is_full_or_can_be_written_no_more_for_a_while_stops_no_guest() {
    let (site, volume) = with_state_volume();
    volume.fill(0);
    for megabyte in 30..34 {
        assert_eq!(client(&site).write(megabyte * MIB, &mebibyte(megabyte)).expect("an answer"), 0);
    }
    assert_eq!(reason(&site), "", "the marks have their room");
    volume.make_room();
    assert_same_at_a_point(&site);
    site.finish(&[]);
}

#[test]
#[ignore = "needs root: loop devices"]
fn a_guest_that_fills_the_volume_of_its_disk_is_told_so_and_the_copy_stays_the_same() {
    let mut volumes = Vec::new();
    let mut site = Site::with_disks(&[48 * MIB], |root, disk| {
        let volume = Mounted::new(&root.join("disks.img"), &root.join("disks"), 96);
        disk.source = root.join("disks/disk0.img");
        tests::image::create(&disk.source, disk.size);
        volumes.push(volume);
    });
    let volume = volumes.pop().expect("a volume");
    site.start();
    volume.fill(MIB);
    let mut writer = client(&site);
    let errors: Vec<u32> =
        (0..32).map(|index| writer.write(index * MIB, &mebibyte(index)).expect("an answer")).collect();
    assert!(errors.iter().all(|error| [0, ENOSPC].contains(error)), "{errors:?}");
    assert!(errors.iter().filter(|error| **error == ENOSPC).count() > 20, "{errors:?}");
    assert_same_at_a_point(&site);
    volume.make_room();
    assert_eq!(writer.write(30 * MIB, &mebibyte(9)).expect("an answer"), 0);
    assert_no_flood(&site);
    assert_same_at_a_point(&site);
    site.finish(&["guest writes fail"]);
}

/// A disk behind a loop device, and the file behind that.
fn behind_a_loop_device(size: u64, room_mib: u64) -> (Site, PathBuf, LoopDevice, Mounted) {
    let mut made = Vec::new();
    let site = Site::with_disks(&[size], |root, disk| {
        let volume = Mounted::new(&root.join("disks.img"), &root.join("disks"), room_mib);
        let backing = root.join("disks/backing.img");
        tests::image::create(&backing, disk.size);
        let device = LoopDevice::attach(&backing, 512);
        disk.source = device.path().to_owned();
        made.push((backing, device, volume));
    });
    let (backing, device, volume) = made.pop().expect("it was made");
    (site, backing, device, volume)
}

#[test]
#[ignore = "needs root: loop devices"]
fn a_device_that_fails_writes_gives_the_guest_the_error_and_the_copy_what_is_really_there() {
    let (mut site, _backing, _device, volume) = behind_a_loop_device(48 * MIB, 96);
    site.start();
    volume.fill(MIB);
    let mut writer = client(&site);
    let errors: Vec<u32> =
        (0..32).map(|index| writer.write(index * MIB, &mebibyte(index)).expect("an answer")).collect();
    assert!(errors.iter().all(|error| [0, EIO, ENOSPC].contains(error)), "{errors:?}");
    assert!(errors.iter().filter(|error| **error != 0).count() > 20, "{errors:?}");
    assert_same_at_a_point(&site);
    volume.make_room();
    for index in 0..32 {
        assert_eq!(writer.write(index * MIB, &mebibyte(index + 50)).expect("an answer"), 0);
    }
    assert_eq!(writer.flush().expect("an answer"), 0);
    assert_no_flood(&site);
    assert_same_at_a_point(&site);
    site.finish(&["guest writes fail"]);
}

#[test]
#[ignore = "needs root: loop devices"]
fn blocks_that_cannot_be_read_hold_up_neither_the_guest_nor_the_rest_and_come_when_they_are_written() {
    let (mut site, backing, _device, _volume) = behind_a_loop_device(16 * MIB, 96);
    // What lies beyond the end of the file behind the device can't be read.
    let file = OpenOptions::new().write(true).open(&backing).expect("the file");
    file.set_len(12 * MIB).expect("a shorter file");
    site.start_target();
    site.start_source();
    let mut guest = client(&site);
    until("the readable part to be there", SYNC_MAX, || {
        assert_eq!(guest.write(MIB, &mebibyte(5)).expect("an answer"), 0);
        let state = site.source.group(GROUP);
        if state["state"] == "streaming" { Ok(()) } else { Err(state) }
    });
    // Written anew, they can be read, and are sent.
    for megabyte in 12..16 {
        assert_eq!(guest.write(megabyte * MIB, &mebibyte(megabyte)).expect("an answer"), 0);
    }
    site.wait_protected();
    assert_no_flood(&site);
    assert_same_at_a_point(&site);
    site.finish(&["can't be read for replication"]);
}

/// A disk that fails a part of its requests at random under load, and is well again: three times each kind.
#[test]
#[ignore = "needs root: fuse"]
fn a_disk_that_fails_at_random_costs_the_guest_its_own_errors_and_the_copy_nothing() {
    let mut made = Vec::new();
    let mut site = Site::with_disks(&[16 * MIB], |root, disk| {
        let faulty = FaultyDisk::new(&root.join("faulty"), disk.size, 30);
        disk.source = faulty.path();
        made.push(faulty);
    });
    let disk = made.pop().expect("it was made");
    let model = model_with_content(&site);
    site.start();
    let pace = Pace { seed: random::seed(501), writes_per_second: 100, sectors_used: 16384, trims: false };
    let load = Load::start(&model, &site.clients(2, 4), pace);
    load.wait_for_writes(100);
    for _ in 0..3 {
        for request in [Request::Write, Request::Read] {
            disk.fail(request);
            load.wait_for_writes(60);
            disk.mend(request);
            load.wait_for_writes(60);
        }
    }
    site.wait_protected();
    let summary = load.stop();
    // What could not be read is read again from time to time (S17), and is in the next point then.
    let last = until("a point that lacks nothing", SYNC_MAX, || {
        let taken = verdict::take(&site, &model, None);
        let points = site.points();
        let point = points.iter().find(|point| point.id == taken.id).expect("it was taken");
        if point.unreadable_bytes == 0 { Ok(taken) } else { Err(point.unreadable_bytes) }
    });
    assert_eq!(summary.dropped, 0, "{summary:?}");
    assert!(summary.refused.keys().all(|error| *error == EIO), "{summary:?}");
    assert!(summary.refused.values().sum::<u64>() > 20, "the disk has failed: {summary:?}");
    assert_no_flood(&site);
    judge_sources(&site, &model);
    // A point that says that older content stands for blocks may lack them; all others are judged, and the last is one.
    let points = site.points();
    let whole: Vec<_> = points.iter().filter(|point| point.unreadable_bytes == 0).collect();
    assert!(whole.len() >= 3, "those before the faults and the last: {points:?}");
    let mut horizon = 0;
    for point in whole {
        let bounds = Bounds { must_hold_before: horizon, ..Bounds::default() };
        horizon = judge_point(&site, &model, &point.id, bounds).horizon;
    }
    judge_point(&site, &model, &last.id, last.bounds());
    assert_targets_equal_sources(&site);
    fail_back(&site, &model);
    site.finish(&["guest writes fail", "can't be read for replication"]);
}
