//! The last steps of a simulation, kept while it runs and shown when it fails.
//!
//! Bounded, one per thread, and cheap: names and numbers, put into words only when they are shown. A sum over all steps
//! tells whether two runs of a seed were the same.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write;

/// Steps that are shown.
const STEPS_MAX: usize = 60;

#[derive(Default)]
struct Trace {
    steps: VecDeque<(u64, &'static str, u64, u64)>,
    count: u64,
    sum: u64,
}

thread_local! {
    static TRACE: RefCell<Trace> = RefCell::default();
}

/// Forgets everything: a run begins.
pub fn begin() {
    TRACE.set(Trace::default());
}

/// Something has happened: what, and two numbers that tell more about it.
pub fn step(what: &'static str, a: u64, b: u64) {
    TRACE.with_borrow_mut(|trace| {
        trace.count += 1;
        let mixed = what
            .bytes()
            .fold(a.wrapping_mul(31).wrapping_add(b), |sum, byte| sum * 0x100 % 0xffff_fffb + u64::from(byte));
        trace.sum = trace.sum.rotate_left(5) ^ mixed;
        if trace.steps.len() == STEPS_MAX {
            trace.steps.pop_front();
        }
        trace.steps.push_back((trace.count, what, a, b));
    });
}

/// A number that differs wherever two runs differ.
#[must_use]
pub fn sum() -> u64 {
    TRACE.with_borrow(|trace| trace.sum)
}

/// The last steps, a line each.
#[must_use]
pub fn tail() -> String {
    TRACE.with_borrow(|trace| {
        let mut text = String::new();
        for (count, what, a, b) in &trace.steps {
            let _ = writeln!(text, "  {count:6} {what} {a} {b}");
        }
        text
    })
}
