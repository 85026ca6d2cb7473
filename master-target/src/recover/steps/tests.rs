//! The machine of a failback, step by step, with crashes and changes of mind at each.

use super::*;

fn plan(source: Source) -> Plan {
    Plan {
        request: 5,
        choice: Choice::Latest,
        source,
        stage: Stage::Draining,
        fenced: None,
        started_us: 1,
        is_again: false,
        spoilt: Ranges::default(),
    }
}

fn answer(request: u64, last_set: u64) -> FenceAnswer {
    FenceAnswer { request, last_set, fenced_at_us: 99 }
}

/// Runs the machine while it has work, completing each step.
fn run(machine: &mut Failback, view: &View) -> (Vec<Next>, Next) {
    let mut done = Vec::new();
    loop {
        match machine.next(view) {
            end @ (Next::Wait(_) | Next::Done | Next::Cancelled) => return (done, end),
            next => {
                machine.completed(next);
                done.push(next);
            }
        }
    }
}

const AFTER_DRAIN: [Next; 7] =
    [Next::Record, Next::LockOut, Next::ApplyAll, Next::PutPoint, Next::Stamp, Next::RecordDone, Next::Release];

#[test]
fn the_source_is_fenced_and_drained_before_sessions_are_locked_out() {
    let mut machine = Failback::begin(plan(Source::Fence));
    let mut view = View { session: Some(1), fenced: None, durable_set: 7 };
    let (done, end) = run(&mut machine, &view);
    assert_eq!(done, [Next::Record, Next::SendFence { session: 1 }]);
    assert_eq!(end, Next::Wait(Waiting::ForFence));
    view.fenced = Some(answer(5, 9));
    assert_eq!(run(&mut machine, &view), (vec![], Next::Wait(Waiting::ForSets { last_set: 9 })));
    view.durable_set = 9;
    assert_eq!(run(&mut machine, &view), (AFTER_DRAIN.to_vec(), Next::Done));
    assert_eq!(machine.plan().fenced, Some(answer(5, 9)));
}

#[test]
fn an_answer_to_an_earlier_failback_does_not_count() {
    let mut machine = Failback::begin(plan(Source::Fence));
    let view = View { session: Some(1), fenced: Some(answer(4, 2)), durable_set: 7 };
    assert_eq!(run(&mut machine, &view).1, Next::Wait(Waiting::ForFence));
}

#[test]
fn a_source_that_reconnects_is_asked_again_once() {
    let mut machine = Failback::begin(plan(Source::Fence));
    let mut view = View { session: Some(1), ..View::default() };
    run(&mut machine, &view);
    view.session = None;
    assert_eq!(run(&mut machine, &view), (vec![], Next::Wait(Waiting::ForSource)));
    view.session = Some(2);
    assert_eq!(run(&mut machine, &view).0, [Next::SendFence { session: 2 }]);
    assert_eq!(run(&mut machine, &view).0, []);
}

#[test]
fn without_the_source_nothing_waits() {
    let mut machine = Failback::begin(plan(Source::Without));
    let (done, end) = run(&mut machine, &View::default());
    assert_eq!(done[0], Next::Record);
    assert_eq!(done[1..], AFTER_DRAIN);
    assert_eq!(end, Next::Done);
}

#[test]
fn giving_the_source_up_is_recorded_before_sessions_are_locked_out() {
    let mut machine = Failback::begin(plan(Source::Fence));
    run(&mut machine, &View::default());
    machine.give_up_source();
    let (done, _) = run(&mut machine, &View::default());
    assert_eq!(done[..3], [Next::Record, Next::Record, Next::LockOut]);
    assert_eq!(machine.plan().source, Source::Without);
}

#[test]
fn giving_the_source_up_after_the_lock_out_changes_nothing() {
    let mut machine = Failback::resume(Plan { stage: Stage::LockedOut, ..plan(Source::Fence) });
    machine.give_up_source();
    assert_eq!(machine.next(&View::default()), Next::LockOut);
    assert_eq!(machine.plan().source, Source::Fence);
}

#[test]
fn a_restart_while_draining_fences_again_and_after_the_lock_out_takes_nothing() {
    let mut draining = Failback::resume(plan(Source::Fence));
    assert_eq!(draining.next(&View { session: Some(3), ..View::default() }), Next::SendFence { session: 3 });
    let mut locked = Failback::resume(Plan { stage: Stage::LockedOut, ..plan(Source::Fence) });
    assert_eq!(run(&mut locked, &View::default()).0, AFTER_DRAIN[1..]);
}

#[test]
#[should_panic(expected = "was completed in")]
fn steps_out_of_order_are_refused() {
    Failback::begin(plan(Source::Fence)).completed(Next::Release);
}

/// The machine after so many steps of a failback whose source is there and drained.
fn after(steps: usize) -> Failback {
    let view = View { session: Some(1), fenced: Some(answer(5, 7)), durable_set: 7 };
    let mut machine = Failback::begin(plan(Source::Fence));
    for _ in 0..steps {
        let next = machine.next(&view);
        machine.completed(next);
    }
    machine
}

