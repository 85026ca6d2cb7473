//! The group core against a simulated disk, link, target and guest: seeded, in virtual time.
//!
//! `world` injects (slow and failing disk operations, lost links, crashes of either side, losses of power); `judge` holds
//! what every point must be. A failure prints its seed; `make sim SEED=n` replays it.

mod deltas;
mod fence;
mod judge;
mod ladder;
mod restored;
mod target;
mod unreadable;
mod verify;
mod world;

use world::{Broken, World};

use crate::rules::Rule;

fn run(seed: u64, steps: u32) {
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.step();
    }
    world.settle();
}

/// Runs a seed to its end, one way or another.
fn play(seed: u64) -> World {
    let mut world = World::new(seed);
    world.warm_up();
    for _ in 0..if world.slow.0 { 2400 } else { 1200 } {
        world.step();
    }
    if seed.is_multiple_of(3) {
        world.fail_back();
        if seed.is_multiple_of(2) {
            world.cancel_failback();
        }
    } else {
        world.settle();
    }
    world
}

#[test]
fn every_point_is_a_prefix_of_what_the_guest_was_told_and_the_copy_converges() {
    let seeds = std::env::var("GROUP_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(150);
    let from = std::env::var("GROUP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let (mut points, mut restarts, mut unmarked, mut same) = (0, 0, 0, 0);
    let (mut verified, mut different) = (0, 0);
    let mut broken = Broken::default();
    let (mut spooled, mut read, mut flipped, mut failed) = (0, 0, 0, 0);
    for seed in from..from + seeds {
        match std::panic::catch_unwind(|| play(seed)) {
            Ok(world) => {
                points += world.points_judged();
                restarts += world.restarts();
                unmarked += world.unmarked();
                same += world.same_sectors();
                verified += world.verified.ended;
                different += world.verified.differences;
                broken.add(world.broken());
                spooled += world.cache.written;
                read += world.cache.read;
                flipped += world.cache.flipped;
                failed += world.cache.failed;
            }
            Err(_) => {
                panic!("seed {seed} failed; replay: make sim SEED={seed}")
            }
        }
    }
    println!("{seeds} seeds: {points} points, {restarts} starts, {unmarked} regions unmarked, {same} sectors the same");
    println!("{verified} verifications found {different} places");
    println!("{broken:?}");
    println!("{spooled} chunks spooled, {read} reads of them, {flipped} with flipped bytes; {failed} failures");
    if seeds < 100 {
        return;
    }
    assert!(spooled > seeds && read > seeds, "the seeds show nothing of the spool");
    assert!(flipped > seeds / 20 && failed > seeds / 10, "the seeds show nothing of a cache volume that fails");
    assert!(verified > seeds / 2 && different > seeds / 10, "the seeds show nothing of verifications");
    let Broken { failed_commits, notes, starts_with_note, restored, fell_back } = broken;
    assert!(failed_commits > seeds / 3 && notes > seeds / 10, "the seeds show nothing of a failing state volume");
    assert!(fell_back > seeds, "the seeds show nothing of flushes that fail");
    assert!(starts_with_note > 2 && restored > seeds / 50, "the seeds show nothing of starts after it, or of images");
    assert!(points > seeds, "the seeds made {points} points, too few to show anything");
    assert!(restarts > seeds / 10 && unmarked > seeds && same > seeds, "the seeds show nothing of restarts");
}

/// Seeds that found something, each with what it was. A seed plays another run when the simulation itself changes.
const STORIES: &[(u64, &str)] = &[
    (1346, "the record of a stop did not have what a disk that could not be flushed had lost"),
    (950, "nor did a verification know of it"),
    (1972, "the world ended while the target still had to say that it had lost the group"),
    (3160, "the same"),
    (13422, "the world's disk took back what a flush had kept, when an earlier flush ended after it"),
    (15006, "the same"),
    (15570, "the same"),
    (
        14931,
        "a fence was reported while the source knew of a block that it could not read a moment ago, and did not try it again",
    ),
    (8850, "the same of a disk that could not be flushed and had fallen back behind the target"),
    (13878, "the same"),
    (14250, "the same"),
    (
        12598,
        "the world's target lost a note in an image that the source, which asked for one itself, had not heard of yet",
    ),
    (12998, "a source from an image lived without a link until its marks had the number that the target had seen"),
];

#[test]
fn seeds_that_found_a_mistake_find_none_now() {
    for (seed, story) in STORIES {
        assert!(std::panic::catch_unwind(|| play(*seed)).is_ok(), "seed {seed} fails again: {story}");
    }
}

/// Rules whose absence the seeds of a day's tests meet too rarely; `make sim-rules` tries them too.
const RARE: [Rule; 12] = [
    Rule::UnmarkingNeedsMark,
    Rule::VoidBeforeUnmarkedWrites,
    Rule::AllMarkedBeforeLift,
    Rule::LostVoidIsRenewed,
    Rule::SpoolIsChecked,
    Rule::SpoolWritesKeepRoom,
    Rule::EmptiedAlone,
    Rule::CounterIsChecked,
    Rule::OldMarksAreDoubt,
    Rule::DoubtIsWhole,
    Rule::TouchedIsAskedAgain,
    Rule::UnsettledIsAskedAgain,
];

/// Each rule is there for something: without it the judge finds a wrong point, a lost write or a standstill.
#[test]
fn each_rule_that_is_switched_off_is_missed() {
    let asked: Option<u64> = std::env::var("RULE_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let seeds = asked.unwrap_or(200);
    let only = std::env::var("RULE").ok();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    let is_named = |rule: &Rule| only.as_ref().is_none_or(|only| format!("{rule:?}").contains(only));
    let is_tried = |rule: &Rule| is_named(rule) && (asked.is_some() || !RARE.contains(rule));
    for rule in Rule::ALL.into_iter().filter(is_tried) {
        let caught = (0..seeds).find(|seed| rule.off(|| std::panic::catch_unwind(|| play(*seed)).is_err()));
        match caught {
            Some(seed) => println!("{rule:?}: caught after {} seeds", seed + 1),
            None => missed.push(rule),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "{seeds} seeds say nothing of {missed:?}");
}

/// Plays a scenario made for one rule: with all rules it finds nothing, and without this one it does.
fn shows(rule: Rule, scenario: impl Fn(u64) + std::panic::RefUnwindSafe) {
    (0..20).for_each(&scenario);
    let caught = (0..20).find(|seed| rule.off(|| std::panic::catch_unwind(|| scenario(*seed)).is_err()));
    match caught {
        Some(seed) => println!("{rule:?}: caught after {} seeds of its own scenario", seed + 1),
        None => panic!("without {rule:?} its own scenario finds nothing"),
    }
}

#[test]
fn a_long_run_stays_consistent() {
    run(1_000_003, 20_000);
}
