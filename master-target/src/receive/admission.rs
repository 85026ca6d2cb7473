//! Who may open a group, and with which disks: the rules behind `GroupOpened` and `GroupRefused`.
//!
//! Pure: takes what the peer said, what its certificate says and what this agent is configured for, and answers
//! with the disks of the session or a refusal in words. It opens nothing and knows no connection.
//!
//! Invariants: a group is opened only by the certificate that the configuration names (A3); a second source with the
//! state of the first (a clone) never replaces it (L6); a group that is failing or failed back takes nothing (L7).

use proto::replication::{DiskSpec, GroupRefused, OpenGroup};

use crate::journal::PhaseError;

/// The unit of disk sizes on the wire, bytes.
const SECTOR: u64 = 512;
/// Largest disk accepted, bytes: 62 TiB, the largest VMDK.
const DISK_BYTES_MAX: u64 = 62 << 40;
/// Largest logical block of a source disk, bytes.
const LOGICAL_BLOCK_MAX: u32 = 64 << 10;
/// The code of a group that has no room, on the wire and in `status`.
pub const FULL: &str = "retention-full";
/// The code of a group that is failing or failed back, on the wire.
pub const FAILED_BACK: &str = "failed-back";
/// Length of `source_instance`, bytes.
const INSTANCE_BYTES: usize = 16;

/// What the configuration says about a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRules {
    /// Name of the group.
    pub name: String,
    /// Name that the certificate of its source must carry.
    pub process_server: String,
    /// Names of its disks, in order.
    pub disks: Vec<String>,
}

/// Whether sessions are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Normal replication, or a failback that still drains its source.
    Open,
    /// Failing back or failed back: the source must fence itself.
    Fenced,
}

/// Which life of the source speaks: durable start counter and the random id of that start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLife {
    /// One higher at each start of the source.
    pub start: u64,
    /// Random at each start.
    pub instance: [u8; INSTANCE_BYTES],
}

/// Why a group was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The configuration has no such group.
    #[error("group \"{0}\" is not in this master-target's configuration: add a [[group]] for it and restart the agent")]
    UnknownGroup(String),
    /// Another certificate than the configured one.
    #[error(
        "group \"{group}\" is granted to \"{granted}\", but the certificate is for {presented}: correct \
         process_server in the group's configuration, or use the right certificate"
    )]
    NotGranted {
        /// The group asked for.
        group: String,
        /// The configured name.
        granted: String,
        /// The names in the certificate, for people.
        presented: String,
    },
    /// The disks differ from the configuration or from what was replicated before.
    #[error("group \"{group}\": {what}")]
    Disks {
        /// The group asked for.
        group: String,
        /// The difference and its remedy.
        what: String,
    },
    /// A second source speaks with the state of the first.
    #[error(
        "group \"{group}\" is replicated by start {current} of its source, and another copy of that source opened it as \
         start {offered}: a cloned or restored process-server is running: stop the copy; if this one is right and its state was \
         lost, run `process-server claim --group {group} --past {current}` there, and start it again"
    )]
    Clone {
        /// The group asked for.
        group: String,
        /// Start counter of the source in session.
        current: u64,
        /// Start counter of the copy.
        offered: u64,
    },
    /// Failing back or failed back.
    #[error("group \"{0}\" was failed back: its source is fenced and takes no more writes")]
    Fenced(String),
    /// The group can't be served.
    #[error("group \"{group}\" can't be served: {what}")]
    Failed {
        /// The group asked for.
        group: String,
        /// What happened and what to do.
        what: String,
    },
    /// There is no room for more sets, and nothing may be given up.
    #[error("group \"{group}\" takes no more for now: {what}")]
    Full {
        /// The group asked for.
        group: String,
        /// What is missing and what to do.
        what: String,
    },
    /// A message that no correct source sends.
    #[error("group \"{group}\": {what}: the process-server is damaged or of another version")]
    Malformed {
        /// The group asked for.
        group: String,
        /// The offending field.
        what: &'static str,
    },
}

impl Refusal {
    /// The short code on the wire.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownGroup(_) => "unknown-group",
            Self::NotGranted { .. } => "not-granted",
            Self::Disks { .. } => "disks",
            Self::Clone { .. } => "clone",
            Self::Fenced(_) => FAILED_BACK,
            Self::Failed { .. } => "failed",
            Self::Full { .. } => FULL,
            Self::Malformed { .. } => "malformed",
        }
    }

    /// Why a journal does not let a source open its phase.
    pub fn of_phase(group: &str, error: PhaseError) -> Self {
        let group = group.to_owned();
        match error {
            PhaseError::Clone { given, known } => Self::Clone { group, current: known, offered: given },
            other => Self::Failed { group, what: other.to_string() },
        }
    }

    /// Whether a trouble of this machine is the cause, which ends without the source.
    pub fn is_for_now(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Full { .. })
    }

    /// The answer to the source.
    pub fn to_message(&self, open: &OpenGroup) -> GroupRefused {
        GroupRefused {
            group: open.group.clone(),
            phase: open.phase,
            reason: self.code().to_owned(),
            message: self.to_string(),
            fence: matches!(self, Self::Fenced(_)),
        }
    }
}

