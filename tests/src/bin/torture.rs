//! `make torture`: the long forms of the scenarios in `tests::torture`, one after the other, with a table at the end.
//!
//! usage: `torture [SCENARIO ...] [--seed N] [--cycles N] [--seconds N]`; without a scenario all of them run. Ends with code 1 if one
//! failed, 2 for wrong usage. An interrupt ends the running scenario as a failure does, so nothing is left behind.

use std::process::ExitCode;
use std::thread;

use tests::agent::Role;
use tests::torture::capped::Capped;
use tests::torture::kill_loop::KillLoop;
use tests::torture::link_faults::LinkFaults;
use tests::torture::shaped::Shaped;
use tests::torture::table::{self, Row};
use tests::{random, wait};

const SCENARIOS: [&str; 5] = ["kill-source", "kill-target", "link-faults", "capped", "shaped"];
const USAGE: &str = "usage: torture [SCENARIO ...] [--seed N] [--cycles N] [--seconds N]
scenarios: kill-source, kill-target, link-faults, capped, shaped (all of them without one)
  --cycles   kills of an agent, and faults of the link (100); an hour of a fault every 20 seconds is 180
  --seconds  of load over the capped link (60)";

#[derive(Clone, Debug)]
struct Plan {
    scenarios: Vec<String>,
    seed: u64,
    cycles: u32,
    seconds: u64,
}

fn main() -> ExitCode {
    let plan = match parse(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(wrong) => {
            eprintln!("torture: {wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    watch_for_interrupts();
    let mut rows = Vec::new();
    for scenario in &plan.scenarios {
        if !wait::is_interrupted() {
            rows.push(run(scenario, &plan));
        }
    }
    print!("\n{}", table::render(&rows));
    let all_well = rows.len() == plan.scenarios.len() && rows.iter().all(|row| row.outcome.is_ok());
    if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Plan, String> {
    let mut plan = Plan { scenarios: Vec::new(), seed: 0, cycles: 100, seconds: 60 };
    let mut seed = None;
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|text| text.parse().ok()).ok_or(format!("{word} needs a number"));
        match word.as_str() {
            "--seed" => seed = Some(number()?),
            "--cycles" => plan.cycles = u32::try_from(number()?).map_err(|_| "too many cycles")?,
            "--seconds" => plan.seconds = number()?,
            name if SCENARIOS.contains(&name) => plan.scenarios.push(word),
            _ => return Err(format!("{word:?} is neither a scenario nor an option")),
        }
    }
    plan.seed = seed.unwrap_or_else(|| random::seed(1));
    if plan.scenarios.is_empty() {
        plan.scenarios = SCENARIOS.map(str::to_owned).to_vec();
    }
    Ok(plan)
}

fn run(scenario: &str, plan: &Plan) -> Row {
    let &Plan { seed, cycles, seconds, .. } = plan;
    let replay = format!("make torture TORTURE=\"{scenario} --seed {seed} --cycles {cycles} --seconds {seconds}\"");
    println!("\n{scenario}: seed {seed}; again with: {replay}");
    let stopwatch = wait::Stopwatch::start();
    let (name, copy) = (scenario.to_owned(), plan.clone());
    // A panic ends the scenario's own thread; it has been printed, with what was seen.
    let outcome = thread::spawn(move || figures(&name, &copy)).join().map_err(|_| replay);
    if let Err(replay) = &outcome {
        println!("{scenario}: FAILED; again with: {replay}");
    }
    Row { scenario: scenario.to_owned(), seed, seconds: stopwatch.seconds(), outcome }
}

fn figures(scenario: &str, plan: &Plan) -> String {
    match scenario {
        "kill-source" => kills(Role::Source, plan),
        "kill-target" => kills(Role::Target, plan),
        "link-faults" => {
            let (faults, seed) = (plan.cycles, plan.seed);
            let tell = |number: u32, fault: &str| println!("  seed {seed}, fault {number} of {faults}: {fault}");
            let figures = LinkFaults { faults, seed }.run(tell);
            format!(
                "{faults} faults: {} sessions, {} points, all that were judged right",
                figures.sessions, figures.points
            )
        }
        "capped" => capped(plan),
        "shaped" => {
            let figures = Shaped { content_mib: 192, writes: 2000, seed: plan.seed }.run();
            format!("100 Mbit/s: initial sync in {:.1} s at {:.1} Mbit/s", figures.sync_seconds, figures.sync_mbit)
        }
        other => panic!("no scenario {other:?}"),
    }
}

fn kills(victim: Role, plan: &Plan) -> String {
    let (cycles, seed) = (plan.cycles, plan.seed);
    let tell = |cycle, victim: Role, seconds| {
        println!("  seed {seed}, cycle {cycle} of {cycles}: {} back in {seconds:.1} s", victim.binary());
    };
    table::spread(&KillLoop { victim: Some(victim), cycles, seed }.run(tell))
}

fn capped(plan: &Plan) -> String {
    let scenario = Capped { seconds: plan.seconds, disk_bytes: 64 << 20, compared: true, seed: plan.seed };
    let figures = scenario.run();
    let down = figures.iops_down.expect("asked for");
    let ratio = figures.iops_capped / down;
    assert!(ratio >= 0.8, "{:.0} IOPS with the link capped, {down:.0} with it down", figures.iops_capped);
    let mib = |bytes: u64| bytes >> 20;
    format!(
        "10 Mbit/s: {:.0} IOPS, {:.2} of those with the link down; streaming after {:.1} s; peaks {} and {} MiB",
        figures.iops_capped,
        ratio,
        figures.back_seconds,
        mib(figures.source_peak),
        mib(figures.target_peak)
    )
}

fn watch_for_interrupts() {
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a signal");
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => interrupted.expect("a signal"),
                _ = end.recv() => {}
            }
        });
        wait::interrupt();
    });
}

#[cfg(test)]
mod command_line {
    use super::*;

    fn plan(line: &str) -> Result<Plan, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_plan_names_scenarios_and_numbers_and_is_all_of_them_without() {
        let some = plan("kill-source shaped --seed 7 --cycles 3 --seconds 9").expect("a plan");
        assert_eq!((some.scenarios.len(), some.seed, some.cycles, some.seconds), (2, 7, 3, 9));
        assert_eq!(plan("--seed 1").expect("a plan").scenarios.len(), SCENARIOS.len());
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for line in ["kill", "--seed", "--seed x", "--cycles -1", "--cycles 99999999999", "--help"] {
            plan(line).expect_err(line);
        }
    }
}
