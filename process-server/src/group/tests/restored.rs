//! A source that comes back from an image and can't reach the target at once (rule L1, REVIEW W6), and one that is killed
//! while the doubt in a target from an image is not durable (rule S12).

use super::shows;
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
fn comes_back_from_an_image(seed: u64) {
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
}

#[test]
fn lives_without_a_link_do_not_hide_that_a_source_came_back_from_an_image() {
    shows(Rule::NumbersWaitForTarget, comes_back_from_an_image);
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

/// The target comes back from an image that lacks block 20 of disk 0; the source notices, and is killed before its marks
/// say so. Meanwhile the target's counter may have risen to what the marks know.
fn doubt_that_is_not_durable(seed: u64) {
    let mut world = World::calm(seed, 400_000, 0);
    world.settle();
    world.until(|world| !world.group.tracked.intent.any() && world.ops_are_done());
    let image = world.target.image();
    world.guest_writes_at(0, 160, 8, false);
    world.acknowledged();
    world.until(|world| !world.group.tracked.intent.any() && world.ops_are_done());
    world.drop_link();
    let known = world.target.counter;
    world.target.restore(image);
    world.marks_get_stuck();
    let mut steps = 0;
    world.until(|world| {
        steps += 1;
        world.target.counter >= known || steps == 500
    });
    world.stuck_marks_are_lost();
    world.is_killed(None);
    world.settle();
}

#[test]
fn a_doubt_is_durable_before_the_target_goes_on() {
    shows(Rule::DoubtIsDurableFirst, doubt_that_is_not_durable);
}
