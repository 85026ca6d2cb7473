//! Blocks that are written again: the source knows what the target has of them, and never takes it for something else.

use proto::ids::DiskIndex;

use super::world::World;

const MEMORY: u64 = 4 << 20;

/// Writes the same few blocks again and again, parts of them too, while all goes its way.
fn rewritten(seed: u64, steps: u64) -> World {
    let mut world = World::calm(seed, MEMORY, 0);
    world.settle();
    for step in 0..steps {
        if world.guest.len() < 6 {
            let (block, is_part) = (step % 5, step % 11 == 0);
            let (sector, sectors) = if is_part { (block * 8 + 3, 2) } else { (block * 8, 8) };
            world.guest_writes_at((step % 2) as u32, sector, sectors, false);
        }
        for _ in 0..3 {
            world.disk_progress();
        }
        world.link_progress();
        world.target.work();
        world.answer();
        world.passes(2_000);
    }
    world
}

#[test]
fn blocks_that_are_written_again_have_a_base_that_is_what_the_target_holds() {
    // The target judges each base against its disks, at the moment in which the set is applied.
    let used: usize = (0..20).map(|seed| rewritten(seed, 600).target.bases).sum();
    assert!(used > 1000, "{used} bases in 20 runs");
}

/// The blocks of disk 0 that are known after a first synchronisation, and those of them that had a base when each was written.
fn known_and_used(seed: u64, memory_bytes: u64) -> (usize, usize) {
    let mut world = World::calm(seed, memory_bytes, 0);
    world.settle();
    let known: Vec<u64> = (0..24).filter(|block| world.group.recent.base(DiskIndex(0), *block).is_some()).collect();
    for block in &known {
        world.guest_writes_at(0, block * 8, 8, false);
        world.settle();
    }
    (known.len(), world.target.bases)
}

#[test]
fn blocks_that_only_a_first_synchronisation_sent_have_a_base() {
    // With much memory it is one set that is read from the disk, with little it goes in rounds.
    for memory in [MEMORY, 40_000] {
        let all = (0..20).map(|seed| known_and_used(seed, memory));
        let (known, used) = all.fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
        assert!(known > 100, "{known} blocks known after 20 synchronisations with {memory} bytes of memory");
        assert!(used * 10 > known * 8, "{used} of {known} blocks had a base");
    }
}

#[test]
fn nothing_is_known_of_a_target_that_does_not_say_that_it_takes_deltas_any_more() {
    let mut world = rewritten(1, 600);
    world.settle();
    let before = world.target.bases;
    assert!(before > 0);
    world.drop_link();
    // It is the first of the new session, in which the target has not spoken.
    world.guest_writes_at(0, 0, 8, false);
    world.settle();
    assert_eq!(world.target.bases, before);
}
