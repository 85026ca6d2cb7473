//! What goes wrong around disks that are added and removed: points without a disk that is asked for, kills in the middle of
//! a change, a removed disk whose target is gone (R3, R7, F2, F5).

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tests::changing::{Configs, Kept, judge_whole, stop, two_of_three, write};
use tests::guest::Model;
use tests::load::{Load, Pace};
use tests::mounts::{copy, mount, socket, unmount};
use tests::random::{self, Random};
use tests::site::{GROUP, SYNC_MAX, Site};
use tests::tool::Output;
use tests::verdict::{self, model_with_content};
use tests::{image, tool};

/// Asks for a mount of one disk, or of all, at the socket `no`.
#[track_caller]
fn mount_refused(site: &Site, point: &str, disk: Option<usize>) -> Output {
    let socket = socket(site, "no");
    let nbd = format!("unix:{}", socket.display());
    let mut words = vec!["mount", "--group", GROUP, "--point", point, "--nbd", &nbd];
    words.extend(disk.iter().flat_map(|disk| ["--disk", site.disks[*disk].name.as_str()]));
    let output = site.target.ask(&words).fails_with(1);
    assert!(!socket.exists(), "nothing listens where nothing is mounted");
    output
}

/// One disk of a point, restored and mounted alone, is what was copied.
#[track_caller]
fn check_alone(site: &Site, kept: &Kept, disk: usize) {
    let (_, expected) = kept.copies.iter().find(|(at, _)| *at == disk).expect("the point has the disk");
    let restored = site.restore(disk, &kept.id);
    image::assert_same(&restored, expected);
    fs::remove_file(restored).expect("a file");
    let mounted = mount(site, &kept.id, "alone", &["--disk", &site.disks[disk].name]);
    assert_eq!(mounted.uris.len(), 1, "{:?}", mounted.uris);
    let copied = copy(site, &mounted.uris[0], "alone");
    image::assert_same(&copied, expected);
    fs::remove_file(copied).expect("a file");
    unmount(site, &mounted);
}

#[test]
fn f2_a_disk_that_a_point_has_not_got_is_not_mounted_and_the_refusal_says_what_it_has() {
    let (mut site, configs, _model, _first, second) = two_of_three(941);
    stop(&mut site);
    configs.choose(&mut site, &[1, 2]);
    site.start();
    let third = Kept::take(&site, &[1, 2]);
    for (kept, disk, has) in [(&second, 2, "disk0, disk1"), (&third, 0, "disk1, disk2")] {
        let said = format!(
            "disk \"disk{disk}\" was not in group \"{GROUP}\" at point {}, which has {has}: choose one of these, or another point",
            kept.id
        );
        mount_refused(&site, &kept.id, Some(disk)).says(&said);
        let file = site.path().join("no.raw");
        site.restore_to(disk, &kept.id, &file, "raw").fails_with(1).says(&said);
        assert!(!file.exists());
    }
    let nbd = format!("unix:{}", socket(&site, "no").display());
    let words = ["mount", "--group", GROUP, "--point", &third.id, "--nbd", &nbd, "--disk", "disk9"];
    site.target.ask(&words).fails_with(1).says("has no disk \"disk9\": its disks are disk0, disk1, disk2");
    for (kept, disk) in [(&second, 0), (&second, 1), (&third, 1), (&third, 2)] {
        check_alone(&site, kept, disk);
    }
    site.finish(&[]);
}

/// Which agent is killed.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Source,
    Target,
}

impl Victim {
    /// Starts both agents with these disks, and kills one of them after a while. Both are down before and after.
    fn dies_at_some_time(self, site: &mut Site, (configs, disks): (&Configs, &[usize]), random: &mut Random) {
        configs.choose(site, disks);
        site.start_target();
        let time = Duration::from_millis(random.below(900));
        match self {
            Self::Source => {
                site.write_configs();
                site.source.spawn();
                std::thread::sleep(time);
                site.source.kill();
                site.target.stop();
            }
            Self::Target => {
                site.start_source();
                std::thread::sleep(time);
                site.target.kill();
                site.source.stop();
            }
        }
    }
}

/// Changes the disks again and again, with load on the one that stays, and kills an agent in the middle of each change.
fn killed_while_disks_change(seed: u64, victim: Victim) {
    let (mut site, configs, model, first, second) = two_of_three(seed);
    let mut random = Random::new(random::seed(seed));
    let (mut kept, mut now) = (vec![first, second], vec![0, 1]);
    for (round, next) in (1..).zip([vec![1, 2], vec![1, 0], vec![2, 0, 1]]) {
        let load = load_on_the_one_that_stays(&site, &model, seed + round);
        load.wait_for_writes(50);
        site.source.kill();
        site.target.stop();
        // There and back: kills come before, in and after changes.
        for disks in [&next, &now, &next] {
            victim.dies_at_some_time(&mut site, (&configs, disks), &mut random);
        }
        site.start();
        load.wait_for_writes(50);
        let summary = load.stop();
        assert!(summary.refused.is_empty() && summary.dropped > 0, "{summary:?}");
        kept.push(Kept::take(&site, &next));
        now = next;
    }
    kept.iter().for_each(|one| one.check(&site));
    let taken = write(&site, &model, &[0, 1, 2], seed + 9);
    judge_whole(&site, &model, &taken);
    verdict::judge_sources(&site, &model);
    verdict::assert_targets_equal_sources(&site);
    site.finish(&[]);
}

fn load_on_the_one_that_stays(site: &Site, model: &Arc<Model>, seed: u64) -> Load {
    let clients: Vec<_> = site.clients(2, 4).into_iter().filter(|client| client.disk == 1).collect();
    Load::start(model, &clients, Pace { seed, writes_per_second: 120, sectors_used: 16384, trims: true })
}

