//! What failed once is not believed again before it is opened anew, whoever met the failure (rule J13).

use std::sync::Arc;
use std::time::Duration;

use super::rig::{Rig, filled};
use crate::apply::Applier;
use crate::group::board::Board;
use crate::group::{ApplyCore, ToApply};
use crate::retention::ThinPolicy;
use crate::rules::Rule;

#[test]
fn a_table_of_sums_that_could_not_be_synced_is_not_believed_because_the_next_sync_succeeds() {
    let mut rig = Rig::streaming();
    rig.set(1, 1, &[filled(0, 0, 16, 1)]);
    rig.apply_all();
    let journal = rig.reopened().unwrap();
    rig.volume.fail_syncs(1);
    assert!(journal.sums(0, 0, 1).is_err() && journal.has_stopped());
    assert!(journal.sums(0, 0, 1).is_err(), "the kernel tells of a failure once");
    assert!(
        Rule::FoundSumsAreSynced.off(|| journal.sums(0, 0, 1).is_ok()),
        "nothing else keeps it from being believed"
    );
    println!("FoundSumsAreSynced: caught by its own scenario");
    drop(journal);
    assert!(rig.reopened().unwrap().sums(0, 0, 1).is_ok(), "opened anew, it is synced anew");
}

#[test]
fn a_failure_that_only_a_failback_met_fails_the_group_too() {
    let mut rig = Rig::streaming();
    rig.send(1, 1, &[filled(0, 0, 16, 1)]);
    let applier = Applier::over(rig.journal.clone(), rig.disks.clone());
    let board = Arc::new(Board::new("web", "ps-1", Duration::ZERO));
    let policy = (Duration::from_secs(60), ThinPolicy::default());
    let mut core = ApplyCore::new(applier, rig.journal.clone(), board.clone(), policy);
    let applies = || ToApply::Work(Box::new(|applier: &mut Applier<_, _>| drop(applier.apply_all_and_sync())));
    rig.disks.fail_next(1);
    let failed = core.take(applies(), rig.now).unwrap_err();
    core.fail(&failed);
    assert!(board.has_failed(), "whoever repeats it opens everything anew");
    assert!(core.take(applies(), rig.now).is_err());
}
