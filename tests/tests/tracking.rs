//! What crosses the link, and is read, after a crash, a clean stop, or any doubt about the disks (P5, R1): what may differ
//! is compared by digest, and only what differs is sent.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use tests::guest::Model;
use tests::nbd::Connection;
use tests::site::Site;
use tests::verdict::{assert_targets_equal_sources, model_with_content};
use tests::{image, tool};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Bytes that the process-server has put on the link since its start, all of them.
fn sent(site: &Site) -> u64 {
    site.source.status()["link"]["sent_bytes"].as_u64().expect("a number")
}

/// Writes `count` megabytes that don't compress from `from` on.
fn write_noise(site: &Site, from: u64, count: u64, seed: u64) {
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    let mut state = seed | 1;
    for megabyte in 0..count {
        let mut data = vec![0; MIB as usize];
        for word in data.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        assert_eq!(client.write(from + megabyte * MIB, &data).expect("a write"), 0);
    }
    assert_eq!(client.flush().expect("a flush"), 0);
}

/// A site with one disk of this size, replicated with `count` megabytes of noise at its beginning.
fn protected_with(size: u64, count: u64, seed: u64) -> Site {
    let mut site = Site::new(&[size]);
    site.start();
    write_noise(&site, 0, count, seed);
    let _ = site.point(None);
    site
}

#[test]
fn after_a_kill_only_what_was_written_since_the_last_acknowledgement_is_compared_and_sent() {
    const WRITTEN: u64 = 100;
    let mut site = Site::new(&[64 * GIB]);
    site.start();
    write_noise(&site, 3 * GIB, 40, 1);
    let _ = site.point(None);
    // The marks follow the acknowledgements within seconds.
    tests::wait::until("the marks to be cleared", tests::site::SYNC_MAX, || {
        let marks = fs::read(site.path().join("process-server/groups/web/web.marks")).expect("the marks");
        let set: u32 = marks.chunks_exact(4096).flat_map(|page| &page[64..]).map(|byte| byte.count_ones()).sum();
        if set == 0 { Ok(()) } else { Err(set) }
    });
    site.target.kill();
    write_noise(&site, 20 * GIB, WRITTEN, 2);
    site.source.kill();
    site.start_target();
    site.start_source();
    site.wait_protected();
    let (sent, read) = (sent(&site), site.source.read_bytes());
    println!("{WRITTEN} MiB written, {} MiB on the link, {} MiB read, of 64 GiB", sent / MIB, read / MIB);
    assert!((WRITTEN * MIB..2 * WRITTEN * MIB).contains(&sent), "{sent} bytes were sent for {WRITTEN} MiB");
    assert!(read < 4 * WRITTEN * MIB, "{read} bytes were read for {WRITTEN} MiB");
    site.wait_applied();
    site.assert_vmdk_equals_source(0);
    site.finish(&[]);
}

#[test]
fn what_a_kill_leaves_in_doubt_is_compared_and_not_sent_when_the_target_has_it() {
    let mut site = protected_with(256 * MIB, 24, 3);
    // Killed before the marks can be cleared, as far as that goes: what is marked is all on the target.
    site.source.kill();
    site.start_source();
    site.wait_protected();
    let sent = sent(&site);
    assert!(sent < MIB, "{sent} bytes were sent although nothing differs");
    site.wait_applied();
    site.assert_vmdk_equals_source(0);
    site.finish(&[]);
}