/// Checks an `OpenGroup` and returns the life of the source that sent it.
///
/// `remembered` are the disks of earlier sessions: content is tied to their sizes, so they can't change under a journal.
pub fn check_open(
    open: &OpenGroup,
    certificate_names: &[String],
    rules: Option<&GroupRules>,
    remembered: Option<&[DiskSpec]>,
    door: Door,
) -> Result<SourceLife, Refusal> {
    let Some(rules) = rules else { return Err(Refusal::UnknownGroup(open.group.clone())) };
    if !certificate_names.contains(&rules.process_server) {
        return Err(Refusal::NotGranted {
            group: open.group.clone(),
            granted: rules.process_server.clone(),
            presented: describe_names(certificate_names),
        });
    }
    if door == Door::Fenced {
        return Err(Refusal::Fenced(open.group.clone()));
    }
    let instance = <[u8; INSTANCE_BYTES]>::try_from(&open.source_instance[..])
        .map_err(|_| Refusal::Malformed { group: open.group.clone(), what: "source_instance is not 16 bytes" })?;
    check_names(open, rules)?;
    for disk in &open.disks {
        check_shape(&open.group, disk)?;
    }
    if let Some(remembered) = remembered {
        check_sizes(open, remembered)?;
    }
    Ok(SourceLife { start: open.source_start, instance })
}

/// The answer to an opening that comes while another one of the connection is not answered yet.
pub fn busy(open: &OpenGroup) -> GroupRefused {
    GroupRefused {
        group: open.group.clone(),
        phase: open.phase,
        reason: "busy".to_owned(),
        message: format!("group \"{}\" is being opened; try again", open.group),
        fence: false,
    }
}

/// Whether `offered` may take the place of the session that `current` has open (L6).
pub fn may_replace(group: &str, current: &SourceLife, offered: &SourceLife) -> Result<(), Refusal> {
    let newer = offered.start > current.start;
    if newer || offered == current {
        return Ok(());
    }
    Err(Refusal::Clone { group: group.to_owned(), current: current.start, offered: offered.start })
}

