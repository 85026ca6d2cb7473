//! A disk that can't be read or flushed for a while: the guest writes on, and what the target lacks comes to it afterwards
//! (S17, REVIEW W10).

use proto::ids::DiskIndex;

use super::shows;
use super::world::World;
use crate::control::GroupState;
use crate::rules::Rule;
use crate::send::ToLink;

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

/// A set is sent, its seal arrives and its part does not. Then a block that it holds on disk can't be read before a guest
/// overwrites it, and the link is lost. The set is no point, though the target keeps the first seal it was given.
fn late_loss(seed: u64) {
    let mut world = World::calm(seed, 400_000, 0);
    world.settle();
    world.target.rot(0, 40);
    world.target.tell_missing();
    world.answer();
    world.hold_the_link();
    let seal = world.link.iter().position(|message| matches!(message, ToLink::Seal(_))).expect("the set is sealed");
    let Some(ToLink::Seal(seal)) = world.link.remove(seal) else { unreachable!("it was found above") };
    let number = seal.number;
    assert!(seal.is_point && seal.unreadable_bytes == 0);
    world.target.receive(ToLink::Seal(seal));
    world.reads_fail = true;
    world.guest_writes_at(0, 40, 8, false);
    world.hold_the_link();
    world.reads_fail = false;
    world.drop_link();
    world.settle();
    assert!(world.target.last_set > number, "the group goes on");
    assert!(!world.target.listed.contains(&number), "seed {seed}: it is taken for a point");
}

#[test]
fn a_set_that_lost_a_block_after_its_seal_had_arrived_is_no_point() {
    shows(Rule::BeliedIsToldAnew, late_loss);
}

/// Until every write and read has ended, soon.
fn disks_rest(world: &mut World) {
    while !(world.guest.is_empty() && world.ops_are_done()) {
        world.disk_progress();
        world.passes(1000);
    }
}

/// What a disk that can't be flushed may have lost is in the record of a clean stop: but for the marks, nothing else says so.
fn stops_while_unflushable(seed: u64) {
    let mut world = World::calm(seed, 400_000, 0);
    world.settle();
    world.guest_writes_at(0, 40, 8, false);
    disks_rest(&mut world);
    let flush = world.group.flush_begins(DiskIndex(0));
    world.group.flush_ended(DiskIndex(0), flush, false);
    let has_block = |world: &World| {
        let (_, suspect) = world.group.exact();
        suspect.iter().any(|(disk, block, blocks)| *disk == 0 && (*block..*block + *blocks).contains(&5))
    };
    assert!(has_block(&world));
    world.settle();
    assert!(!has_block(&world), "it was read again after a flush that succeeded");
}

#[test]
fn the_record_of_a_clean_stop_has_what_an_unflushable_disk_may_have_lost() {
    shows(Rule::ExactHasUnflushed, stops_while_unflushable);
}

/// What was acknowledged falls back when a flush fails, and the disk can't be flushed for long: the copy is what the
/// guest reads now.
fn falls_back_for_long(seed: u64) {
    let mut world = World::calm(seed, 400_000, 0);
    world.settle();
    world.flushes_fail(Some(0));
    world.guest_writes_at(0, 40, 24, false);
    world.acknowledged();
    world.until(|world| world.group.unflushable().is_some());
    world.acknowledged();
    assert!(world.broken().fell_back > 0, "seed {seed}");
    world.compare();
}

/// A flush fails, what it was for is still there when it is read again, and falls back only before the next flush, which
/// succeeds.
fn falls_back_late(seed: u64) {
    let mut world = World::calm(seed, 400_000, 0);
    world.settle();
    world.guest_writes_at(0, 40, 24, false);
    disks_rest(&mut world);
    let flush = world.group.flush_begins(DiskIndex(0));
    world.group.flush_ended(DiskIndex(0), flush, false);
    world.passes(1000);
    world.acknowledged();
    world.falls_back(0);
    assert!(world.broken().fell_back > 0 && world.group.unflushable().is_some(), "seed {seed}");
    world.until(|world| world.group.unflushable().is_none());
    world.acknowledged();
    world.compare();
}

#[test]
fn what_a_failed_flush_may_have_lost_is_read_at_once_and_after_the_next_good_flush() {
    shows(Rule::ReadAgainAfterFailedFlush, falls_back_for_long);
    shows(Rule::ReadAgainAfterGoodFlush, falls_back_late);
}

/// A disk could not be read for long, and can now, when a failback begins.
fn fail_back_after_blindness(seed: u64) {
    let mut world = synchronised_blind(seed);
    for _ in 0..3 {
        world.passes(120_000_000);
        world.until(|world| world.ops_are_done());
    }
    world.reads_fail = false;
    world.fail_back();
    assert_eq!(world.group.unreadable_bytes(), 0, "seed {seed}");
}

/// A disk could not be flushed and fell back behind what the target has, and can be flushed when a failback begins.
fn fail_back_after_a_failed_flush(seed: u64) {
    let mut world = World::calm(seed, 400_000, 0);
    world.settle();
    world.guest_writes_at(0, 40, 24, false);
    world.until(|world| world.guest.is_empty() && world.group.snapshot().backlog_bytes == 0);
    world.guest_flush_fails(0);
    world.fail_back();
    assert_eq!(world.group.unflushable(), None, "seed {seed}");
}

#[test]
fn what_a_disk_failed_to_do_is_tried_once_more_before_a_failback_takes_the_last_set() {
    shows(Rule::FenceTriesAgain, fail_back_after_blindness);
    shows(Rule::FenceTriesAgain, fail_back_after_a_failed_flush);
}

#[test]
fn a_disk_that_stays_broken_does_not_hold_up_a_failback() {
    let mut world = synchronised_blind(1);
    world.target.ask_fence();
    world.until(|world| world.target.fenced.is_some());
    assert!(world.target.fenced.is_some() && world.group.unreadable_bytes() > 0);
}

/// Reads begin and never end: only the time that a last try may take ends the wait.
#[test]
fn a_disk_that_never_answers_holds_up_a_failback_for_a_minute_and_no_longer() {
    let mut world = synchronised_blind(1);
    let wait = |world: &mut World, seconds: u64| {
        for _ in 0..seconds * 10 {
            world.link_progress();
            world.target.work();
            world.answer();
            world.raise_link();
            world.passes(100_000);
        }
    };
    world.target.ask_fence();
    wait(&mut world, 55);
    assert!(!world.ops_are_done(), "a block is being tried once more");
    assert_eq!(world.group.state(), GroupState::Fenced);
    assert!(world.target.fenced.is_none(), "it may still be read");
    wait(&mut world, 15);
    assert!(world.target.fenced.is_some(), "the failback goes on without it");
}
