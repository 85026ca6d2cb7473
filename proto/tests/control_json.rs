//! The JSON of the command line is the control messages as they are: keys, units and nulls of the contract.
#![allow(missing_docs, clippy::unwrap_used)]

use proto::control::{
    CommitReply, FailbackDisk, FailbackEstimate, FailbackReport, Job, LinkStatus, MasterTargetStatus, MountStatus,
    Point, ProcessServerStatus, SourceDiskStatus, SourceGroupStatus, TargetDiskStatus, TargetGroupStatus,
};
use serde::Serialize;
use serde_json::Value;

fn keys(message: &impl Serialize) -> Vec<String> {
    let value = serde_json::to_value(message).unwrap();
    let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
    keys.sort();
    keys
}

fn has(message: &impl Serialize, expected: &str) {
    let keys = keys(message);
    for key in expected.split_whitespace() {
        assert!(keys.iter().any(|found| found == key), "{key} is missing from {keys:?}");
    }
}

#[test]
fn every_key_of_the_contract_is_there() {
    has(&ProcessServerStatus::default(), "name groups link");
    has(&LinkStatus::default(), "rate_limit_bits_per_second sent_bytes throttled_seconds");
    let group = "name state reason state_seconds acked_set acked_time rpo_seconds backlog_bytes captured_bytes sent_bytes disks";
    has(&SourceGroupStatus::default(), group);
    has(&SourceDiskStatus::default(), "name size dirty_bytes sync_done_bytes sync_total_bytes");
    has(&MasterTargetStatus::default(), "name groups mounts");
    has(&MountStatus::default(), "id group disk point nbd writable overlay_bytes clients since");
    let group = "name state reason state_seconds durable_set applied_set newest_point_time received_bytes journal_bytes applied_bytes disks";
    has(&TargetGroupStatus::default(), group);
    has(&TargetDiskStatus::default(), "name target size");
    has(
        &Point::default(),
        "id set time kind label changed_bytes stored_bytes compressibility churn_bytes_per_second compressibility_drop",
    );
    has(&FailbackReport::default(), "group point seconds fenced_at disks");
    has(&FailbackDisk::default(), "name target size checksum");
    let job = "id group kind state step done_bytes total_bytes rate_bytes_per_second remaining_seconds error result began ended seconds";
    has(&Job::default(), job);
    has(&FailbackEstimate::default(), "group point blocks_max bytes_max undo_bytes_max free_bytes has_room seconds");
    has(&CommitReply::default(), "group point points bytes");
}

#[test]
fn what_is_unknown_is_null_and_what_is_a_number_is_a_number() {
    let group = SourceGroupStatus { backlog_bytes: 1 << 40, rpo_seconds: Some(0.5), ..Default::default() };
    let value = serde_json::to_value(&group).unwrap();
    assert_eq!(value["acked_set"], Value::Null);
    assert_eq!(value["reason"], Value::Null);
    assert_eq!(value["backlog_bytes"], 1_u64 << 40);
    assert_eq!(value["rpo_seconds"], 0.5);
    assert_eq!(value["disks"], Value::Array(Vec::new()));
    assert_eq!(serde_json::to_value(Point::default()).unwrap()["label"], Value::Null);
}
