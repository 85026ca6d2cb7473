//! The group core against a simulated disk, link, target and guest: seeded, in virtual time.
//!
//! `world` injects (slow and failing disk operations, lost links, target crashes); `judge` holds what every point must
//! be. A failure prints its seed; `one_seed` replays it.

mod judge;
mod target;
mod world;

use world::World;

fn run(seed: u64, steps: u32) {
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.step();
    }
    world.settle();
}

#[test]
fn every_point_is_a_prefix_of_what_the_guest_was_told_and_the_copy_converges() {
    let seeds = std::env::var("GROUP_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(150);
    let from = std::env::var("GROUP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let mut points = 0;
    for seed in from..from + seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..1200 {
                world.step();
            }
            if seed % 3 == 0 {
                world.fail_back();
            } else {
                world.settle();
            }
            world.points_judged()
        });
        match outcome {
            Ok(judged) => points += judged,
            Err(_) => {
                panic!("seed {seed} failed; replay: GROUP_SEED={seed} GROUP_SEEDS=1 cargo test -p process-server group")
            }
        }
    }
    assert!(points > seeds, "the seeds made {points} points, too few to show anything");
}

#[test]
fn a_long_run_stays_consistent() {
    run(1_000_003, 20_000);
}
