//! Two runs side by side, from their JSON lines. Only the ratios of each run are compared, and only between runs of one
//! host: absolute figures depend on what else the machine did that day.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::report::table::short;
use crate::spread::{median, range};

/// What must be the same.
const HOST: [&str; 6] = ["host", "kernel", "cpu", "cpus", "memory_bytes", "file_system"];

struct Run {
    host: Value,
    /// By measure, figure and peer: the value of each pair.
    values: BTreeMap<(String, String, String), Vec<f64>>,
}

/// Prints how the values of `after` stand to those of `before`.
pub fn compare(before: &Path, after: &Path) -> Result<()> {
    let (before, after) = (load(before)?, load(after)?);
    check_hosts(&before.host, &after.host)?;
    println!("{:<23} {:<14} {:<12} {:>18} {:>18}  change", "measure", "figure", "against", "before", "after");
    for (key, new) in &after.values {
        let Some(old) = before.values.get(key) else { continue };
        let (measure, figure, against) = key;
        let shown = |values: &[f64]| {
            let (low, high) = range(values);
            format!("{} ({}..{})", short(median(values)), short(low), short(high))
        };
        let change = (median(new) / median(old) - 1.0) * 100.0;
        let doubt = if overlap(old, new) { ", within the spread" } else { "" };
        println!(
            "{measure:<23} {figure:<14} {against:<12} {:>18} {:>18}  {change:+.1} %{doubt}",
            shown(old),
            shown(new)
        );
    }
    for (side, one, other) in [("before", &before, &after), ("after", &after, &before)] {
        for (measure, figure, _) in one.values.keys().filter(|key| !other.values.contains_key(key)) {
            println!("{measure:<23} {figure:<14} only in {side}");
        }
    }
    Ok(())
}

fn overlap(old: &[f64], new: &[f64]) -> bool {
    let ((old_low, old_high), (new_low, new_high)) = (range(old), range(new));
    old_low <= new_high && new_low <= old_high
}

fn check_hosts(before: &Value, after: &Value) -> Result<()> {
    let differ: Vec<String> = HOST
        .iter()
        .filter(|key| before[**key] != after[**key])
        .map(|key| format!("{key}: {} and {}", before[*key], after[*key]))
        .collect();
    if !differ.is_empty() {
        bail!("these runs are of different hosts and can't be compared; {}", differ.join("; "));
    }
    Ok(())
}

fn load(path: &Path) -> Result<Run> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is not the JSON lines of a run", path.display()))
}

fn parse(text: &str) -> Result<Run> {
    let mut run = Run { host: Value::Null, values: BTreeMap::new() };
    for line in text.lines() {
        let line: Value = serde_json::from_str(line)?;
        match line["kind"].as_str().context("a line has a kind")? {
            "host" => run.host = line["host"].clone(),
            "measure" => {
                let result = &line["result"];
                let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
                let key = (word(&line["measure"]), word(&result["figure"]), word(&result["against"]));
                let values = result["values"].as_array().context("a measure has values")?;
                run.values.insert(key, values.iter().filter_map(Value::as_f64).collect());
            }
            _ => {}
        }
    }
    if run.host.is_null() {
        bail!("no line says which host it was");
    }
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn runs_of_different_hosts_are_refused_and_the_difference_is_named() {
        let host = |kernel: &str| json!({ "host": "a", "kernel": kernel, "cpus": 2 });
        check_hosts(&host("6.18"), &host("6.18")).expect("the same host");
        let refused = check_hosts(&host("6.18"), &host("6.19")).expect_err("another kernel").to_string();
        assert!(refused.contains("kernel") && refused.contains("6.19"), "{refused}");
    }

    #[test]
    fn the_values_of_a_run_are_read_back() {
        let lines = [
            json!({ "kind": "host", "host": { "host": "a" } }),
            json!({ "kind": "run", "measure": "m" }),
            json!({ "kind": "measure", "measure": "m",
                    "result": { "figure": "IOPS", "against": "qemu-nbd", "values": [1.0, 3.0] } }),
        ];
        let text: Vec<String> = lines.iter().map(Value::to_string).collect();
        let run = parse(&text.join("\n")).expect("a run");
        let key = ("m".to_owned(), "IOPS".to_owned(), "qemu-nbd".to_owned());
        assert_eq!(run.values[&key], [1.0, 3.0]);
        assert!(parse("{}").is_err() && parse("").is_err());
    }

    #[test]
    fn spreads_that_touch_leave_doubt() {
        assert!(overlap(&[1.0, 2.0], &[2.0, 3.0]));
        assert!(!overlap(&[1.0, 2.0], &[2.1, 3.0]));
    }
}
