//! Block devices on both sides: loop devices as protected disks and as targets (A5). They need root.

use std::fs;
use std::sync::Arc;

use tests::guest::Model;
use tests::load::{Load, Pace};
use tests::loop_device::LoopDevice;
use tests::site::{GROUP, Site};
use tests::verdict::{self, judge_all, judge_sources, model_with_content};
use tests::{image, random};

const MIB: u64 = 1 << 20;

/// A group of one disk between two loop devices; the devices go after the agents.
struct Devices {
    site: Site,
    model: Arc<Model>,
    _source: LoopDevice,
    target: LoopDevice,
}

fn between_loop_devices(source_sector: u32, target_sector: u32) -> Devices {
    let mut devices = Vec::new();
    let site = Site::with_disks(&[16 * MIB], |root, disk| {
        let backing = root.join("target.img");
        image::create(&backing, disk.size);
        let source = LoopDevice::attach(&disk.source, source_sector);
        let target = LoopDevice::attach(&backing, target_sector);
        disk.source = source.path().to_owned();
        disk.target = target.path().to_string_lossy().into_owned();
        devices.extend([source, target]);
    });
    let model = model_with_content(&site);
    let target = devices.pop().expect("two devices");
    let source = devices.pop().expect("two devices");
    Devices { site, model, _source: source, target }
}

fn replicate(source_sector: u32, target_sector: u32, seed: u64) {
    let Devices { mut site, model, _source, target } = between_loop_devices(source_sector, target_sector);
    site.start();
    let pace = Pace { seed: random::seed(seed), writes_per_second: 100, sectors_used: 16384, trims: true };
    let load = Load::start(&model, &site.clients(2, 6), pace);
    load.wait_for_writes(150);
    let mut taken = vec![verdict::take(&site, &model, None)];
    site.source.kill();
    site.start_source();
    load.wait_for_writes(150);
    site.wait_protected();
    taken.push(verdict::take(&site, &model, None));
    let summary = load.stop();
    assert!(summary.refused.is_empty(), "{summary:?}");
    taken.push(verdict::take(&site, &model, None));
    judge_sources(&site, &model);
    judge_all(&site, &model, &taken);
    let report = site.target.ask(&["failback", "--group", GROUP, "--json"]).ok().json();
    assert_eq!(report["disks"][0]["target"].as_str(), Some(site.disks[0].target.as_str()), "{report}");
    image::assert_same(&site.disks[0].source, target.path());
    site.finish(&[]);
}

#[test]
#[ignore = "needs root: loop devices"]
fn a_loop_device_is_replicated_to_a_loop_device() {
    replicate(512, 512, 501);
}

#[test]
#[ignore = "needs root: loop devices"]
fn sectors_of_512_bytes_are_replicated_to_a_device_with_sectors_of_4096() {
    replicate(512, 4096, 502);
}

#[test]
#[ignore = "needs root: loop devices"]
fn a_device_that_somebody_else_holds_is_not_taken_as_a_target() {
    let Devices { mut site, target, _source, .. } = between_loop_devices(512, 512);
    // What mount, LVM and md do: an exclusive open.
    let holder = rustix::fs::open(
        target.path(),
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::EXCL | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    let holder = holder.expect("the device is free");
    site.write_configs();
    site.target.spawn();
    site.source.spawn();
    tests::wait::until("a refusal", tests::site::SYNC_MAX, || {
        let said = if site.target.ended().is_some() {
            site.target.log()
        } else {
            format!(
                "{}{}",
                site.target.ask(&["status", "--json"]).stdout,
                site.source.ask(&["status", "--json"]).stdout
            )
        };
        if said.contains("in use") || said.contains("busy") { Ok(()) } else { Err(said) }
    });
    drop(holder);
    assert!(fs::metadata(target.path()).is_ok());
}