fn describe_names(names: &[String]) -> String {
    if names.is_empty() {
        return "no name at all".to_owned();
    }
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

fn check_names(open: &OpenGroup, rules: &GroupRules) -> Result<(), Refusal> {
    let offered = open.disks.iter().map(|disk| disk.name.as_str());
    if offered.clone().eq(rules.disks.iter().map(String::as_str)) {
        return Ok(());
    }
    let what = format!(
        "the source has the disks [{}], this master-target's configuration has [{}]: make both lists equal, in the same order",
        offered.map(printable).collect::<Vec<_>>().join(", "),
        rules.disks.join(", ")
    );
    Err(Refusal::Disks { group: open.group.clone(), what })
}

/// A name from the peer, short and without control characters, for messages and logs.
fn printable(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn check_shape(group: &str, disk: &DiskSpec) -> Result<(), Refusal> {
    let malformed = |what| Err(Refusal::Malformed { group: group.to_owned(), what });
    if disk.size == 0 || !disk.size.is_multiple_of(SECTOR) || disk.size > DISK_BYTES_MAX {
        return malformed("a disk size is zero, no multiple of 512 or over 62 TiB");
    }
    let block = disk.logical_block;
    if !block.is_power_of_two() || !(SECTOR as u32..=LOGICAL_BLOCK_MAX).contains(&block) {
        return malformed("a logical block size is not a power of two from 512 to 65536");
    }
    Ok(())
}

fn check_sizes(open: &OpenGroup, remembered: &[DiskSpec]) -> Result<(), Refusal> {
    for disk in &open.disks {
        let Some(before) = remembered.iter().find(|other| other.name == disk.name) else { continue };
        if before.size != disk.size {
            let what = format!(
                "disk \"{}\" has {} bytes on the source but had {} when it was replicated: resizing a protected disk is \
                 not supported; restore the old size, or protect it as a new group",
                disk.name, disk.size, before.size
            );
            return Err(Refusal::Disks { group: open.group.clone(), what });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> GroupRules {
        GroupRules { name: "web".into(), process_server: "ps-1".into(), disks: vec!["os".into(), "data".into()] }
    }

    fn disk(name: &str, size: u64) -> DiskSpec {
        DiskSpec { name: name.into(), size, logical_block: 512 }
    }

    fn open() -> OpenGroup {
        OpenGroup {
            group: "web".into(),
            phase: 3,
            source_start: 7,
            source_instance: vec![9; 16],
            disks: vec![disk("os", 1 << 20), disk("data", 1 << 21)],
            ..OpenGroup::default()
        }
    }

    fn names() -> Vec<String> {
        vec!["ps-1".into()]
    }

    #[test]
    fn a_group_opens_for_its_certificate_and_disks() {
        let life = check_open(&open(), &names(), Some(&rules()), None, Door::Open).unwrap();
        assert_eq!(life, SourceLife { start: 7, instance: [9; 16] });
    }

    #[test]
    fn an_unconfigured_group_is_refused_by_name() {
        let refusal = check_open(&open(), &names(), None, None, Door::Open).unwrap_err();
        assert_eq!(refusal.code(), "unknown-group");
        assert!(refusal.to_string().contains("\"web\""));
    }

    #[test]
    fn another_certificate_is_refused_before_anything_about_the_group_is_told() {
        let mut other = open();
        other.disks.clear();
        let refusal = check_open(&other, &["ps-2".into()], Some(&rules()), None, Door::Fenced).unwrap_err();
        assert_eq!(refusal.code(), "not-granted");
        assert!(refusal.to_string().contains("ps-2"));
    }

    #[test]
    fn a_certificate_without_names_is_refused() {
        let refusal = check_open(&open(), &[], Some(&rules()), None, Door::Open).unwrap_err();
        assert!(refusal.to_string().contains("no name at all"));
    }

    #[test]
    fn a_failed_back_group_is_refused_and_fences_its_source() {
        let refusal = check_open(&open(), &names(), Some(&rules()), None, Door::Fenced).unwrap_err();
        let message = refusal.to_message(&open());
        assert!(message.fence);
        assert_eq!((message.reason.as_str(), message.phase), ("failed-back", 3));
    }

    #[test]
    fn disks_in_another_order_are_refused_with_both_lists() {
        let mut other = open();
        other.disks.reverse();
        let refusal = check_open(&other, &names(), Some(&rules()), None, Door::Open).unwrap_err();
        assert_eq!(refusal.code(), "disks");
        assert!(refusal.to_string().contains("[data, os]") && refusal.to_string().contains("[os, data]"));
    }

    #[test]
    fn a_missing_disk_is_refused() {
        let mut other = open();
        other.disks.pop();
        assert_eq!(check_open(&other, &names(), Some(&rules()), None, Door::Open).unwrap_err().code(), "disks");
    }

    #[test]
    fn a_disk_that_changed_its_size_is_refused() {
        let before = vec![disk("os", 1 << 20), disk("data", 1 << 22)];
        let refusal = check_open(&open(), &names(), Some(&rules()), Some(&before), Door::Open).unwrap_err();
        assert!(refusal.to_string().contains("\"data\""), "{refusal}");
        assert!(!refusal.to_message(&open()).fence);
    }

    #[test]
    fn disk_shapes_that_no_source_has_are_refused() {
        for (size, block) in [(0, 512), (513, 512), (u64::MAX - 511, 512), (4096, 0), (4096, 1000), (4096, 1 << 20)] {
            let mut other = open();
            other.disks[1] = DiskSpec { name: "data".into(), size, logical_block: block };
            let refusal = check_open(&other, &names(), Some(&rules()), None, Door::Open).unwrap_err();
            assert_eq!(refusal.code(), "malformed", "{size} {block}");
        }
    }

    #[test]
    fn a_short_instance_is_refused() {
        let mut other = open();
        other.source_instance = vec![1; 15];
        assert_eq!(check_open(&other, &names(), Some(&rules()), None, Door::Open).unwrap_err().code(), "malformed");
    }

    #[test]
    fn control_characters_of_a_peer_do_not_reach_the_message() {
        let mut other = open();
        other.disks[0].name = "a\x1b[2J".into();
        let refusal = check_open(&other, &names(), Some(&rules()), None, Door::Open).unwrap_err();
        assert!(!refusal.to_string().contains('\x1b'));
    }

    #[test]
    fn the_same_life_and_a_newer_start_replace_a_session() {
        let current = SourceLife { start: 7, instance: [1; 16] };
        assert_eq!(may_replace("web", &current, &current), Ok(()));
        assert_eq!(may_replace("web", &current, &SourceLife { start: 8, instance: [2; 16] }), Ok(()));
    }

    #[test]
    fn a_clone_never_replaces_a_session() {
        let current = SourceLife { start: 7, instance: [1; 16] };
        for (start, instance) in [(7, [2; 16]), (6, [1; 16]), (6, [2; 16])] {
            let refusal = may_replace("web", &current, &SourceLife { start, instance }).unwrap_err();
            assert_eq!(refusal.code(), "clone");
        }
    }
}
