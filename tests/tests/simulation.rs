//! Both agents in one process on simulated disks: fixed seeds, and every seed that ever found a mistake, with its story.
//!
//! `make sim` plays fresh seeds, `make sim SEED=n` one again. docs/simulation.md says what is judged.

use tests::sim::{Played, log, try_play};

/// Seeds that found something, each with what it was. A seed plays another run when the simulation itself changes, so what
/// it found has a test of its own beside the code as well.
const STORIES: &[(u64, &str)] = &[
    (2066, "a target that came back from an image counted its own start, and so hid that it was behind"),
    (7191, "so did the mark with which it synced an open catching-up before any source had come"),
    (404607, "a failback that locked its source out in the middle of a set found a journal that was not synced"),
    (409084, "a part found a block of its set on disk that it had not read"),
    (
        412033,
        "a sync that failed while a failback put its point stopped the journal, and repeating it did not open it anew",
    ),
    (428656, "the same, at another step"),
    (412921, "what a failed flush had lost was in no record until the next good one"),
    (400575, "a point held a sector that rotted while a verification ran"),
    (420029, "a reader met the failing sync of the block sums, and the next one took them for synced"),
    (437592, "the same, for a point that had been read before"),
    (700567, "the world let a sector rot twice, which made it right again, and the judge waited for it to be found"),
    (701696, "a world in which much rots at once had no room for all repairs, and did not wait for it"),
    (706874, "the judge took sums for known of a table whose head was lost with the power"),
    (703006, "a block that rotted unnoticed was saved and then mended, and later points still read what was saved"),
    (603259, "the judge took a failure from before the end of the faults, found after it, for a new one"),
    (712479, "a failback to a point that went by age after it was chosen could never end"),
];

/// Fresh every time the simulation changes, the same on every machine.
const FIXED: std::ops::Range<u64> = 0..150;

fn play_all(seeds: impl Iterator<Item = u64>) -> Played {
    log::keep();
    let mut sum = Played::default();
    for seed in seeds {
        let played = try_play(seed).unwrap_or_else(|why| panic!("{why}"));
        sum.points += played.points;
        sum.lives += played.lives;
        sum.verified += played.verified;
        sum.failbacks += played.failbacks;
        sum.rotted += played.rotted;
        sum.refused += played.refused;
    }
    sum
}

#[test]
fn every_point_is_a_prefix_of_what_the_guest_was_told_and_both_sides_end_the_same() {
    let sum = play_all(FIXED);
    let seeds = FIXED.end - FIXED.start;
    assert!(sum.points > seeds * 3, "{} points are too few to show anything", sum.points);
    assert!(sum.rotted > seeds / 2 && sum.refused > seeds / 2, "{sum:?}");
    assert!(sum.lives > seeds && sum.failbacks > 0 && sum.verified > seeds / 10, "{sum:?}");
}

#[test]
fn seeds_that_found_a_mistake_find_none_now() {
    play_all(STORIES.iter().map(|(seed, _)| *seed));
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    for seed in [3, 17, 40] {
        assert_eq!(try_play(seed), try_play(seed), "seed {seed}");
    }
}

/// Without a rule the judge finds something. All of them, over more seeds: `make sim-rules`.
#[test]
fn the_judge_misses_rules_that_are_switched_off() {
    use process_server::rules::Rule;
    log::keep();
    for rule in [Rule::OverlapsWait, Rule::DroppedIsDirty, Rule::BusyKeepsMarks, Rule::ExactHasSets] {
        let is_caught = (0..200).any(|seed| rule.off(|| try_play(seed).is_err()));
        assert!(is_caught, "200 seeds say nothing of {rule:?}");
    }
}
