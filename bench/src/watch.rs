//! Looks at both agents several times a second while something is measured: states, age of the newest point, counts of
//! bytes. A change of state between two looks shows as well, since each state says how long it has lasted.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tests::agent::Role;
use tests::site::Site;
use tests::tool;

use crate::outcome::Sample;

/// Each look starts two small programs; at this pace they cost about one percent of a core.
const PAUSE: Duration = Duration::from_millis(250);
/// An agent that is starved of CPU answers late, and rounds its times.
const SLACK_SECONDS: f64 = 0.05;

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Sample>>>,
}

impl Watch {
    /// Begins to look at both agents of a site. An agent that does not answer gives no sample.
    pub fn begin(site: &Site) -> Self {
        let configs = [("process-server.toml", Role::Source), ("master-target.toml", Role::Target)]
            .map(|(file, role)| (tool::binary(role.binary()), site.path().join(file)));
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (started, mut samples) = (Instant::now(), Vec::new());
            while !told.load(Ordering::Relaxed) {
                samples.extend(look(&configs, started));
                thread::sleep(PAUSE);
            }
            samples.extend(look(&configs, started));
            samples
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends it, with all that was seen.
    pub fn end(mut self) -> Result<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a watch ends once")?;
        thread.join().map_err(|_| anyhow::anyhow!("the watch panicked"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // After an error: the thread must not ask agents of a later run.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn look(configs: &[(PathBuf, PathBuf); 2], started: Instant) -> Option<Sample> {
    let [source, target] = configs.each_ref().map(|(binary, config)| {
        let mut command = Command::new(binary);
        command.args(["status", "--json", "--config"]).arg(config).stdin(Stdio::null()).stderr(Stdio::null());
        command.output().ok().and_then(|output| serde_json::from_slice::<Value>(&output.stdout).ok())
    });
    let seconds = started.elapsed().as_secs_f64();
    let source = source?;
    let target = target.unwrap_or_default();
    let (ours, theirs) = (&source["groups"][0], &target["groups"][0]);
    Some(Sample {
        seconds,
        source_state: ours["state"].as_str()?.to_owned(),
        source_state_seconds: ours["state_seconds"].as_f64()?,
        target_state: theirs["state"].as_str().unwrap_or("down").to_owned(),
        rpo_seconds: ours["rpo_seconds"].as_f64(),
        captured_bytes: ours["captured_bytes"].as_u64()?,
        wire_bytes: source["link"]["sent_bytes"].as_u64()?,
        applied_bytes: theirs["applied_bytes"].as_u64().unwrap_or(0),
    })
}

/// The states that were seen, source's then target's, each once, in order of appearance.
pub fn states(samples: &[Sample]) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    let source = samples.iter().map(|sample| &sample.source_state);
    for state in source.chain(samples.iter().map(|sample| &sample.target_state)) {
        if !seen.contains(state) {
            seen.push(state.clone());
        }
    }
    seen
}

/// How often the source's group left `streaming`, between two looks or at one.
pub fn departures(samples: &[Sample]) -> usize {
    let left = samples.windows(2).filter(|pair| {
        let restarted = pair[1].source_state_seconds + SLACK_SECONDS
            < (pair[1].seconds - pair[0].seconds) + pair[0].source_state_seconds;
        pair[0].source_state == "streaming" && (pair[1].source_state != "streaming" || restarted)
    });
    left.count() + usize::from(samples.first().is_some_and(|sample| sample.source_state != "streaming"))
}

#[cfg(test)]
mod tests_of_states {
    use super::*;

    fn sample(seconds: f64, state: &str, since: f64) -> Sample {
        Sample {
            seconds,
            source_state: state.to_owned(),
            source_state_seconds: since,
            target_state: "protected".to_owned(),
            rpo_seconds: None,
            captured_bytes: 0,
            wire_bytes: 0,
            applied_bytes: 0,
        }
    }

    #[test]
    fn a_state_that_is_younger_than_the_last_look_was_entered_since() {
        let steady = [sample(0.0, "streaming", 5.0), sample(1.0, "streaming", 6.0), sample(2.0, "streaming", 6.99)];
        assert_eq!(departures(&steady), 0);
        let away = [sample(0.0, "streaming", 5.0), sample(1.0, "streaming", 0.4), sample(2.0, "streaming", 1.4)];
        assert_eq!(departures(&away), 1);
        let seen = [sample(0.0, "streaming", 5.0), sample(1.0, "catching-up", 0.4), sample(2.0, "streaming", 0.2)];
        assert_eq!(departures(&seen), 1);
        assert_eq!(states(&seen), ["streaming", "catching-up", "protected"]);
    }

    #[test]
    fn a_watch_that_begins_outside_of_streaming_has_seen_a_departure() {
        assert_eq!(departures(&[sample(0.0, "connecting", 1.0)]), 1);
    }
}
