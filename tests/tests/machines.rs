//! A group of several machines (R7, F5): one order over all their disks, one point for all of them.

use tests::load::{Load, Pace};
use tests::random;
use tests::site::Site;
use tests::verdict::{self, assert_targets_equal_sources, judge_all, judge_sources, model_with_content};

const MIB: u64 = 1 << 20;

/// Two machines, each with a disk `os`.
fn two_machines() -> Site {
    let mut site = Site::new(&[12 * MIB, 8 * MIB]);
    for (index, disk) in site.disks.iter_mut().enumerate() {
        let (old, new) = (
            format!("[[group.disk]]\nname = \"{}\"", disk.name),
            format!("[[group.machine]]\nname = \"web-{index}\"\n[[group.machine.disk]]\nname = \"os\""),
        );
        for config in [&mut site.source_config, &mut site.target_config] {
            assert!(config.contains(&old), "{config}");
            *config = config.replace(&old, &new);
        }
        disk.name = format!("web-{index}.os");
    }
    site
}

#[test]
fn machines_of_a_group_share_their_points() {
    let mut site = two_machines();
    let model = model_with_content(&site);
    site.start();
    let pace = Pace { seed: random::seed(131), writes_per_second: 120, sectors_used: 16384, trims: true };
    let load = Load::start(&model, &site.clients(2, 4), pace);
    let mut taken = Vec::new();
    for _ in 0..3 {
        load.wait_for_writes(120);
        taken.push(verdict::take(&site, &model, None));
    }
    let summary = load.stop();
    assert_eq!((summary.dropped, summary.refused.len()), (0, 0), "{summary:?}");
    taken.push(verdict::take(&site, &model, Some("the end")));
    judge_sources(&site, &model);
    judge_all(&site, &model, &taken);
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}
