//! Messages of the control stream as checked values: what protobuf can't say about them is checked here.
//!
//! After [`decode`] names are spelled legally, counts are within their bounds, identifiers have their length and a
//! body is there. Whether a message makes sense at this moment of a session is for the session to say.

mod compare;
mod repair;

use prost::Message;
use thiserror::Error;

use crate::ids::{Lineage, check_name};
use crate::limits::{
    DISK_BYTES_MAX, DISKS_PER_GROUP_MAX, DURABLE_PARTS_MAX, GROUPS_PER_CONNECTION_MAX, LABEL_BYTES_MAX,
    MESSAGE_BYTES_MAX, PARTS_PER_SET_MAX, SECTOR_BYTES, TEXT_BYTES_MAX,
};
use crate::replication::{
    DiskSpec, GroupOpened, Hello, OpenGroup, PartBegin, PartDurable, PartKind, PointKind, SealSet, SourceHeartbeat,
    SourceMessage, TargetMessage, Welcome, source_message, target_message,
};

/// Bytes of `OpenGroup.source_instance`.
pub const SOURCE_INSTANCE_BYTES: usize = 16;

/// Why bytes are not a message of the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Longer than any legal message.
    #[error("a message of {found} bytes is refused, {MESSAGE_BYTES_MAX} are allowed")]
    TooLong {
        /// Bytes that it has or declares.
        found: usize,
    },
    /// Not protobuf, or not of this schema.
    #[error("a message can't be decoded: {what}")]
    Malformed {
        /// What prost says.
        what: String,
    },
    /// A field has a value that is not allowed.
    #[error("a message is refused: {field}: {what}")]
    Field {
        /// Message and field, such as "OpenGroup.group".
        field: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

/// A message that can check itself.
pub trait WireMessage: Message + Default + PartialEq + std::fmt::Debug {
    /// Refuses values that the schema can't exclude.
    fn check(&self) -> Result<(), MessageError>;
}

/// Decodes and checks a message from the bytes between two length prefixes.
pub fn decode<M: WireMessage>(bytes: &[u8]) -> Result<M, MessageError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(MessageError::TooLong { found: bytes.len() });
    }
    let message = M::decode(bytes).map_err(|error| MessageError::Malformed { what: error.to_string() })?;
    message.check()?;
    Ok(message)
}

fn refused<T>(field: &'static str, what: impl Into<String>) -> Result<T, MessageError> {
    Err(MessageError::Field { field, what: what.into() })
}

fn name(field: &'static str, text: &str) -> Result<(), MessageError> {
    check_name(text).or_else(|error| refused(field, error.to_string()))
}

fn at_most(field: &'static str, found: usize, max: usize) -> Result<(), MessageError> {
    if found > max { refused(field, format!("{found} is more than the {max} that are allowed")) } else { Ok(()) }
}

fn part_index(field: &'static str, part: u32) -> Result<(), MessageError> {
    at_most(field, part as usize, PARTS_PER_SET_MAX as usize - 1)
}

fn part_kind(field: &'static str, kind: i32) -> Result<PartKind, MessageError> {
    PartKind::try_from(kind).or_else(|_| refused(field, format!("unknown kind {kind}")))
}

/// A set has a number from 1 on, bulk has none.
fn part_number(field: &'static str, kind: PartKind, number: u64) -> Result<(), MessageError> {
    match kind {
        PartKind::Bulk if number != 0 => refused(field, "bulk has no set number"),
        PartKind::Ordered if number == 0 => refused(field, "sets are counted from 1"),
        PartKind::Bulk | PartKind::Ordered => Ok(()),
    }
}

