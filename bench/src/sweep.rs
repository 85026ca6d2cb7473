//! What a killed run left behind: folders, with what is mounted in them and loop devices on their files.
//!
//! A run that fails or is interrupted takes its own things down; only kill -9 needs this. Folders hold the id of their
//! process, so that a run beside this one keeps its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

/// What the names of the folders begin with; the process's id follows.
pub const PREFIX: &str = "backhaul-bench-";

/// Removes the folders in `dir` whose process is gone.
pub fn sweep(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(owner) else { continue };
        if !fs::exists(format!("/proc/{owner}"))? {
            unmount(&entry.path());
            fs::remove_dir_all(entry.path())?;
            println!("removed {}, which a killed run has left", entry.path().display());
        }
    }
    Ok(())
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Lets go of everything inside `folder`, the last mount first.
pub fn unmount(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let inside =
        mounts.lines().filter_map(|line| line.split_whitespace().nth(1)).filter(|at| Path::new(at).starts_with(folder));
    for at in inside.collect::<Vec<_>>().into_iter().rev() {
        detach(folder);
        // Lazily: a dead server behind a mount would keep it busy for ever.
        let _ = Command::new("umount").args(["--lazy", at]).status();
    }
    detach(folder);
}

fn detach(folder: &Path) {
    let listed = Command::new("losetup").args(["--list", "--noheadings", "--output", "NAME,BACK-FILE"]).output();
    let text = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    for line in text.lines() {
        let Some((device, file)) = line.split_once(' ') else { continue };
        if Path::new(file.trim()).starts_with(folder) {
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_runs_that_are_gone_are_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        let mine = format!("{PREFIX}{}-x", std::process::id());
        for name in [&mine, "backhaul-bench-4294967295-x", "backhaul-bench-other", "else"] {
            fs::create_dir(dir.path().join(name)).expect("a folder");
        }
        sweep(dir.path()).expect("swept");
        let mut left: Vec<_> = fs::read_dir(dir.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
        left.sort();
        let mut expected: Vec<std::ffi::OsString> = vec![mine.into(), "backhaul-bench-other".into(), "else".into()];
        expected.sort();
        assert_eq!(left, expected);
    }
}