#[test]
fn r3_points_stay_right_when_the_source_is_killed_again_and_again_while_its_disks_change() {
    killed_while_disks_change(951, Victim::Source);
}

#[test]
fn r3_points_stay_right_when_the_target_is_killed_again_and_again_while_its_disks_change() {
    killed_while_disks_change(961, Victim::Target);
}

#[test]
fn r7_mounts_that_are_made_while_disks_change_do_not_hold_up_the_change() {
    let (mut site, configs, _model, first, _second) = two_of_three(981);
    for disks in [&[1, 2][..], &[0, 1], &[2, 1, 0]] {
        stop(&mut site);
        configs.choose(&mut site, disks);
        site.start_target();
        let nbd = format!("unix:{}", socket(&site, "often").display());
        let (source, target) = (&mut site.source, &site.target);
        let made = std::thread::scope(|scope| {
            let words = ["mount", "--group", GROUP, "--point", &first.id, "--nbd", &nbd];
            // None can be made in the middle of a change.
            let mounting = scope.spawn(move || {
                let mut made = 0;
                for _ in 0..40 {
                    made += u32::from(target.ask_within(SYNC_MAX, &words).code == Some(0));
                    target.ask(&["unmount", "--all"]).ok();
                }
                made
            });
            source.start();
            mounting.join().expect("the mounts were asked for")
        });
        assert!(made > 0);
        site.wait_protected();
    }
    site.finish(&[]);
}

/// Moves both files of the first disk's VMDK to a folder, or back.
fn carry(site: &Site, way: Way) {
    let (here, there) = (site.path().join("datastore/web"), site.path().join("away"));
    fs::create_dir_all(&there).expect("a folder");
    let (from, to) = match way {
        Way::Away => (here, there),
        Way::Back => (there, here),
    };
    for name in ["disk0.vmdk", "disk0-flat.vmdk"] {
        tool::run("mv", [from.join(name), to.join(name)]).ok();
    }
}

enum Way {
    Away,
    Back,
}

/// Two disks are protected and written, and have a point; the first had its content on the target before, so that what was
/// not written since stands on its VMDK only.
fn two_of_which_one_is_known(seed: u64) -> (Site, Configs, Arc<Model>, Kept) {
    let mut site = Site::new(&[12 << 20, 8 << 20]);
    let configs = Configs::of(&site);
    let model = model_with_content(&site);
    let (from, to) = (site.disks[0].source.to_string_lossy().into_owned(), site.vmdk(0).to_string_lossy().into_owned());
    tool::run("qemu-img", ["convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", &from, &to]).ok();
    site.start();
    write(&site, &model, &[0, 1], seed);
    let kept = Kept::take(&site, &[0, 1]);
    (site, configs, model, kept)
}

/// What works and what does not while the VMDK of the first disk, which was removed, is gone.
#[track_caller]
fn check_what_is_left(site: &Site, before: &Kept, others: &[&Kept]) {
    others.iter().for_each(|kept| kept.check(site));
    check_alone(site, before, 1);
    let said = "disk \"disk0\", which the point needs, can't be opened: it was removed from the group, and its target \
                [ds1] web/disk0.vmdk was not there when the group was opened: bring it back and restart the agent, or \
                choose another point";
    mount_refused(site, &before.id, None).says(said);
    mount_refused(site, &before.id, Some(0)).says(said);
    let file = site.path().join("no.raw");
    site.restore_to(0, &before.id, &file, "raw").fails_with(1).says(said);
    assert!(!file.exists());
    // It is refused before the source is fenced.
    let failback = ["failback", "--group", GROUP, "--point", &before.id];
    site.target.ask(&failback).fails_with(1).says(said);
    site.target.ask(&[&failback[..], &["--dry-run"]].concat()).fails_with(1).says(said);
}

/// Fails the group back to a point, and checks that the targets hold it.
#[track_caller]
fn put(site: &Site, kept: &Kept) {
    let report = site.target.ask(&["failback", "--group", GROUP, "--point", &kept.id, "--json"]).ok().json();
    assert_eq!(report["disks"].as_array().map(Vec::len), Some(kept.copies.len()), "{report}");
    kept.is_on_targets(site);
}

#[test]
fn f5_a_removed_disk_whose_target_is_gone_takes_with_it_only_what_needs_it() {
    let (mut site, configs, model, before) = two_of_which_one_is_known(971);
    stop(&mut site);
    configs.choose(&mut site, &[1]);
    site.start();
    let second = Kept::take(&site, &[1]);
    site.wait_applied();
    site.target.stop();
    carry(&site, Way::Away);
    site.start_target();
    site.wait_protected();
    write(&site, &model, &[1], 972);
    let third = Kept::take(&site, &[1]);
    check_what_is_left(&site, &before, &[&second, &third]);
    site.wait_protected();
    // To other points it is failed back, forth, and protected again.
    put(&site, &third);
    check_what_is_left(&site, &before, &[&second, &third]);
    put(&site, &second);
    site.target.ask(&["reprotect", "--group", GROUP]).ok();
    site.wait_protected();
    check_what_is_left(&site, &before, &[&second, &third]);
    // It comes back as it was.
    site.target.stop();
    carry(&site, Way::Back);
    site.start_target();
    site.wait_protected();
    [&before, &second, &third].iter().for_each(|kept| kept.check(&site));
    put(&site, &before);
    site.finish(&[
        "a disk that was removed from the group can't be opened",
        "the target no longer has what it had acknowledged",
    ]);
}
