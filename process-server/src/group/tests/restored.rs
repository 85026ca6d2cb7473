//! A source that comes back from an image and can't reach the target at once (rule L1, REVIEW W6).

use super::world::World;
use crate::rules::Rule;

/// Until nothing is under way at the disks; the link stays as it is.
fn rests(world: &mut World) {
    for _ in 0..20 {
        world.hold_the_link();
        if world.ops_are_done() && world.guest.is_empty() {
            return;
        }
    }
}

/// What the guest writes becomes marked, at other places in each life.
fn writes(world: &mut World, block: u64) {
    world.guest_writes_at(1, block * 8, 8, false);
    rests(world);
}

/// After an image of the source was taken, the target gets new content of block 20 of disk 0. The source comes back from
/// the image, and lives and is killed a few times without a link: each life commits marks.
fn comes_back_from_an_image(seed: u64) -> World {
    let mut world = World::calm(seed, 400_000, 0);
    world.settle();
    world.until(|world| !world.group.tracked.intent.any() && world.ops_are_done());
    let image = world.source_image();
    world.guest_writes_at(0, 160, 8, false);
    world.settle();
    rests(&mut world);
    world.is_killed(Some(image));
    for life in 0..4 {
        writes(&mut world, life * 4);
        world.is_killed(None);
    }
    world.settle();
    world
}

#[test]
fn lives_without_a_link_do_not_hide_that_a_source_came_back_from_an_image() {
    for seed in 0..20 {
        comes_back_from_an_image(seed);
    }
    let is_missed =
        |seed| Rule::NumbersWaitForTarget.off(|| std::panic::catch_unwind(|| comes_back_from_an_image(seed)).is_err());
    assert!((0..20).any(is_missed), "without the rule the target keeps what the source does not have");
}

/// The image is taken in a life without a link, and the guest writes to an unmarked region in the same life, before the
/// target is heard: what it gets then is newer than the image.
#[test]
fn an_image_of_a_life_without_a_link_is_older_than_what_that_life_sends_later() {
    for seed in 0..20 {
        let mut world = World::calm(seed, 400_000, 0);
        world.settle();
        world.until(|world| !world.group.tracked.intent.any() && world.ops_are_done());
        rests(&mut world);
        world.is_killed(None);
        writes(&mut world, 0);
        let image = world.source_image();
        world.guest_writes_at(0, 160, 8, false);
        rests(&mut world);
        world.settle();
        rests(&mut world);
        world.is_killed(Some(image));
        world.settle();
    }
}