impl WireMessage for SourceMessage {
    fn check(&self) -> Result<(), MessageError> {
        use source_message::Body;
        match &self.body {
            None => refused("SourceMessage.body", "it is absent, or of a later version"),
            Some(Body::Hello(Hello { name: agent, .. })) => name("Hello.name", agent),
            Some(Body::OpenGroup(open)) => check_open_group(open),
            Some(Body::BeginBulk(begin)) => name("BeginBulk.group", &begin.group),
            Some(Body::SealSet(seal)) => check_seal(seal),
            Some(Body::Fenced(fenced)) => name("Fenced.group", &fenced.group),
            Some(Body::Heartbeat(beat)) => check_heartbeat(beat),
            Some(Body::CompareBlocks(compare)) => compare::check_compare(compare),
            Some(Body::RepairBlock(repair)) => repair::check_repair(repair),
            Some(Body::MarksVoid(void)) => {
                name("MarksVoid.group", &void.group)?;
                note_number("MarksVoid.number", void.number)
            }
        }
    }
}

fn check_open_group(open: &OpenGroup) -> Result<(), MessageError> {
    name("OpenGroup.group", &open.group)?;
    if open.source_instance.len() != SOURCE_INSTANCE_BYTES {
        return refused("OpenGroup.source_instance", format!("{} bytes instead of 16", open.source_instance.len()));
    }
    if !open.lineage.is_empty() && open.lineage.len() != Lineage::BYTES {
        return refused("OpenGroup.lineage", format!("{} bytes instead of 16 or none", open.lineage.len()));
    }
    if open.disks.is_empty() {
        return refused("OpenGroup.disks", "a group has at least one disk");
    }
    at_most("OpenGroup.disks", open.disks.len(), DISKS_PER_GROUP_MAX)?;
    open.disks.iter().try_for_each(check_disk)?;
    let mut names: Vec<&str> = open.disks.iter().map(|disk| disk.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => refused("OpenGroup.disks", format!("two disks have the name {:?}", pair[0])),
        None => Ok(()),
    }
}

fn check_disk(disk: &DiskSpec) -> Result<(), MessageError> {
    name("DiskSpec.name", &disk.name)?;
    if disk.size == 0 || disk.size > DISK_BYTES_MAX || !disk.size.is_multiple_of(SECTOR_BYTES) {
        let what = format!("{} bytes: whole sectors of 512 bytes up to {DISK_BYTES_MAX} bytes are allowed", disk.size);
        return refused("DiskSpec.size", what);
    }
    let is_block = disk.logical_block.is_power_of_two() && (512..=65_536).contains(&disk.logical_block);
    if is_block { Ok(()) } else { refused("DiskSpec.logical_block", format!("{} bytes", disk.logical_block)) }
}

fn check_seal(seal: &SealSet) -> Result<(), MessageError> {
    name("SealSet.group", &seal.group)?;
    at_most("SealSet.label", seal.label.len(), LABEL_BYTES_MAX)?;
    at_most("SealSet.parts", seal.parts as usize, PARTS_PER_SET_MAX as usize)?;
    if seal.number == 0 || seal.parent >= seal.number {
        return refused("SealSet.number", format!("set {} can't follow set {}", seal.number, seal.parent));
    }
    match PointKind::try_from(seal.kind) {
        Ok(_) => Ok(()),
        Err(_) => refused("SealSet.kind", format!("unknown kind {}", seal.kind)),
    }
}

fn check_heartbeat(beat: &SourceHeartbeat) -> Result<(), MessageError> {
    at_most("SourceHeartbeat.groups", beat.groups.len(), GROUPS_PER_CONNECTION_MAX)?;
    beat.groups.iter().try_for_each(|group| name("SourceGroupBeat.group", &group.group))
}

