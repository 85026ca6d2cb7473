//! Compares the figures of a measure's runs with a goal: pair by pair, then the median and the spread.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::contest::OURS;
use crate::measures::Goal;
use crate::outcome::Figure;
use crate::report::Run;
use crate::spread::{median, range};

/// How a measure stands to one of its goals.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Number in the table of goals.
    pub number: u32,
    /// Name of the measure.
    #[serde(skip)]
    pub measure: &'static str,
    /// What was compared.
    pub figure: Figure,
    /// The peer, if there is one.
    pub against: Option<&'static str>,
    /// Median of the peer's figures.
    pub peer_median: Option<f64>,
    /// Median of our figures.
    pub ours_median: f64,
    /// Of each pair, ours divided by the peer's; without a peer, ours.
    pub values: Vec<f64>,
    /// Median of those.
    pub value_median: f64,
    /// What they have to reach.
    pub goal: f64,
    /// Whether they do.
    pub reached: bool,
}

impl Verdict {
    /// The least and the largest value.
    pub fn spread(&self) -> (f64, f64) {
        range(&self.values)
    }
}

/// Judges the runs of a measure by one goal.
pub fn judge(measure: &'static str, goal: &Goal, runs: &[Run]) -> Result<Verdict> {
    let figures = |who: &str| -> Result<Vec<f64>> {
        let runs = runs.iter().filter(|run| run.measure == measure && run.contestant == who);
        let figures = runs.map(|run| {
            let figure = goal.figure.of(&run.outcome);
            figure.with_context(|| format!("{who} in pair {} has no {}", run.pair, goal.figure.name()))
        });
        figures.collect()
    };
    let ours = figures(OURS)?;
    let peer = goal.against.map(figures).transpose()?;
    let values = match &peer {
        Some(peer) => ours.iter().zip(peer).map(|(ours, peer)| ours / peer).collect(),
        None => ours.clone(),
    };
    anyhow::ensure!(!values.is_empty(), "nothing was measured");
    let value = median(&values);
    let reached = if goal.figure.lower_is_better() { value <= goal.value } else { value >= goal.value };
    Ok(Verdict {
        number: goal.number,
        measure,
        figure: goal.figure,
        against: goal.against,
        peer_median: peer.as_deref().map(median),
        ours_median: median(&ours),
        value_median: value,
        values,
        goal: goal.value,
        reached,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;

    fn run(pair: usize, contestant: &'static str, link_use: f64) -> Run {
        let outcome = Outcome { link_use: Some(link_use), ..Outcome::default() };
        Run { measure: "m", pair, contestant, outcome }
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let runs = [run(1, OURS, 4.0), run(1, "peer", 2.0), run(2, "peer", 8.0), run(2, OURS, 8.0)];
        let goal = Goal { number: 1, figure: Figure::LinkUse, against: Some("peer"), value: 1.5 };
        let verdict = judge("m", &goal, &runs).expect("a verdict");
        assert_eq!((verdict.values.clone(), verdict.value_median), (vec![2.0, 1.0], 1.5));
        assert_eq!((verdict.spread(), verdict.peer_median), ((1.0, 2.0), Some(5.0)));
        assert!(verdict.reached);
    }

    #[test]
    fn without_a_peer_the_figure_itself_counts() {
        let runs = [run(1, OURS, 0.9), run(2, OURS, 0.7)];
        let goal = Goal { number: 1, figure: Figure::LinkUse, against: None, value: 0.95 };
        let verdict = judge("m", &goal, &runs).expect("a verdict");
        assert!((verdict.value_median - 0.8).abs() < 1e-9 && !verdict.reached);
    }

    #[test]
    fn a_run_without_the_figure_is_an_error_and_so_is_no_run() {
        let goal = Goal { number: 1, figure: Figure::Iops, against: None, value: 1.0 };
        judge("m", &goal, &[run(1, OURS, 1.0)]).expect_err("no fio");
        judge("m", &goal, &[]).expect_err("no run");
    }
}
