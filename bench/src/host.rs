//! What a run ran on. Figures without this are not worth keeping.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

const PROGRAMS: [&str; 8] = ["fio", "qemu-nbd", "nbdkit", "nbdcopy", "qemu-storage-daemon", "rsync", "zstd", "psql"];

/// The machine and the programs.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Host name.
    pub host: String,
    /// Kernel release.
    pub kernel: String,
    /// Processor model.
    pub cpu: String,
    /// Processors that this run may use.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// File system of the working folder.
    pub file_system: String,
    /// Versions of the programs involved.
    pub versions: Vec<String>,
    /// Version of this build.
    pub backhaul: &'static str,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "host      {} ({} x {})", self.host, self.cpus, self.cpu)?;
        writeln!(f, "kernel    {}, {} MiB memory, {}", self.kernel, self.memory_bytes >> 20, self.file_system)?;
        write!(f, "versions  backhaul {}, {}", self.backhaul, self.versions.join(", "))
    }
}

/// Finds out what this is.
pub fn describe(work: &Path) -> Result<Host> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let cpuinfo = read("/proc/cpuinfo")?;
    let cpu = value_of(&cpuinfo, "model name").unwrap_or("unknown").to_owned();
    let meminfo = read("/proc/meminfo")?;
    let memory_kib =
        value_of(&meminfo, "MemTotal").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    let work = work.to_string_lossy();
    // What is missing is said by the measure that needs it.
    let versions =
        PROGRAMS.map(|program| first_line(program, &["--version"]).unwrap_or_else(|_| format!("{program} missing")));
    Ok(Host {
        host: read("/proc/sys/kernel/hostname")?.trim().to_owned(),
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        cpu,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory_kib.unwrap_or(0) * 1024,
        file_system: first_line("stat", &["--file-system", "--format=%T", &work]).context("the working folder")?,
        versions: versions.to_vec(),
        backhaul: env!("CARGO_PKG_VERSION"),
    })
}

fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

fn first_line(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("start {program} (scripts/require-tools.sh bench installs it)"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_what_stands_behind_its_key() {
        let text = "processor\t: 0\nmodel name\t: Fast: 3 GHz\n";
        assert_eq!(value_of(text, "model name"), Some("Fast: 3 GHz"));
        assert_eq!(value_of(text, "bogomips"), None);
    }
}
