//! Plays seeds of the simulation of both agents.
//!
//! ```text
//! usage: sim FROM [COUNT] [SECONDS] [all]
//!        sim rules [COUNT]
//! ```
//!
//! Plays COUNT seeds (1) from FROM on, on all processors, until SECONDS have passed. It stops at the first failure, and
//! says all about it; with `all` it goes on, and says a line of each.
//! With `rules` it switches off one rule of the source at a time and says after how many seeds the judge notices; builds
//! without debug assertions have no such switches.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[cfg(debug_assertions)]
use process_server::rules::Rule;
use tests::sim::{log, try_play};

/// Seeds for each rule.
const RULE_SEEDS: u64 = 3000;

struct Plan {
    from: u64,
    count: u64,
    until: Option<Instant>,
    goes_on: bool,
}

#[expect(clippy::disallowed_methods, reason = "a tool at the edge: it plays for as long as it is told to")]
fn plan() -> Option<Plan> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let goes_on = args.pop_if(|last| last == "all").is_some();
    let numbers: Vec<u64> = args.iter().map(|arg| arg.parse().ok()).collect::<Option<_>>()?;
    let until = numbers.get(2).map(|seconds| Instant::now() + Duration::from_secs(*seconds));
    Some(Plan { from: *numbers.first()?, count: numbers.get(1).copied().unwrap_or(1), until, goes_on })
}

#[expect(clippy::disallowed_methods, reason = "a tool at the edge: it plays for as long as it is told to")]
fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|first| first == "rules") {
        let seeds = std::env::args().nth(2).and_then(|count| count.parse().ok()).unwrap_or(RULE_SEEDS);
        return play_without_rules(seeds);
    }
    let Some(plan) = plan() else {
        eprintln!("usage: sim FROM [COUNT] [SECONDS] [all]");
        return ExitCode::from(2);
    };
    log::keep();
    std::panic::set_hook(Box::new(|_| {}));
    let (next, points, played) = (AtomicU64::new(plan.from), AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    let start = Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= plan.from.saturating_add(plan.count) || plan.until.is_some_and(|until| Instant::now() >= until) {
                return;
            }
            match try_play(seed) {
                Ok(run) => {
                    points.fetch_add(run.points, Ordering::Relaxed);
                    played.fetch_add(1, Ordering::Relaxed);
                }
                Err(why) => {
                    if let Ok(mut failed) = failed.lock() {
                        failed.push(why);
                    }
                    if !plan.goes_on {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (played, points) = (played.into_inner(), points.into_inner());
    println!("both agents: {played} seeds, {points} points judged, {:.1} s", start.elapsed().as_secs_f64());
    let failed = failed.into_inner().unwrap_or_default();
    for why in &failed {
        eprintln!("{}", if plan.goes_on { why.lines().next().unwrap_or_default() } else { why });
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Builds without debug assertions have no switches.
#[cfg(not(debug_assertions))]
fn play_without_rules(_seeds: u64) -> ExitCode {
    eprintln!("sim: rules can't be switched off in a release build: build without --release");
    ExitCode::from(2)
}

/// After how many seeds each rule that is switched off is missed.
#[cfg(debug_assertions)]
fn play_without_rules(seeds: u64) -> ExitCode {
    log::keep();
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(0);
    let work = || {
        while let Some(rule) = Rule::ALL.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            match (0..seeds).find(|seed| rule.off(|| try_play(*seed).is_err())) {
                Some(seed) => println!("both agents, {rule:?}: caught after {} seeds", seed + 1),
                None => println!("both agents, {rule:?}: {seeds} seeds say nothing of it"),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    ExitCode::SUCCESS
}