#[test]
fn after_a_clean_stop_nothing_is_compared_and_nothing_is_sent() {
    let mut site = Site::new(&[64 * MIB]);
    let _model = model_with_content(&site);
    site.start();
    write_noise(&site, 0, 8, 4);
    let _ = site.point(None);
    site.source.stop();
    assert!(site.path().join("process-server/groups/web/web.clean").exists());
    site.start_source();
    site.wait_protected();
    let (sent, read) = (sent(&site), site.source.read_bytes());
    assert!(sent < 256 << 10, "{sent} bytes were sent after a clean stop");
    assert!(read < MIB, "{read} bytes were read after a clean stop");
    assert!(!site.path().join("process-server/groups/web/web.clean").exists(), "it counts once");
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn what_was_written_while_the_target_was_away_survives_a_clean_stop() {
    let mut site = protected_with(64 * MIB, 8, 5);
    site.target.stop();
    write_noise(&site, 32 * MIB, 3, 6);
    site.source.stop();
    site.start_target();
    site.start_source();
    site.wait_protected();
    let sent = sent(&site);
    assert!((3 * MIB..5 * MIB).contains(&sent), "{sent} bytes were sent for 3 MiB");
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn a_disk_that_was_written_while_the_agent_was_stopped_is_compared() {
    let mut site = protected_with(64 * MIB, 16, 7);
    site.source.stop();
    let disk = OpenOptions::new().write(true).open(&site.disks[0].source).expect("the source");
    disk.write_all_at(&[0x77; 4096], 5 * MIB).expect("a write behind the agent's back");
    drop(disk);
    site.start_source();
    site.wait_protected();
    let sent = sent(&site);
    assert!(sent < MIB, "{sent} bytes were sent for 4 KiB");
    assert!(site.source.log().contains("may have been written while the agent was stopped"), "it is said");
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn another_disk_in_the_place_of_the_old_one_is_compared() {
    let mut site = protected_with(32 * MIB, 16, 8);
    site.source.kill();
    let (disk, copy) = (site.disks[0].source.clone(), site.path().join("copy"));
    fs::copy(&disk, &copy).expect("a copy");
    let file = OpenOptions::new().write(true).open(&copy).expect("the copy");
    file.write_all_at(&[0x11; 512], 9 * MIB).expect("a change");
    tool::run("mv", [&copy, &disk]).ok();
    site.start_source();
    site.wait_protected();
    assert!(site.source.log().contains("not the ones of the last start"), "it is said");
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn a_target_that_was_restored_from_an_image_is_noticed_also_by_a_source_that_was_killed() {
    let mut site = protected_with(32 * MIB, 8, 9);
    site.wait_applied();
    site.target.stop();
    let folder = |name: &str| site.path().join(name);
    for name in ["datastore", "retention", "master-target"] {
        tool::run("cp", ["-a".into(), folder(name), folder(&format!("{name}.image"))]).ok();
    }
    site.start_target();
    site.wait_protected();
    write_noise(&site, 16 * MIB, 8, 10);
    let _ = site.point(None);
    // The marks of the second write are cleared before both are lost.
    std::thread::sleep(std::time::Duration::from_secs(5));
    site.target.kill();
    site.source.kill();
    for name in ["datastore", "retention", "master-target"] {
        let (now, image) = (site.path().join(name), site.path().join(format!("{name}.image")));
        fs::remove_dir_all(&now).expect("the state of now");
        tool::run("mv", [&image, &now]).ok();
    }
    site.start_target();
    site.start_source();
    site.wait_protected();
    assert_targets_equal_sources(&site);
    site.finish(&["no longer has", "was written or replaced by somebody else"]);
}

#[test]
fn an_existing_vmdk_that_differs_in_one_percent_costs_about_that() {
    const SIZE: u64 = 128 * MIB;
    let mut site = Site::new(&[SIZE]);
    let model = Model::new(&[SIZE]);
    for megabyte in 0..SIZE / MIB {
        image::fill(&site.disks[0].source, &model, 0, megabyte * 2048, 2048);
    }
    let (source, vmdk) = (site.disks[0].source.clone(), site.vmdk(0));
    let options = "subformat=monolithicFlat".to_owned();
    let words = ["convert", "-f", "raw", "-O", "vmdk", "-o", &options];
    let words = words.map(str::to_owned).into_iter();
    let files = [source, vmdk.clone()].map(|path| path.to_string_lossy().into_owned());
    tool::run("qemu-img", words.chain(files)).ok();
    let flat = vmdk.with_file_name("disk0-flat.vmdk");
    let flat = OpenOptions::new().write(true).open(flat).expect("the extent of the VMDK");
    for index in 0..SIZE / (6400 << 10) {
        flat.write_all_at(&[0xee; 65536], index * (6400 << 10)).expect("a difference of 64 KiB in 6,400");
    }
    drop(flat);
    site.start();
    let sent = sent(&site);
    println!("{sent} bytes on the link for a VMDK of {SIZE} bytes that differs in 1 %");
    assert!(sent < SIZE * 3 / 100, "{sent} bytes were sent for 1 % of {SIZE}");
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}
