//! Results as text: a line for each run while it goes on, and the table at the end.

use crate::measures::Measure;
use crate::outcome::{Figure, Outcome};
use crate::report::{Line, Verdict};

const FIGURES: [Figure; 8] = [
    Figure::Iops,
    Figure::Throughput,
    Figure::LatencyP50,
    Figure::CpuPerGib,
    Figure::WireShare,
    Figure::LinkUse,
    Figure::RpoP99,
    Figure::Memory,
];

/// Prints all figures that a run has.
pub fn print_run(measure: &Measure, pair: usize, contestant: &str, outcome: &Outcome) {
    let figures = FIGURES.iter().filter_map(|figure| Some((figure.name(), figure.of(outcome)?)));
    let figures: Vec<String> = figures.map(|(name, value)| format!("{} {name}", short(value))).collect();
    println!("{:<22} pair {pair} {contestant:<12} {}", measure.name, figures.join("  "));
    if !outcome.states.is_empty() {
        println!("{:<22} states {}", "", outcome.states.join(", "));
    }
    for note in &outcome.notes {
        println!("{:<22} note   {note}", "");
    }
}

/// Three or four digits that count.
pub fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// Columns of a verdict.
pub fn columns(verdict: &Verdict) -> [String; 8] {
    let unit = if verdict.against.is_some() { "x" } else { "" };
    let (low, high) = verdict.spread();
    let sign = if verdict.figure.lower_is_better() { "<=" } else { ">=" };
    [
        verdict.number.to_string(),
        verdict.measure.to_owned(),
        verdict.against.unwrap_or("-").to_owned(),
        format!("{} {}", short(verdict.ours_median), verdict.figure.name()),
        verdict.peer_median.map_or_else(|| "-".to_owned(), short),
        format!("{}{unit}", short(verdict.value_median)),
        format!("{}..{} ({})", short(low), short(high), verdict.values.len()),
        format!("{sign} {}{unit} {}", verdict.goal, if verdict.reached { "reached" } else { "MISSED" }),
    ]
}

/// Heads of those columns.
pub const HEADS: [&str; 8] = ["#", "measure", "against", "ours", "peer", "median", "spread (runs)", "goal"];

/// Prints the table.
pub fn print(lines: &[Line]) {
    println!();
    print_columns(&HEADS.map(str::to_owned));
    for line in lines {
        match line {
            Line::Judged(verdict) => print_columns(&columns(verdict)),
            Line::Failed { measure, reason } => println!("    {measure:<23} FAILED: {reason}"),
        }
    }
}

fn print_columns([number, measure, against, ours, peer, value, spread, goal]: &[String; 8]) {
    println!("{number:>3} {measure:<23} {against:<12} {ours:>18} {peer:>8} {value:>8} {spread:>20}  {goal}");
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn numbers_keep_the_digits_that_count() {
        assert_eq!([1234.5, 56.78, 0.912].map(short), ["1234", "56.8", "0.91"]);
    }
}
