//! Load by fio's nbd engine, from the job files in `bench/jobs`, which plain fio runs as well.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

/// What fio measured; its own field names.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Load {
    /// Operations per second.
    pub iops: f64,
    /// Bytes per second.
    pub bw_bytes: f64,
    /// Completion latency in nanoseconds: median.
    pub clat_ns_p50: f64,
    /// Completion latency in nanoseconds: 99th percentile.
    pub clat_ns_p99: f64,
}

/// Runs one job against an export.
pub fn run(job: &str, uri: &str, seconds: u64) -> Result<Load> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs").join(format!("{job}.fio"));
    let output = Command::new("fio")
        .arg("--output-format=json")
        .arg(&file)
        .env("URI", uri)
        .env("RUNTIME", seconds.to_string())
        .output()
        .context("start fio (scripts/require-tools.sh bench installs it)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("fio {}: {}\n{text}{}", file.display(), output.status, String::from_utf8_lossy(&output.stderr));
    }
    // Some versions print notes before the JSON.
    let json = text.find('{').map_or("", |start| &text[start..]);
    parse(json).with_context(|| format!("fio's answer to {}", file.display()))
}

fn parse(json: &str) -> Result<Load> {
    let json: Value = serde_json::from_str(json)?;
    let job = &json["jobs"][0];
    if job["error"] != 0 {
        bail!("fio reports error {}", job["error"]);
    }
    let direction = ["write", "read"].map(|name| &job[name]).into_iter().find(|part| part["total_ios"] != 0);
    let part = direction.context("fio did nothing")?;
    let number = |value: &Value, what: &str| value.as_f64().with_context(|| format!("{what} is missing"));
    Ok(Load {
        iops: number(&part["iops"], "iops")?,
        bw_bytes: number(&part["bw_bytes"], "bw_bytes")?,
        clat_ns_p50: number(&part["clat_ns"]["percentile"]["50.000000"], "clat_ns p50")?,
        clat_ns_p99: number(&part["clat_ns"]["percentile"]["99.000000"], "clat_ns p99")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(error: u32, ios: u64) -> String {
        let part = format!(
            r#"{{"total_ios":{ios},"iops":10.5,"bw_bytes":43008,
                "clat_ns":{{"percentile":{{"50.000000":1000,"99.000000":5000}}}}}}"#
        );
        format!(r#"{{"jobs":[{{"error":{error},"read":{{"total_ios":0}},"write":{part}}}]}}"#)
    }

    #[test]
    fn the_direction_that_did_something_counts() {
        let result = parse(&answer(0, 5)).expect("an answer");
        assert_eq!((result.iops, result.clat_ns_p99), (10.5, 5000.0));
    }

    #[test]
    fn errors_and_empty_answers_are_refused() {
        for text in [answer(5, 5), "{}".into(), "".into(), r#"{"jobs":[{"error":0,"write":{"total_ios":3}}]}"#.into()] {
            assert!(parse(&text).is_err(), "{text}");
        }
    }
}
