//! Whether a volume can hold journals (requirement R6): pure judgements over facts.

use super::{
    facts::{Uses, Volume},
    report::{Check, VolumeReport},
};

/// The check of the configured retention volume.
pub const RETENTION: &str = "retention-volume";
/// Where a retention volume is mounted by default.
pub const RETENTION_DEFAULT: &str = "/mnt/retention";
/// File systems that a loss of power empties.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// FAT, FAT32 and exFAT by all of their names, those of FUSE too.
fn is_fat(file_system: &str) -> bool {
    file_system == "msdos" || file_system.contains("fat")
}

/// Why journals can't be kept on a volume at all, and what to do.
fn obstacle(volume: &Volume) -> Option<(String, &'static str)> {
    if is_fat(&volume.file_system) {
        let what =
            format!("its file system is {}, which has no large files and no durable renames", volume.file_system);
        return Some((what, "format a volume with ext4, xfs or btrfs, and mount it there"));
    }
    if volume.size == 0 {
        return Some(("its capacity is zero".to_owned(), "mount a volume with capacity there"));
    }
    if volume.is_write_protected {
        return Some((
            "its device is locked (write-protected)".to_owned(),
            "unlock it (`blockdev --setrw`), and mount it again",
        ));
    }
    if volume.is_read_only {
        return Some(("it is mounted read-only".to_owned(), "check it for errors, and mount it for writing"));
    }
    if !volume.is_writable {
        return Some(("this user may not write to it".to_owned(), "give its folder to the agent's user"));
    }
    if volume.uses.is_target {
        return Some(("it lies on a replication target".to_owned(), "keep journals on a disk that is not a target"));
    }
    None
}

/// Why another volume would be better, though this one works.
fn doubt(volume: &Volume) -> Option<String> {
    let Uses { holds_targets, is_installation, is_state, .. } = volume.uses;
    let what = match volume.file_system.as_str() {
        kind if IN_MEMORY.contains(&kind) => format!("it is {kind}, which a restart of the host empties"),
        _ if is_installation => "it is the volume of the agent's own installation".to_owned(),
        _ if is_state => "it is the volume of the agent's own state".to_owned(),
        _ if holds_targets => "it is used for replication targets".to_owned(),
        _ => return None,
    };
    Some(what)
}

/// A volume for the list.
pub fn judge_volume(volume: &Volume) -> VolumeReport {
    let reason = obstacle(volume).map(|(what, _)| what).or_else(|| doubt(volume));
    VolumeReport {
        path: volume.path.display().to_string(),
        file_system: volume.file_system.clone(),
        size_bytes: volume.size,
        free_bytes: volume.free,
        eligible: reason.is_none(),
        reason,
    }
}

/// The configured folder, by the volume that it lies on. What only makes it a poor choice is a warning.
pub fn judge_configured(folder: &str, volume: Option<&Volume>, locked_by: Option<u32>) -> Check {
    let Some(volume) = volume else {
        let remedy = format!("mount a volume there, by default at {RETENTION_DEFAULT}, or correct `retention`");
        return Check::failure(RETENTION, folder, "the folder doesn't exist", remedy);
    };
    if let Some((what, remedy)) = obstacle(volume) {
        return Check::failure(RETENTION, folder, what, remedy);
    }
    if let Some(pid) = locked_by {
        let what = format!("process {pid} has locked the group's journal on it, and it is not this agent");
        return Check::failure(RETENTION, folder, what, "stop the other agent, or give this one a volume of its own");
    }
    match doubt(volume) {
        Some(what) => {
            let remedy = format!("mount a volume that is used for nothing else, by default at {RETENTION_DEFAULT}");
            Check::warning(RETENTION, folder, what, remedy)
        }
        None => Check::pass(RETENTION, folder, format!("it is a volume of its own, with {}", volume.file_system)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Outcome;

    fn volume() -> Volume {
        Volume {
            path: "/mnt/retention".into(),
            file_system: "ext4".into(),
            size: 10,
            free: 5,
            is_read_only: false,
            is_write_protected: false,
            is_writable: true,
            uses: Uses::default(),
        }
    }

    #[test]
    fn a_writable_volume_of_its_own_is_eligible() {
        assert_eq!((judge_volume(&volume()).eligible, judge_volume(&volume()).reason), (true, None));
        assert_eq!(judge_configured("/mnt/retention", Some(&volume()), None).outcome, Outcome::Pass);
    }

    /// Makes something wrong with a volume.
    type Change<'a> = &'a dyn Fn(&mut Volume);

    #[test]
    fn each_reason_against_a_volume_is_named() {
        let with = |change: Change| {
            let mut changed = volume();
            change(&mut changed);
            changed
        };
        let cases: [(Change, &str, Outcome); 11] = [
            (&|v| v.file_system = "vfat".into(), "vfat", Outcome::Failure),
            (&|v| v.file_system = "fuse.exfat".into(), "exfat", Outcome::Failure),
            (&|v| v.size = 0, "capacity is zero", Outcome::Failure),
            (&|v| v.is_read_only = true, "read-only", Outcome::Failure),
            (&|v| v.is_write_protected = true, "locked", Outcome::Failure),
            (&|v| v.is_writable = false, "may not write", Outcome::Failure),
            (&|v| v.uses.is_target = true, "on a replication target", Outcome::Failure),
            (&|v| v.uses.holds_targets = true, "used for replication targets", Outcome::Warning),
            (&|v| v.uses.is_installation = true, "installation", Outcome::Warning),
            (&|v| v.uses.is_state = true, "own state", Outcome::Warning),
            (&|v| v.file_system = "tmpfs".into(), "empties", Outcome::Warning),
        ];
        for (change, words, outcome) in cases {
            let changed = with(change);
            let listed = judge_volume(&changed);
            assert!(!listed.eligible && listed.reason.unwrap().contains(words), "{words}");
            let check = judge_configured("/mnt/retention", Some(&changed), None);
            assert_eq!((check.outcome, check.message.contains(words)), (outcome, true), "{words}");
            assert!(check.remedy.is_some());
        }
    }

    #[test]
    fn a_folder_that_is_missing_or_locked_by_another_agent_fails() {
        let missing = judge_configured("/mnt/retention", None, None);
        assert!(missing.outcome == Outcome::Failure && missing.remedy.unwrap().contains("/mnt/retention"));
        let locked = judge_configured("/mnt/retention", Some(&volume()), Some(77));
        assert!(locked.outcome == Outcome::Failure && locked.message.contains("process 77"));
    }
}
