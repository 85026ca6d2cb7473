//! The table that a torture run ends with. Pure.

use std::fmt::Write;

/// One scenario that has ended.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub scenario: String,
    /// Its seed.
    pub seed: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// What was measured, or the command that runs it again.
    pub outcome: Result<String, String>,
}

/// The table, the last line ended too.
#[must_use]
pub fn render(rows: &[Row]) -> String {
    let mut text = format!("{:<12}  {:<6}  {:>10}  {:>8}  FIGURES\n", "SCENARIO", "RESULT", "SEED", "SECONDS");
    for row in rows {
        let (result, words) = match &row.outcome {
            Ok(figures) => ("ok", figures.clone()),
            Err(replay) => ("FAILED", format!("again: {replay}")),
        };
        let Row { scenario, seed, seconds, .. } = row;
        writeln!(text, "{scenario:<12}  {result:<6}  {seed:>10}  {seconds:>8.1}  {words}").expect("a string");
    }
    text
}

/// Median, 99th percentile and largest of some seconds, in words.
#[must_use]
pub fn spread(seconds: &[f64]) -> String {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(largest) = sorted.last() else { return "nothing measured".to_owned() };
    let at = |share: usize| sorted[(sorted.len() - 1) * share / 100];
    format!("{} times; median {:.1} s, 99 % {:.1} s, worst {largest:.1} s", sorted.len(), at(50), at(99))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_command_that_runs_it_again() {
        let row = |outcome| Row { scenario: "kill-source".to_owned(), seed: 7, seconds: 1.25, outcome };
        let text = render(&[row(Ok("fine".to_owned())), row(Err("make torture".to_owned()))]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].ends_with("fine") && lines[1].contains(" ok "), "{text}");
        assert!(lines[2].contains("FAILED") && lines[2].ends_with("again: make torture"), "{text}");
    }

    #[test]
    fn a_spread_names_median_and_worst() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), "3 times; median 2.0 s, 99 % 2.0 s, worst 3.0 s");
        assert_eq!(spread(&[]), "nothing measured");
    }
}
