//! Either agent stopped or killed while clients write: nothing is lost, no point lies, no full copy is made (R3, P4, P5).

use tests::guest::Model;
use tests::load::{Load, Pace};
use tests::nbd::Connection;
use tests::site::{GROUP, SYNC_MAX, Site};
use tests::verdict::{self, assert_targets_equal_sources, judge_all, judge_sources, model_with_content};
use tests::{image, random, tool, wait};

const MIB: u64 = 1 << 20;

/// Which agent, and how it ends.
type Blow = fn(&mut Site);

fn through_a_restart(seed: u64, blow: Blow, again: Blow, clients_notice: bool) {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let model = model_with_content(&site);
    site.start();
    let pace = Pace { seed: random::seed(seed), writes_per_second: 100, sectors_used: 16384, trims: true };
    let load = Load::start(&model, &site.clients(2, 6), pace);
    let mut taken = Vec::new();
    for _ in 0..2 {
        load.wait_for_writes(120);
        taken.push(verdict::take(&site, &model, None));
        blow(&mut site);
        if !clients_notice {
            // P4: the guest's writes never wait for the link.
            load.wait_for_writes(100);
        }
        again(&mut site);
        load.wait_for_writes(100);
        site.wait_protected();
        taken.push(verdict::take(&site, &model, None));
    }
    let summary = load.stop();
    assert!(summary.refused.is_empty(), "{summary:?}");
    assert_eq!(summary.dropped > 0, clients_notice, "{summary:?}");
    taken.push(verdict::take(&site, &model, None));
    judge_sources(&site, &model);
    judge_all(&site, &model, &taken);
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn nothing_is_lost_when_the_source_agent_is_restarted() {
    through_a_restart(201, |site| site.source.stop(), Site::start_source, true);
}

#[test]
fn nothing_is_lost_when_the_source_agent_is_killed() {
    through_a_restart(202, |site| site.source.kill(), Site::start_source, true);
}

#[test]
fn nothing_is_lost_when_the_target_agent_is_restarted() {
    through_a_restart(203, |site| site.target.stop(), Site::start_target, false);
}

#[test]
fn nothing_is_lost_when_the_target_agent_is_killed() {
    through_a_restart(204, |site| site.target.kill(), Site::start_target, false);
}

#[test]
fn after_an_outage_of_the_target_only_what_it_has_not_got_is_sent() {
    let mut site = Site::new(&[64 * MIB]);
    let model = Model::new(&[64 * MIB]);
    for megabyte in 0..48 {
        image::fill(&site.disks[0].source, &model, 0, megabyte * 2048, 1024);
    }
    site.start();
    site.wait_applied();
    let sent = |site: &Site| site.source.group(GROUP)["sent_bytes"].as_u64().expect("a number");
    let full = sent(&site);
    assert!(full > 8 * MIB, "half of 24 MiB does not compress, but {full} bytes were sent");
    site.target.kill();
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    assert_eq!(client.write(40 * MIB, &[0x5a; 4096]).expect("a write"), 0);
    site.start_target();
    site.point(None);
    let again = sent(&site) - full;
    assert!(again < MIB, "{again} bytes were sent after an outage with one block written");
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

/// The machine of the source was built anew: its disks are there, what the agent knew of them is not.
#[test]
fn a_source_that_lost_its_state_goes_on_with_its_points_once_it_claims_its_group() {
    let mut site = Site::new(&[8 * MIB]);
    let model = model_with_content(&site);
    site.start();
    let pace = Pace { seed: random::seed(206), writes_per_second: 100, sectors_used: 8192, trims: true };
    let load = Load::start(&model, &site.clients(1, 4), pace);
    load.wait_for_writes(100);
    let before = verdict::take(&site, &model, None);
    site.source.stop();
    let _ = load.stop();
    site.start_source();
    site.wait_protected();
    let claim = |past: &str| tool::run(tool::binary("process-server"), claim_words(&site, past));
    let said = claim("7").fails_with(1);
    assert!(said.stderr.contains("is in use"), "a running agent is not robbed of its group: {said:?}");
    site.source.stop();
    std::fs::remove_dir_all(site.path().join("process-server")).expect("the state is gone");
    site.start_source();
    let reason = wait::until("the refusal", SYNC_MAX, || {
        let reason = site.source.group(GROUP)["reason"].to_string();
        if reason.contains("--past 2") { Ok(reason) } else { Err(reason) }
    });
    assert!(reason.contains("clone") && reason.contains("process-server claim --group web --past 2"), "{reason}");
    site.source.stop();
    tool::run(tool::binary("process-server"), claim_words(&site, "2")).ok();
    site.start_source();
    site.wait_protected();
    let after = verdict::take(&site, &model, None);
    judge_all(&site, &model, &[before, after]);
    assert_targets_equal_sources(&site);
    site.finish(&["clone"]);
}

fn claim_words(site: &Site, past: &str) -> Vec<String> {
    let config = site.path().join("process-server.toml").to_string_lossy().into_owned();
    ["claim", "--config", &config, "--group", GROUP, "--past", past].map(str::to_owned).to_vec()
}
