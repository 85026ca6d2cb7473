//! Long operations are jobs of their agent: listed, followed, cancelled, and kept across restarts (A2).

use std::time::Duration;

use serde_json::Value;
use tests::agent::Agent;
use tests::site::{GROUP, SYNC_MAX, Site};
use tests::verdict::model_with_content;
use tests::wait;

const MIB: u64 = 1 << 20;

fn jobs(agent: &Agent) -> Vec<Value> {
    agent.ask(&["jobs", "--json"]).ok().json().as_array().expect("jobs").clone()
}

#[track_caller]
fn of_kind(agent: &Agent, kind: &str) -> Value {
    let jobs = jobs(agent);
    let found = jobs.iter().find(|job| job["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind} among {jobs:?}")).clone()
}

#[track_caller]
fn assert_done(job: &Value) {
    assert_eq!(job["state"], "done", "{job}");
    assert_eq!(job["group"], GROUP, "{job}");
    assert!(job["id"].is_u64() && job["result"].is_string() && job["error"].is_null(), "{job}");
    assert!(job["began"].is_string() && job["ended"].is_string() && job["seconds"].is_number(), "{job}");
}

#[test]
fn what_was_done_is_listed_newest_first_and_kept_across_restarts() {
    let mut site = Site::new(&[16 * MIB]);
    let _model = model_with_content(&site);
    site.start();
    let wait_for = |site: &Site, kind: &str| {
        wait::until("the synchronisation to be over", SYNC_MAX, || {
            let job = jobs(&site.source).into_iter().find(|job| job["kind"] == kind);
            match job {
                Some(job) if job["state"] == "done" => Ok(()),
                job => Err(job),
            }
        });
        assert_done(&of_kind(&site.source, kind));
    };
    wait_for(&site, "initial-sync");
    let verified = site.source.ask(&["verify", "--group", GROUP]).ok();
    let verify = of_kind(&site.source, "verify");
    assert_done(&verify);
    let id = verify["id"].as_u64().expect("an id");
    assert!(verified.stderr.contains(&format!("job {id}:")), "{verified:?}");

    let point = site.point(None);
    std::fs::remove_file(site.restore(0, &point)).expect("the restored file");
    site.target.ask(&["scrub", "--group", GROUP]).ok();
    assert_done(&of_kind(&site.target, "restore"));
    assert_done(&of_kind(&site.target, "scrub"));
    let before = jobs(&site.target);
    assert_eq!(before.iter().map(|job| job["kind"].as_str()).collect::<Vec<_>>(), [Some("scrub"), Some("restore")]);
    site.target.stop();
    site.source.kill();
    site.start_target();
    site.start_source();
    site.wait_protected();
    assert_eq!(jobs(&site.target), before);
    wait_for(&site, "resync");
    assert_eq!(of_kind(&site.source, "verify"), verify);

    let id = before[0]["id"].as_u64().expect("an id").to_string();
    let followed = site.target.ask(&["jobs", "follow", &id]).ok();
    assert!(followed.stdout.contains("scrub of group web: done"), "{followed:?}");
    site.target.ask(&["jobs", "cancel", &id]).fails_with(1).says("ended already");
    site.target.ask(&["jobs", "cancel", "99"]).fails_with(1).says("no job 99");
    let table = site.target.ask(&["jobs"]).ok();
    assert!(table.stdout.contains("restore") && table.stdout.lines().count() == 3, "{table:?}");
    site.finish(&["nothing heard"]);
}

#[test]
fn a_restore_goes_on_without_its_command_is_followed_and_cancelled_and_one_that_was_killed_is_interrupted() {
    let mut site = Site::new(&[3 << 30]);
    site.start();
    let point = site.point(None);
    let folder = site.path().to_owned();
    let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let name = site.disks[0].name.clone();
    let restore = |to: &str| {
        let words = ["restore", "--group", GROUP, "--disk", &name, "--point", &point, "--to", to];
        site.target.ask_within(Duration::from_millis(300), &words)
    };
    let first = restore(&file("first.raw"));
    assert_eq!(first.code, None, "the command was interrupted: {first:?}");
    let job = of_kind(&site.target, "restore");
    assert_eq!(job["state"], "running", "{job}");
    assert!(job["total_bytes"] == 3_u64 << 30 && job["step"].is_string(), "{job}");
    let id = job["id"].as_u64().expect("an id").to_string();
    site.target.ask(&["jobs", "cancel", &id]).ok();
    site.target.ask(&["jobs", "follow", &id]).fails_with(1).says("cancelled");
    assert_eq!(of_kind(&site.target, "restore")["state"], "cancelled");
    assert!(!site.path().join("first.raw").exists(), "what is cancelled leaves nothing");

    restore(&file("second.raw"));
    let job = of_kind(&site.target, "restore");
    assert_eq!(job["state"], "running", "{job}");
    site.target.kill();
    site.start_target();
    let job = of_kind(&site.target, "restore");
    assert_eq!((job["state"].as_str(), job["ended"].is_string()), (Some("interrupted"), true), "{job}");
    site.finish(&[]);
}
