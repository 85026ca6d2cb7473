//! The fence on a state volume that fails: what the next start may find never contradicts what the target was told (S20).

use super::world::World;
use crate::control::GroupState;
use crate::group::action::Action;
use crate::send::ToLink;

/// A state volume on which nothing becomes durable.
const FAILS: bool = false;
const WORKS: bool = true;

/// A group that streams, its guest idle, and what the worst start after this moment finds.
struct Fencing {
    world: World,
    is_found: bool,
}

impl Fencing {
    fn begin() -> Self {
        let mut world = World::calm(1, 400_000, 0);
        world.settle();
        world.until(|world| world.guest.is_empty() && world.group.snapshot().backlog_bytes == 0);
        Self { world, is_found: false }
    }

    /// A second passes. Gives the failback whose fence was reported.
    fn turn(&mut self, volume: bool) -> Option<u64> {
        self.world.time_us += 1_100_000;
        let now = self.world.now();
        let group = &mut self.world.group;
        let mut reported = None;
        // What an action leads to shows in the turn after it.
        for _ in 0..3 {
            group.advance(now);
            while let Some(action) = group.poll() {
                match action {
                    Action::PersistFence => {
                        self.is_found |= volume;
                        group.fence_persisted(volume);
                    }
                    // Even one that fails may have replaced the file.
                    Action::LiftFence => {
                        self.is_found = false;
                        group.fence_lifted(volume);
                    }
                    Action::Link(ToLink::Fenced(fenced)) => {
                        assert!(self.is_found, "the target counts on a fence that a restart would not find");
                        reported = Some(fenced.request);
                    }
                    _ => {}
                }
            }
        }
        reported
    }

    /// Failback 7 was told that the group is fenced, and is cancelled; the fence can't be lifted durably.
    fn not_lifted() -> Self {
        let mut fencing = Self::begin();
        fencing.world.group.fence_asked(7);
        assert_eq!(fencing.turn(WORKS), Some(7));
        fencing.world.group.fence_cancelled(7);
        assert_eq!(fencing.turn(FAILS), None);
        assert_eq!(fencing.world.group.state(), GroupState::Fenced);
        assert!(!fencing.is_found);
        fencing
    }
}

#[test]
fn s20_a_fence_that_was_not_lifted_serves_the_next_failback_only_once_it_is_durable_again() {
    let mut fencing = Fencing::not_lifted();
    fencing.world.group.fence_asked(8);
    assert_eq!(fencing.turn(FAILS), None);
    assert_eq!(fencing.turn(FAILS), None);
    assert_eq!(fencing.turn(WORKS), Some(8));
    // Said again to a target that asks again.
    fencing.world.group.fence_asked(8);
    assert_eq!(fencing.turn(FAILS), Some(8));
}

#[test]
fn s20_a_failback_that_begins_while_the_fence_is_lifted_in_vain_waits_for_it() {
    let mut fencing = Fencing::begin();
    fencing.world.group.fence_asked(7);
    assert_eq!(fencing.turn(WORKS), Some(7));
    fencing.world.group.fence_cancelled(7);
    fencing.world.group.fence_asked(8);
    assert_eq!(fencing.turn(FAILS), None);
    assert_eq!(fencing.turn(FAILS), None);
    assert_eq!(fencing.turn(WORKS), Some(8));
}

#[test]
fn s20_a_fence_that_was_not_lifted_is_made_durable_again_when_the_target_has_failed_back() {
    let mut fencing = Fencing::not_lifted();
    fencing.world.group.fence_without_request();
    fencing.turn(FAILS);
    assert!(!fencing.is_found);
    fencing.turn(WORKS);
    assert!(fencing.is_found, "a restart would take writes that run beside those of the recovered machine");
    assert_eq!(fencing.world.group.state(), GroupState::Fenced);
}

#[test]
fn s20_a_fence_that_was_not_lifted_is_lifted_as_soon_as_that_can_be_durable() {
    let mut fencing = Fencing::not_lifted();
    fencing.turn(FAILS);
    assert_eq!(fencing.world.group.state(), GroupState::Fenced);
    fencing.turn(WORKS);
    assert_ne!(fencing.world.group.state(), GroupState::Fenced);
    assert!(!fencing.is_found);
}
