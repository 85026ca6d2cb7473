//! A disk that can't be read for a while: the guest writes on, and what the target lacks comes to it afterwards (S17).

use super::world::World;
use crate::control::GroupState;

/// A group whose first synchronisation met a disk that could not be read.
fn synchronised_blind(seed: u64) -> World {
    let mut world = World::calm(seed, 400_000, 0);
    world.reads_fail = true;
    world.until(|world| world.group.state() == GroupState::Streaming && world.ops_are_done());
    assert!(world.group.unreadable_bytes() > 0, "the group streams, and knows what the target lacks");
    world
}

#[test]
fn what_could_not_be_read_for_a_while_reaches_the_target_later() {
    for seed in 0..20 {
        let mut world = synchronised_blind(seed);
        world.reads_fail = false;
        world.until(|world| world.group.unreadable_bytes() == 0);
        assert_eq!(world.group.unreadable_bytes(), 0, "seed {seed}");
        world.settle();
    }
}

#[test]
fn blocks_stay_remembered_while_they_can_not_be_read_and_are_tried_less_and_less_often() {
    let mut world = synchronised_blind(1);
    let before = world.group.unreadable_bytes();
    let mut reads = 0;
    for _ in 0..3 {
        let so_far = world.group.reads_started;
        world.passes(120_000_000);
        world.until(|world| world.ops_are_done());
        reads = world.group.reads_started - so_far;
    }
    assert_eq!(world.group.unreadable_bytes(), before);
    assert!(reads <= 2 * before / blockio::BLOCK, "{reads} reads of {before} bytes in the last minutes");
    assert_eq!(world.group.state(), GroupState::Streaming, "the guest's writes and their points go on");
}

#[test]
fn a_clean_stop_and_the_marks_remember_them() {
    let mut world = synchronised_blind(2);
    let (dirty, _) = world.group.exact();
    let blocks: u64 = dirty.iter().map(|(_, _, blocks)| blocks).sum();
    assert!(blocks * blockio::BLOCK >= world.group.unreadable_bytes());
    // Killed: what is marked is compared after the start, and what differs is sent.
    world.reads_fail = false;
    world.restart();
    world.settle();
}
