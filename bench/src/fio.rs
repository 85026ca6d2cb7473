//! Load by fio's nbd engine, from the job files in `bench/jobs`, which plain fio runs as well; or by its io_uring engine on
//! the file itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::process;

/// From the end of the load to fio's answer.
const GRACE: Duration = Duration::from_secs(60);
/// The percentiles that are kept, as fio spells them.
pub const PERCENTILES: [&str; 6] = ["50.000000", "90.000000", "95.000000", "99.000000", "99.900000", "99.990000"];

/// What fio measured; its own field names.
#[derive(Clone, Debug, Serialize)]
pub struct Load {
    /// Operations per second.
    pub iops: f64,
    /// Bytes per second.
    pub bw_bytes: f64,
    /// Bytes that were read or written, without the time to settle.
    pub io_bytes: u64,
    /// Completion latency in nanoseconds.
    pub clat_ns: Latency,
}

/// Completion latency.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Its mean.
    pub mean: f64,
    /// By percentile, in fio's spelling.
    pub percentile: std::collections::BTreeMap<&'static str, f64>,
}

impl Load {
    /// A percentile in nanoseconds.
    pub fn clat_ns_at(&self, percentile: &str) -> f64 {
        self.clat_ns.percentile.get(percentile).copied().unwrap_or(0.0)
    }
}

fn job_file(job: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs").join(format!("{job}.fio"))
}

/// Runs one job against an export.
pub fn run(job: &str, uri: &str, seconds: u64) -> Result<Load> {
    start(&job_file(job), ("URI", uri), seconds)
}

/// Runs the same job on a file, past the page cache and without a server between. `folder` takes the changed job file.
pub fn run_on_file(job: &str, file: &Path, folder: &Path, seconds: u64) -> Result<Load> {
    let direct = folder.join("direct.fio");
    fs::write(&direct, on_file(&fs::read_to_string(job_file(job))?))?;
    start(&direct, ("FILE", &file.to_string_lossy()), seconds)
}

fn on_file(job: &str) -> String {
    let to = "ioengine=io_uring\ndirect=1\nfilename=${FILE}\n";
    job.replace("ioengine=nbd\n", to).replace("uri=${URI}\n", "")
}

fn start(file: &Path, target: (&str, &str), seconds: u64) -> Result<Load> {
    let mut command = process::command(None, "fio");
    command.arg("--output-format=json").arg(file).env(target.0, target.1).env("RUNTIME", seconds.to_string());
    let text = process::run(command, Duration::from_secs(seconds) + GRACE)?;
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
    let clat = &part["clat_ns"];
    let percentile = PERCENTILES.map(|name| number(&clat["percentile"][name], name).map(|value| (name, value)));
    Ok(Load {
        iops: number(&part["iops"], "iops")?,
        bw_bytes: number(&part["bw_bytes"], "bw_bytes")?,
        io_bytes: part["io_bytes"].as_u64().context("io_bytes is missing")?,
        clat_ns: Latency {
            mean: number(&clat["mean"], "the mean of clat_ns")?,
            percentile: percentile.into_iter().collect::<Result<_>>()?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(error: u32, ios: u64) -> String {
        let percentiles: Vec<String> = PERCENTILES.iter().map(|name| format!("\"{name}\":1000")).collect();
        let part = format!(
            r#"{{"total_ios":{ios},"iops":10.5,"bw_bytes":43008,"io_bytes":4096,
                "clat_ns":{{"mean":900.0,"percentile":{{{}}}}}}}"#,
            percentiles.join(",")
        );
        format!(r#"{{"jobs":[{{"error":{error},"read":{{"total_ios":0}},"write":{part}}}]}}"#)
    }

    #[test]
    fn the_direction_that_did_something_counts() {
        let result = parse(&answer(0, 5)).expect("an answer");
        assert_eq!((result.iops, result.clat_ns_at("99.000000")), (10.5, 1000.0));
    }

    #[test]
    fn every_job_runs_on_a_file_too() {
        let jobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs").read_dir().expect("the jobs");
        for job in jobs {
            let text = fs::read_to_string(job.expect("a job").path()).expect("text");
            let direct = on_file(&text);
            let has = |what| direct.lines().any(|line: &str| line == what);
            assert!(has("ioengine=io_uring") && has("direct=1") && has("filename=${FILE}"), "{direct}");
            assert!(!has("uri=${URI}") && !has("ioengine=nbd"), "{direct}");
        }
    }

    #[test]
    fn errors_and_empty_answers_are_refused() {
        for text in [answer(5, 5), "{}".into(), "".into(), r#"{"jobs":[{"error":0,"write":{"total_ios":3}}]}"#.into()] {
            assert!(parse(&text).is_err(), "{text}");
        }
    }
}
