//! What ends a mount, and what a mount does not stop: age, a full volume, a fault, a kill, a failback, damage (F2, J12).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tests::load::{Load, Pace};
use tests::mounted::Mounted;
use tests::mounts::{copy, listed, mount, open, unmount};
use tests::nbd::{Command, Connection, EIO};
use tests::site::{GROUP, SYNC_MAX, Site};
use tests::verdict::{assert_targets_equal_sources, model_with_content};
use tests::{image, random, wait};

const MIB: u64 = 1 << 20;

fn pace(seed: u64) -> Pace {
    Pace { seed: random::seed(seed), writes_per_second: 120, sectors_used: 16384, trims: true }
}

fn journal_bytes(site: &Site) -> u64 {
    site.target.group(GROUP)["journal_bytes"].as_u64().expect("a number")
}

/// A small file system in place of the retention folder, before the site is started.
fn small_retention(site: &Site, mebibytes: u64) -> Mounted {
    Mounted::new(&site.path().join("retention.image"), &site.path().join("retention"), mebibytes)
}

#[test]
#[ignore = "needs root: loop devices"]
fn a_mounted_point_outlives_its_age_and_gives_way_only_to_a_full_volume() {
    let mut site = Site::new(&[8 * MIB]);
    site.target_config = site.target_config.replace("retention = \"24h\"", "retention = \"1s\"");
    // A generation ends at 1/16 of the volume.
    let _volume = small_retention(&site, 48);
    let model = model_with_content(&site);
    site.start();
    let load = Load::start(&model, &site.clients(2, 4), Pace { sectors_used: 12_000, ..pace(803) });
    load.wait_for_writes(60);
    let old = site.point(Some("old"));
    let mounted = mount(&site, "old", "old", &[]);
    let copied = image::read(&copy(&site, &mounted.uris[0], "first"));
    let is_listed = |point: &str| site.points().iter().any(|listed| listed.id == point);
    for mebibytes in [10, 16, 22] {
        wait::until("generations to come and go", SYNC_MAX, || {
            let bytes = journal_bytes(&site);
            if bytes > mebibytes * MIB { Ok(()) } else { Err(bytes) }
        });
        let now = image::read(&copy(&site, &mounted.uris[0], &format!("at-{mebibytes}")));
        assert!(now == copied, "the mounted point has changed");
        assert!(is_listed(&old), "the point of a mount was removed");
    }
    unmount(&site, &mounted);
    wait::until("the point to go for its age", SYNC_MAX, || if is_listed(&old) { Err(site.points()) } else { Ok(()) });

    // What a mount pins is all that is left to give up: replication goes on, the mount does not.
    let second = mount(&site, "latest", "second", &[]);
    let (mut reader, mut is_read) = (open(&second, "disk0"), true);
    wait::until("the mount to be ended", SYNC_MAX * 2, || {
        is_read = is_read && reader.read(0, 65536).is_ok();
        let found = listed(&site);
        if found.is_empty() { Ok(()) } else { Err((journal_bytes(&site), is_read)) }
    });
    is_read = is_read && reader.read(0, 4096).is_ok();
    assert!(!is_read && !second.socket.exists());
    load.wait_for_writes(60);
    let summary = load.stop();
    assert_eq!((summary.dropped, summary.refused.len()), (0, 0), "{summary:?}");
    site.wait_protected();
    site.point(None);
    assert_targets_equal_sources(&site);
    site.target.stop();
    site.finish(&["a mount or restore ends", "a mount is ended", "dropped: retention volume full", "got an I/O error"]);
}