impl WireMessage for TargetMessage {
    fn check(&self) -> Result<(), MessageError> {
        use target_message::Body;
        match &self.body {
            None => refused("TargetMessage.body", "it is absent, or of a later version"),
            Some(Body::Welcome(Welcome { name: agent, .. })) => name("Welcome.name", agent),
            Some(Body::Refused(no)) => {
                at_most("Refused.reason", no.reason.len(), TEXT_BYTES_MAX)?;
                at_most("Refused.message", no.message.len(), TEXT_BYTES_MAX)
            }
            Some(Body::GroupOpened(opened)) => check_group_opened(opened),
            Some(Body::GroupRefused(no)) => {
                name("GroupRefused.group", &no.group)?;
                at_most("GroupRefused.reason", no.reason.len(), TEXT_BYTES_MAX)?;
                at_most("GroupRefused.message", no.message.len(), TEXT_BYTES_MAX)
            }
            Some(Body::GroupLost(lost)) => {
                name("GroupLost.group", &lost.group)?;
                at_most("GroupLost.reason", lost.reason.len(), TEXT_BYTES_MAX)?;
                at_most("GroupLost.message", lost.message.len(), TEXT_BYTES_MAX)
            }
            Some(Body::BulkBegun(begun)) => name("BulkBegun.group", &begun.group),
            Some(Body::PartDurable(part)) => check_part_durable(part),
            Some(Body::SetDurable(set)) => name("SetDurable.group", &set.group),
            Some(Body::FenceRequest(request)) => name("FenceRequest.group", &request.group),
            Some(Body::FailbackCancelled(cancelled)) => name("FailbackCancelled.group", &cancelled.group),
            Some(Body::Heartbeat(_)) => Ok(()),
            Some(Body::BlocksCompared(compared)) => compare::check_compared(compared),
            Some(Body::BlockRepaired(repaired)) => name("BlockRepaired.group", &repaired.group),
            Some(Body::MarksVoided(voided)) => {
                name("MarksVoided.group", &voided.group)?;
                note_number("MarksVoided.number", voided.number)
            }
        }
    }
}

/// Notes are counted from 1 on.
fn note_number(field: &'static str, number: u64) -> Result<(), MessageError> {
    if number == 0 { refused(field, "notes are counted from 1") } else { Ok(()) }
}

fn check_group_opened(opened: &GroupOpened) -> Result<(), MessageError> {
    name("GroupOpened.group", &opened.group)?;
    if opened.lineage.len() != Lineage::BYTES {
        return refused("GroupOpened.lineage", format!("{} bytes instead of 16", opened.lineage.len()));
    }
    if let Some(note) = &opened.marks_void {
        note_number("VoidNote.number", note.number)?;
    }
    at_most("GroupOpened.durable_parts", opened.durable_parts.len(), DURABLE_PARTS_MAX)?;
    opened.durable_parts.iter().try_for_each(|key| {
        part_index("PartKey.part", key.part)?;
        if key.number <= opened.last_set {
            return refused("PartKey.number", format!("set {} is not after set {}", key.number, opened.last_set));
        }
        Ok(())
    })
}

fn check_part_durable(part: &PartDurable) -> Result<(), MessageError> {
    name("PartDurable.group", &part.group)?;
    let kind = part_kind("PartDurable.kind", part.kind)?;
    part_number("PartDurable.number", kind, part.number)?;
    if kind == PartKind::Ordered { part_index("PartDurable.part", part.part) } else { Ok(()) }
}

impl WireMessage for PartBegin {
    fn check(&self) -> Result<(), MessageError> {
        name("PartBegin.group", &self.group)?;
        let kind = part_kind("PartBegin.kind", self.kind)?;
        part_number("PartBegin.number", kind, self.number)?;
        if kind == PartKind::Ordered { part_index("PartBegin.part", self.part) } else { Ok(()) }
    }
}

macro_rules! body {
    ($message:ident, $module:ident, $($variant:ident($body:ident)),* $(,)?) => {
        $(impl From<crate::replication::$body> for $message {
            fn from(body: crate::replication::$body) -> Self {
                Self { body: Some($module::Body::$variant(body)) }
            }
        })*
    };
}

body!(
    SourceMessage,
    source_message,
    Hello(Hello),
    OpenGroup(OpenGroup),
    BeginBulk(BeginBulk),
    SealSet(SealSet),
    Fenced(Fenced),
    Heartbeat(SourceHeartbeat),
    CompareBlocks(CompareBlocks),
    RepairBlock(RepairBlock),
    MarksVoid(MarksVoid),
);
body!(
    TargetMessage,
    target_message,
    Welcome(Welcome),
    Refused(Refused),
    GroupOpened(GroupOpened),
    GroupRefused(GroupRefused),
    BulkBegun(BulkBegun),
    PartDurable(PartDurable),
    SetDurable(SetDurable),
    FenceRequest(FenceRequest),
    FailbackCancelled(FailbackCancelled),
    Heartbeat(TargetHeartbeat),
    GroupLost(GroupLost),
    BlocksCompared(BlocksCompared),
    BlockRepaired(BlockRepaired),
    MarksVoided(MarksVoided),
);

