//! The overload ladder in virtual time: streaming, spooling, catching up, and the way back.

use super::world::{SECTORS, World};
use crate::control::GroupState;

const MEMORY: u64 = 200_000;
const SPOOL: u64 = 1 << 20;

/// What the group went through, without repetitions.
#[derive(Debug, Default)]
struct Trace(Vec<(GroupState, String)>);

impl Trace {
    fn note(&mut self, world: &World) {
        let reason = world.group.reason().unwrap_or_default();
        let code = reason.split(':').next().unwrap_or_default().to_owned();
        let state = (world.group.state(), code);
        if self.0.last() != Some(&state) {
            self.0.push(state);
        }
    }

    fn states(&self) -> Vec<GroupState> {
        let mut states: Vec<GroupState> = self.0.iter().map(|(state, _)| *state).collect();
        states.dedup();
        states
    }

    fn reasons(&self, state: GroupState) -> Vec<&str> {
        self.0.iter().filter(|(own, _)| *own == state).map(|(_, code)| code.as_str()).collect()
    }
}

/// A world whose first synchronisation is over.
fn streaming(seed: u64, memory: u64, spool: u64) -> World {
    let mut world = World::calm(seed, memory, spool);
    world.settle();
    world
}

/// Writes blocks one after the other while the link takes one message in `slowness` steps.
fn load(world: &mut World, steps: u64, slowness: u64, trace: &mut Trace) {
    for step in 0..steps {
        if step % 3 == 0 && world.guest.len() < 12 {
            let at = step / 3 % (SECTORS / 8);
            world.guest_writes_at((step % 2) as u32, at * 8, 8, false);
        }
        for _ in 0..3 {
            world.disk_progress();
            world.cache_progress();
        }
        if step % slowness == 0 {
            world.link_progress();
            world.target.work();
            world.answer();
        }
        world.passes(2_000);
        trace.note(world);
    }
}

/// Until everything is on the target.
fn drain(world: &mut World, trace: &mut Trace) {
    world.until(|world| {
        trace.note(world);
        world.group.state() == GroupState::Streaming && world.group.snapshot().backlog_bytes == 0
    });
    trace.note(world);
}

#[test]
fn a_burst_goes_through_the_spool_and_the_group_streams_again_without_the_bitmap() {
    for seed in 0..10 {
        let mut world = streaming(seed, MEMORY, SPOOL);
        let mut trace = Trace::default();
        let points = world.points_judged();
        load(&mut world, 500, 300, &mut trace);
        assert_eq!(world.group.state(), GroupState::Spooling, "seed {seed}: {trace:?}");
        assert!(world.group.snapshot().spool.bytes > MEMORY / 2, "seed {seed}: {:?}", world.group.snapshot());
        drain(&mut world, &mut trace);
        let ladder = [GroupState::Streaming, GroupState::Spooling, GroupState::Streaming];
        assert_eq!(trace.states(), ladder, "seed {seed}: {trace:?}");
        assert_eq!(trace.reasons(GroupState::Spooling), ["memory-budget"]);
        assert!(world.points_judged() > points + 10, "seed {seed}: all sets are points");
        world.settle();
        assert_eq!(world.group.snapshot().spool.bytes, 0, "seed {seed}");
    }
}

#[test]
fn a_link_at_the_edge_makes_the_group_change_its_state_a_few_times_and_not_a_hundred() {
    for seed in 0..4 {
        let mut world = streaming(seed, MEMORY, SPOOL);
        let mut trace = Trace::default();
        // The link now takes more than is written, now less.
        for round in 0..30 {
            load(&mut world, 60, if round % 2 == 0 { 40 } else { 1 }, &mut trace);
        }
        drain(&mut world, &mut trace);
        let spooled = trace.states().iter().filter(|state| **state == GroupState::Spooling).count();
        assert!(spooled <= 15, "seed {seed}: once in two rounds at the most: {trace:?}");
        assert!(!trace.states().contains(&GroupState::CatchingUp), "seed {seed}: {trace:?}");
        world.settle();
    }
}

#[test]
fn when_the_spool_is_full_too_the_group_catches_up_says_so_and_comes_back() {
    for seed in 0..10 {
        let mut world = streaming(seed, MEMORY, 96 << 10);
        let mut trace = Trace::default();
        load(&mut world, 1500, 300, &mut trace);
        drain(&mut world, &mut trace);
        assert!(trace.reasons(GroupState::CatchingUp).contains(&"spool-full"), "seed {seed}: {trace:?}");
        assert_eq!(trace.states().last(), Some(&GroupState::Streaming), "seed {seed}: {trace:?}");
        world.settle();
    }
}

#[test]
fn a_cache_volume_without_room_is_told_and_used_again_when_it_has_some() {
    for seed in 0..10 {
        let mut world = streaming(seed, MEMORY, SPOOL);
        let mut trace = Trace::default();
        world.cache.fill(u32::MAX);
        load(&mut world, 900, 300, &mut trace);
        assert!(trace.reasons(GroupState::CatchingUp).contains(&"cache-volume"), "seed {seed}: {trace:?}");
        let reason = world.group.reason().unwrap_or_default();
        assert!(reason.contains("no space left") && reason.contains("check cache_dir"), "seed {seed}: {reason}");
        world.cache.heal();
        drain(&mut world, &mut trace);
        world.until(|world| world.group.spool_trouble().is_none());
        assert_eq!(world.group.reason(), None, "seed {seed}: it was tried again by itself");
        let written = world.cache.written;
        load(&mut world, 900, 300, &mut trace);
        assert!(world.cache.written > written, "seed {seed}: {trace:?}");
        world.settle();
    }
}

/// A guest that overwrites all of its disks faster than the link takes it: rounds never shrink. The last cut holds on if
/// the copies of what it still needs fit memory and spool; if not, the reason says how much would have been enough.
#[test]
fn a_last_cut_larger_than_memory_is_held_by_the_spool_and_given_up_with_a_number_without_one() {
    let rest = 2 * SECTORS * 512;
    for (seed, spool) in (0..3).flat_map(|seed| [(seed, 0), (seed, SPOOL)]) {
        let mut world = streaming(seed, rest / 4, spool);
        let mut trace = Trace::default();
        world.hold_the_link();
        for _ in 0..4 {
            load(&mut world, 1200, 9, &mut trace);
        }
        let reasons = trace.reasons(GroupState::CatchingUp).join(" ");
        assert!(reasons.contains("rounds-not-shrinking"), "seed {seed}, spool {spool}: {trace:?}");
        if spool == 0 {
            assert!(reasons.contains("cut-dropped"), "seed {seed}: {trace:?}");
        } else {
            let states = trace.states();
            let ordered = states.iter().any(|state| matches!(state, GroupState::Spooling | GroupState::Streaming));
            assert!(ordered, "seed {seed}: ordered points while the guest goes on: {trace:?}");
        }
        drain(&mut world, &mut trace);
        world.settle();
    }
}