const STEPS: usize = 8;

#[test]
fn a_failback_of_a_drained_source_has_eight_steps() {
    assert_eq!(after(STEPS).next(&View::default()), Next::Done);
}

#[test]
fn another_choice_is_recorded_and_put_before_anything_is_recorded_as_done() {
    let view = View { session: Some(1), fenced: Some(answer(5, 7)), durable_set: 7 };
    for steps in 0..STEPS - 1 {
        let mut machine = after(steps);
        assert!(machine.choose(Choice::Point(3)), "after {steps} steps");
        let (done, end) = run(&mut machine, &view);
        assert_eq!(end, Next::Done);
        assert_eq!(done[0], Next::Record, "after {steps} steps");
        let put = done.iter().position(|next| *next == Next::PutPoint).unwrap();
        let recorded = done.iter().position(|next| *next == Next::RecordDone).unwrap();
        assert!(put < recorded, "{done:?}");
        assert_eq!(machine.plan().choice, Choice::Point(3));
    }
    for steps in [STEPS - 1, STEPS] {
        assert!(!after(steps).choose(Choice::Point(3)), "the disks are being released");
    }
}

#[test]
fn a_failback_is_cancelled_durably_before_sessions_are_let_in_and_not_once_it_is_done() {
    for steps in 0..STEPS - 1 {
        let mut machine = after(steps);
        assert!(machine.cancel(), "after {steps} steps");
        let (done, end) = run(&mut machine, &View::default());
        assert_eq!((done, end), (vec![Next::RecordCancelled, Next::LetIn], Next::Cancelled));
        assert!(!machine.choose(Choice::Latest));
    }
    for steps in [STEPS - 1, STEPS] {
        assert!(!after(steps).cancel(), "a machine may run on the disks");
    }
}

#[test]
fn another_choice_after_the_release_compares_before_it_records() {
    let mut machine = Failback::again(plan(Source::Fence));
    assert!(machine.choose(Choice::Point(2)));
    assert!(!machine.cancel(), "the disks were a machine's");
    assert_eq!(machine.next(&View::default()), Next::Compare);
    machine.completed(Next::Compare);
    let mut spoilt = Ranges::default();
    spoilt.add(0, 0, 2048);
    machine.found_spoilt(spoilt.clone());
    assert_eq!(run(&mut machine, &View::default()), (AFTER_DRAIN.to_vec(), Next::Done));
    assert_eq!(machine.plan().spoilt, spoilt);
    let resumed = Failback::resume(machine.plan().clone());
    assert_eq!(resumed.plan().spoilt, spoilt, "a crash forgets nothing of it");
}

/// Whatever is asked for and whenever it crashes: what is durable decides, and the disks are written only while sessions
/// are locked out durably.
#[test]
fn crashes_and_changes_of_mind_at_every_step_never_break_the_order() {
    let view = View { session: Some(1), fenced: Some(answer(5, 7)), durable_set: 7 };
    for seed in 0..2000_u64 {
        let mut random = crate::journal::Seeded::new(seed);
        let mut durable = Some(plan(Source::Fence));
        let mut machine = Failback::begin(plan(Source::Fence));
        let (mut is_locked_out, mut put, mut is_done, mut recorded) = (false, None, false, false);
        for _ in 0..60 {
            match random.below(12) {
                // Crash: the machine is built again from what is durable.
                0 if recorded && !is_done => {
                    is_locked_out = false;
                    match durable.clone() {
                        Some(plan) => machine = Failback::resume(plan),
                        None => break,
                    }
                }
                1 => drop(machine.choose(Choice::Point(random.below(5)))),
                2 if random.below(6) == 0 => drop(machine.cancel()),
                _ => {}
            }
            let next = machine.next(&view);
            match next {
                Next::Record => {
                    durable = Some(machine.plan().clone());
                    recorded = true;
                }
                Next::LockOut => is_locked_out = true,
                Next::ApplyAll | Next::Stamp => assert!(is_locked_out, "seed {seed}"),
                Next::PutPoint => {
                    assert!(is_locked_out, "seed {seed}");
                    let plan = durable.clone().unwrap();
                    assert_eq!((plan.stage, plan.choice), (Stage::LockedOut, machine.plan().choice), "seed {seed}");
                    put = Some(plan.choice);
                }
                Next::RecordDone => {
                    assert_eq!(put, Some(machine.plan().choice), "seed {seed}: the report is of what is on the disks");
                    is_done = true;
                }
                Next::Release => assert!(is_done, "seed {seed}"),
                Next::RecordCancelled => {
                    assert!(!is_done, "seed {seed}");
                    durable = None;
                }
                Next::LetIn => assert_eq!(durable, None, "seed {seed}: cancelled durably first"),
                Next::Done | Next::Cancelled => break,
                Next::Compare | Next::SendFence { .. } | Next::Wait(_) => {}
            }
            if !matches!(next, Next::Wait(_)) {
                machine.completed(next);
            }
        }
    }
}