impl SourceMessage {
    /// The group that the message is about; `None` for those about the connection.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        use source_message::Body;
        match self.body.as_ref()? {
            Body::Hello(_) | Body::Heartbeat(_) => None,
            Body::OpenGroup(body) => Some(&body.group),
            Body::BeginBulk(body) => Some(&body.group),
            Body::SealSet(body) => Some(&body.group),
            Body::Fenced(body) => Some(&body.group),
            Body::CompareBlocks(body) => Some(&body.group),
            Body::RepairBlock(body) => Some(&body.group),
            Body::MarksVoid(body) => Some(&body.group),
        }
    }
}

impl TargetMessage {
    /// The group that the message is about; `None` for those about the connection.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        use target_message::Body;
        match self.body.as_ref()? {
            Body::Welcome(_) | Body::Refused(_) | Body::Heartbeat(_) => None,
            Body::GroupOpened(body) => Some(&body.group),
            Body::GroupRefused(body) => Some(&body.group),
            Body::BulkBegun(body) => Some(&body.group),
            Body::PartDurable(body) => Some(&body.group),
            Body::SetDurable(body) => Some(&body.group),
            Body::FenceRequest(body) => Some(&body.group),
            Body::FailbackCancelled(body) => Some(&body.group),
            Body::GroupLost(body) => Some(&body.group),
            Body::BlocksCompared(body) => Some(&body.group),
            Body::BlockRepaired(body) => Some(&body.group),
            Body::MarksVoided(body) => Some(&body.group),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::replication::PartKey;

    fn open() -> OpenGroup {
        let disk = |name: &str| DiskSpec { name: name.to_owned(), size: 1 << 30, logical_block: 512 };
        OpenGroup {
            group: "web".to_owned(),
            phase: 1,
            source_start: 1,
            source_instance: vec![1; 16],
            disks: vec![disk("os"), disk("data")],
            lineage: Vec::new(),
            counter: 0,
        }
    }

    fn opened() -> GroupOpened {
        let durable_parts = vec![PartKey { number: 8, part: 0 }];
        GroupOpened { group: "web".to_owned(), lineage: vec![2; 16], last_set: 7, durable_parts, ..Default::default() }
    }

    fn seal() -> SealSet {
        SealSet { group: "web".to_owned(), number: 8, parent: 7, parts: 1, ..Default::default() }
    }

    pub(super) fn accepts<M: WireMessage>(message: impl Into<M>) {
        let message = message.into();
        assert_eq!(decode::<M>(&message.encode_to_vec()), Ok(message));
    }

    pub(super) fn refuses<M: WireMessage>(message: impl Into<M>, expected_field: &str) {
        match decode::<M>(&message.into().encode_to_vec()) {
            Err(MessageError::Field { field, .. }) => assert_eq!(field, expected_field),
            other => panic!("{expected_field}: {other:?}"),
        }
    }

    #[test]
    fn legal_messages_are_taken() {
        accepts::<SourceMessage>(open());
        accepts::<SourceMessage>(seal());
        accepts::<TargetMessage>(opened());
        accepts::<TargetMessage>(crate::replication::TargetHeartbeat { time_us: 5 });
    }

    #[test]
    fn a_message_without_a_known_body_is_refused() {
        refuses::<SourceMessage>(SourceMessage { body: None }, "SourceMessage.body");
        // Field 99, as a later version might have.
        assert!(decode::<TargetMessage>(&[0x9a, 0x06, 0x00]).is_err());
    }

    #[test]
    fn an_open_group_with_illegal_disks_or_identifiers_is_refused() {
        let with = |change: fn(&mut OpenGroup)| {
            let mut message = open();
            change(&mut message);
            message
        };
        for (change, field) in [
            ((|m| m.group = "../web".to_owned()) as fn(&mut OpenGroup), "OpenGroup.group"),
            (|m| m.source_instance.truncate(15), "OpenGroup.source_instance"),
            (|m| m.lineage = vec![0; 15], "OpenGroup.lineage"),
            (|m| m.disks.clear(), "OpenGroup.disks"),
            (|m| m.disks[1].name = "os".to_owned(), "OpenGroup.disks"),
            (
                |m| m.disks = (0..65).map(|i| DiskSpec { name: format!("d{i}"), ..m.disks[0].clone() }).collect(),
                "OpenGroup.disks",
            ),
            (|m| m.disks[0].name.clear(), "DiskSpec.name"),
            (|m| m.disks[0].size = 513, "DiskSpec.size"),
            (|m| m.disks[0].size = 0, "DiskSpec.size"),
            (|m| m.disks[0].size = u64::MAX - 511, "DiskSpec.size"),
            (|m| m.disks[0].logical_block = 0, "DiskSpec.logical_block"),
            (|m| m.disks[0].logical_block = 1000, "DiskSpec.logical_block"),
        ] {
            refuses::<SourceMessage>(with(change), field);
        }
    }

    #[test]
    fn a_seal_out_of_order_or_beyond_its_bounds_is_refused() {
        refuses::<SourceMessage>(SealSet { number: 0, parent: 0, ..seal() }, "SealSet.number");
        refuses::<SourceMessage>(SealSet { number: 8, parent: 8, ..seal() }, "SealSet.number");
        refuses::<SourceMessage>(SealSet { kind: 9, ..seal() }, "SealSet.kind");
        refuses::<SourceMessage>(SealSet { label: "x".repeat(257), ..seal() }, "SealSet.label");
        refuses::<SourceMessage>(SealSet { parts: u32::MAX, ..seal() }, "SealSet.parts");
    }

    #[test]
    fn an_answer_that_lists_parts_of_finished_sets_or_too_many_is_refused() {
        let old = vec![PartKey { number: 7, part: 0 }];
        refuses::<TargetMessage>(GroupOpened { durable_parts: old, ..opened() }, "PartKey.number");
        let many = vec![PartKey { number: 8, part: 0 }; DURABLE_PARTS_MAX + 1];
        refuses::<TargetMessage>(GroupOpened { durable_parts: many, ..opened() }, "GroupOpened.durable_parts");
        refuses::<TargetMessage>(GroupOpened { lineage: Vec::new(), ..opened() }, "GroupOpened.lineage");
    }

    #[test]
    fn a_part_of_a_set_has_a_number_and_a_bulk_part_has_none() {
        let begin = |kind: PartKind, number| PartBegin {
            group: "web".to_owned(),
            kind: kind.into(),
            number,
            phase: 1,
            part: 0,
            marks: 0,
        };
        accepts::<PartBegin>(begin(PartKind::Bulk, 0));
        accepts::<PartBegin>(begin(PartKind::Ordered, 1));
        refuses::<PartBegin>(begin(PartKind::Bulk, 1), "PartBegin.number");
        refuses::<PartBegin>(begin(PartKind::Ordered, 0), "PartBegin.number");
        refuses::<PartBegin>(PartBegin { kind: 7, ..begin(PartKind::Ordered, 1) }, "PartBegin.kind");
        refuses::<PartBegin>(PartBegin { part: PARTS_PER_SET_MAX, ..begin(PartKind::Ordered, 1) }, "PartBegin.part");
    }

    #[test]
    fn a_message_longer_than_any_legal_one_is_refused_before_it_is_decoded() {
        let bytes = vec![0; MESSAGE_BYTES_MAX + 1];
        assert_eq!(decode::<SourceMessage>(&bytes), Err(MessageError::TooLong { found: bytes.len() }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<SourceMessage>(&bytes);
            let _ = decode::<TargetMessage>(&bytes);
            let _ = decode::<PartBegin>(&bytes);
        }
    }
}