#[test]
#[ignore = "needs root: loop devices"]
fn a_group_that_fails_ends_its_mounts_and_can_be_mounted_again_when_it_is_back() {
    let mut site = Site::new(&[4 * MIB]);
    let volume = small_retention(&site, 64);
    site.start();
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    assert_eq!(client.write(0, &[5; 65536]).expect("a write"), 0);
    let point = site.point(None);
    let mounted = mount(&site, &point, "f", &[]);
    let mut reader = open(&mounted, "disk0");
    reader.read(0, 4096).expect("a read");
    volume.fail();
    assert_eq!(client.write(MIB, &[6; 65536]).expect("a write"), 0);
    wait::until("the mount to be ended", SYNC_MAX, || {
        let found = listed(&site);
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
    assert!(reader.read(0, 4096).is_err() && !mounted.socket.exists());
    volume.unmount_when_free();
    volume.mount();
    site.wait_protected();
    let again = mount(&site, &point, "f", &[]);
    assert_eq!(open(&again, "disk0").read(0, 65536).expect("a read"), [5; 65536]);
    site.target.stop();
    site.finish(&["the group", "journal", "read-only", "Read-only", "failed"]);
}

#[test]
fn a_killed_agent_leaves_nothing_that_hinders_the_next_and_a_stopped_one_leaves_nothing() {
    let mut site = Site::new(&[4 * MIB]);
    site.start();
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    assert_eq!(client.write(0, &[5; 65536]).expect("a write"), 0);
    let point = site.point(None);
    let mounted = mount(&site, &point, "k", &["--writable"]);
    let mut reader = open(&mounted, "disk0");
    assert_eq!(reader.write(0, &[6; 4096]).expect("a write"), 0);
    site.target.kill();
    assert!(reader.read(0, 512).is_err(), "the mount ends with the agent");
    site.start_target();
    assert!(listed(&site).is_empty());
    site.wait_protected();
    let again = mount(&site, &point, "k", &["--writable"]);
    let mut reader = open(&again, "disk0");
    assert_eq!(reader.read(0, 65536).expect("a read"), [5; 65536]);
    site.target.stop();
    assert!(!again.socket.exists(), "a stopped agent removes its sockets");
    assert!(reader.read(0, 512).is_err());
    let left = fs::read_dir(site.path().join("master-target")).expect("a folder").flatten();
    let left: Vec<String> = left.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(left.iter().all(|name| !name.starts_with("overlay")), "{left:?}");
    site.finish(&[]);
}

#[test]
fn a_failback_ends_the_mounts_of_its_group_before_it_hands_the_disks_over() {
    let mut site = Site::new(&[4 * MIB]);
    site.start();
    let point = site.point(None);
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    assert_eq!(client.write(0, &[5; 4096]).expect("a write"), 0);
    site.point(None);
    let mounted = mount(&site, &point, "f", &[]);
    let mut reader = open(&mounted, "disk0");
    reader.read(0, 4096).expect("a read");
    site.target.ask(&["failback", "--group", GROUP]).ok();
    assert!(reader.read(0, 4096).is_err() && !mounted.socket.exists() && listed(&site).is_empty());
    // Handed over, points can be mounted again; another choice ends that, too.
    let again = mount(&site, &point, "g", &[]);
    let mut reader = open(&again, "disk0");
    assert_eq!(reader.read(0, 4096).expect("a read"), [0; 4096]);
    site.target.ask(&["failback", "--group", GROUP, "--point", &point]).ok();
    assert!(reader.read(0, 4096).is_err() && !again.socket.exists() && listed(&site).is_empty());
    site.finish(&[]);
}

#[test]
fn a_damaged_byte_is_an_io_error_there_alone_and_named_in_the_log() {
    let mut site = Site::new(&[4 * MIB]);
    site.start();
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise_byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let noise: Vec<u8> = (0..65536).map(|_| noise_byte()).collect();
    assert_eq!(client.write(MIB, &noise).expect("a write"), 0);
    let point = site.point(None);
    // The newest redo ends with this set and its commit.
    let segment = newest(&site, "redo-");
    let bytes = fs::read(&segment).expect("a segment");
    let at = bytes.windows(64).position(|window| window == &noise[1024..1088]).expect("noise is stored as it is");
    let file = OpenOptions::new().write(true).open(&segment).expect("a segment");
    file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("a write");
    let mounted = mount(&site, &point, "d", &[]);
    let mut reader = open(&mounted, "disk0");
    for _ in 0..30 {
        let done = reader.call(Command::Read, 0, MIB, 4096, &[]).expect("an answer");
        assert_eq!(done.error, EIO);
    }
    assert_eq!(reader.read(2 * MIB, 4096).expect("a read elsewhere"), [0; 4096]);
    let log = site.target.log();
    let named: Vec<&str> = log.lines().filter(|line| line.contains("got an I/O error")).collect();
    assert!(named[0].contains(&*segment.to_string_lossy()) && named[0].contains("offset"), "{named:?}");
    assert_eq!(named.len(), 20, "a client that tries again and again does not fill the log");
    site.finish(&["got an I/O error"]);
}

fn newest(site: &Site, kind: &str) -> PathBuf {
    let mut found = Vec::new();
    collect(&site.path().join("retention"), &mut found);
    found.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with(kind) && !name.contains('.')
    });
    found.sort();
    found.pop().expect("a segment")
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        match entry.path() {
            path if path.is_dir() => collect(&path, found),
            path => found.push(path),
        }
    }
}
