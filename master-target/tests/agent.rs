//! The whole agent with a source that speaks the protocol: synchronisation, points, restore, failback, restarts, and
//! what it refuses.
#![allow(clippy::unwrap_used)]

mod site;
mod source;

use master_target::journal::{DirVolume, Journal, Options};
use master_target::recover::steps::{Choice, Plan, Source as FailbackSource, Stage};
use master_target::recover::{Ranges, RecoveryState};
use proto::control::{FailbackRequest, PointsRequest};
use proto::ids::{Lineage, SetNumber};
use proto::replication::target_message::Body;
use proto::replication::{DiskSpec, PartKind};
use proto::time::Timestamp;
use site::{SIZES, Site, history, random_bytes};
use source::{Source, apply, data, encode};

#[tokio::test(flavor = "multi_thread")]
async fn every_point_can_be_restored_while_replication_goes_on() {
    let site = Site::new();
    let mut agent = site.start().await;
    assert_eq!(agent.group().await.state, "waiting");
    let mut source = site.source().await;
    let history = history(&mut source).await;
    let group = agent.until("protected", |group| group.state == "protected" && group.applied_set == Some(5)).await;
    assert_eq!((group.durable_set, group.disks[0].size), (Some(5), Some(SIZES[0])));
    assert!(group.received_bytes > 1 << 20 && group.journal_bytes > 0 && group.applied_bytes > 0);
    let points = agent.points().await;
    assert_eq!(points.iter().map(|point| point.set).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(points[2].label.as_deref(), Some("before upgrade"));
    for (point, disks) in points.iter().zip(&history) {
        for (disk, expected) in disks.iter().enumerate() {
            let to = site.path(&format!("p{}-{disk}.raw", point.id));
            let report = agent.restore(&format!("d{disk}"), &point.id, &to, "raw").await.unwrap();
            assert!(std::fs::read(&to).unwrap() == *expected, "point {} disk {disk}", point.id);
            assert_eq!(report.checksum, format!("blake3:{}", blake3::hash(expected)));
        }
    }
    let to = site.path("label.vmdk");
    let report = agent.restore("d0", "before upgrade", &to, "vmdk").await.unwrap();
    assert_eq!(report.point, "3");
    assert!(std::fs::read(site.path("label-flat.vmdk")).unwrap() == history[2][0]);
    let error = agent.restore("d0", "latest", &to, "vmdk").await.unwrap_err();
    assert!(error.contains("label.vmdk: exists already"), "{error}");
    for (disk, point, expected) in [("d9", "latest", "its disks are d0, d1"), ("d0", "nonsense", "nonsense")] {
        let error = agent.restore(disk, point, &site.path("none.raw"), "raw").await.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    source.close().await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_to_latest_fences_drains_and_hands_over_identical_disks() {
    let site = Site::new();
    let mut agent = site.start().await;
    let mut source = site.source().await;
    let mut disks = history(&mut source).await.pop().unwrap();
    let mut client = agent.client.clone();
    let request = FailbackRequest { group: "web".to_owned(), point: None, without_source: false };
    let mut stream = client.failback(request).await.unwrap().into_inner();
    let last = vec![data(0, 4000, random_bytes(77, 4096))];
    apply(&mut disks, &last);
    // The fence is answered before the last set is here: nothing may be locked out until it is.
    source.fence(6).await;
    source.send_set(6, last, "", false).await;
    let mut steps = Vec::new();
    let report = loop {
        let message = stream.message().await.unwrap().unwrap();
        steps.push(message.step);
        if let Some(report) = message.report {
            break report;
        }
    };
    assert_eq!((report.point.as_str(), report.fenced_at.as_deref()), ("6", Some("2023-11-14T22:13:20.000000Z")));
    for (disk, expected) in disks.iter().enumerate() {
        assert!(site.target(disk) == *expected, "disk {disk}");
        assert_eq!(report.disks[disk].checksum, format!("blake3:{}", blake3::hash(expected)));
    }
    // The session ends, and only it.
    let lost = source.answer(|body| match body {
        Body::GroupLost(lost) => Some((lost.group, lost.reason)),
        _ => None,
    });
    assert_eq!(lost.await.expect("the connection stays"), ("web".to_owned(), "failed-back".to_owned()));
    let refused = source.open(&SIZES, 9, 1).await.unwrap_err();
    assert!(refused.fence && refused.reason == "failed-back", "{refused:?}");
    let mut again = site.source().await;
    let refused = again.open(&SIZES, 9, 2).await.unwrap_err();
    assert!(refused.fence && refused.reason == "failed-back", "{refused:?}");
    assert_eq!(agent.group().await.state, "failed-back");
    assert_eq!(agent.failback(None, false).await.unwrap(), report);
    // Points are there all the same, read beside the machine that has the disks.
    agent.restore("d0", "latest", &site.path("x.raw"), "raw").await.unwrap();
    assert!(std::fs::read(site.path("x.raw")).unwrap() == disks[0], "the restored disk");
    agent.stop().await;
    // After a restart it is still so, and nothing is written or locked.
    let before = site.target(0);
    let mut agent = site.start().await;
    agent.until("failed-back", |group| group.state == "failed-back").await;
    assert_eq!(agent.points().await.len(), 6);
    let mut again = site.source().await;
    assert!(again.open(&SIZES, 10, 3).await.unwrap_err().fence);
    agent.stop().await;
    assert!(site.target(0) == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_to_an_older_point_without_the_source_puts_that_point_on_the_disks() {
    let site = Site::new();
    let mut agent = site.start().await;
    let mut source = site.source().await;
    let history = history(&mut source).await;
    source.close().await;
    agent.until("waiting", |group| group.state == "waiting").await;
    let error = agent.failback(None, false).await.unwrap_err();
    assert!(error.contains("ps-1") && error.contains("--without-source"), "{error}");
    let error = agent.failback(Some("99"), true).await.unwrap_err();
    assert!(error.contains("99"), "{error}");
    let report = agent.failback(Some("2"), true).await.unwrap();
    assert_eq!((report.point.as_str(), report.fenced_at.as_deref()), ("2", None));
    for (disk, expected) in history[1].iter().enumerate() {
        assert!(site.target(disk) == *expected, "disk {disk}");
        assert_eq!(report.disks[disk].checksum, format!("blake3:{}", blake3::hash(expected)));
    }
    // Until it is committed, another one can be chosen.
    let report = agent.failback(Some("3"), true).await.unwrap();
    assert_eq!(report.point, "3");
    for (disk, expected) in history[2].iter().enumerate() {
        assert!(site.target(disk) == *expected, "disk {disk}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_that_waits_for_its_source_goes_on_after_a_restart() {
    let site = Site::new();
    let agent = site.start().await;
    let mut source = site.source().await;
    let disks = history(&mut source).await.pop().unwrap();
    let mut client = agent.client.clone();
    let request = FailbackRequest { group: "web".to_owned(), point: None, without_source: false };
    let stream = client.failback(request).await.unwrap();
    // The fence was asked for, so the plan is durable.
    source.answer(|body| matches!(body, Body::FenceRequest(_)).then_some(())).await.unwrap();
    drop((stream, client));
    agent.stop().await;
    let mut agent = site.start().await;
    // Before it waits for its source it lets none in.
    let waits = |reason: &str| reason.contains("waiting for ps-1");
    agent.until("waiting", |group| group.reason.as_deref().is_some_and(waits)).await;
    let mut source = site.source().await;
    let opened = source.open(&SIZES, 2, 2).await.unwrap();
    assert_eq!(opened.last_set, 5);
    source.fence(5).await;
    let report = agent.failback(None, false).await.unwrap();
    assert_eq!(report.point, "5");
    assert!(site.target(0) == disks[0] && site.target(1) == disks[1]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_goes_on_after_a_restart_from_the_last_durable_set() {
    let site = Site::new();
    let agent = site.start().await;
    let mut source = site.source().await;
    let mut disks = history(&mut source).await.pop().unwrap();
    let half = source.part_begin(PartKind::Ordered, 6, 0);
    source.send_part(&half, vec![data(0, 0, random_bytes(9, 512))]).await;
    agent.stop().await;
    assert!(source.close_reason().await.contains("stops"));
    let mut agent = site.start().await;
    let mut source = site.source().await;
    let opened = source.open(&SIZES, 2, 1).await.unwrap();
    // Half a set of another phase is nothing.
    assert_eq!((opened.last_set, opened.durable_parts.len(), opened.bulk_open), (5, 0, false));
    let extents = vec![data(1, 8, random_bytes(50, 2048))];
    apply(&mut disks, &extents);
    source.send_set(6, extents, "", false).await;
    agent.until("applied", |group| group.applied_set == Some(6)).await;
    assert!(site.target(0) == disks[0] && site.target(1) == disks[1]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_compared_with_everything_that_is_durable_on_the_disks() {
    let site = Site::new();
    let agent = site.start().await;
    let mut source = site.source().await;
    let mut disks = history(&mut source).await.pop().unwrap();
    // Set 5 is durable, and perhaps not applied yet.
    let same = [(0, 0, &disks[0][..1 << 20]), (0, 8192, &disks[0][4 << 20..5 << 20]), (1, 0, &disks[1][..])];
    let (differs, counter) = source.compare(1, &same).await.unwrap();
    assert_eq!(differs, [0; 0]);
    disks[0][(4 << 20) + 70_000] ^= 1;
    *disks[1].last_mut().unwrap() ^= 1;
    let changed = [(0, 8192, &disks[0][4 << 20..5 << 20]), (0, 14336, &[1; 65536]), (1, 0, &disks[1][..])];
    assert_eq!(source.compare(2, &changed).await.unwrap().0, [1, 16, 33]);
    // While catching up, with content on its way to the disks.
    source.begin_bulk().await;
    let begin = source.part_begin(PartKind::Bulk, 0, 0);
    let piece = disks[0][(4 << 20) + 65_536..][..65_536].to_vec();
    source.send_part(&begin, vec![data(0, 8192 + 128, piece)]).await;
    let (differs, later) = source.compare(3, &changed).await.unwrap();
    assert_eq!(differs, [16, 33]);
    assert!(later > counter);
    assert_eq!(source.compare(4, &[(1, 2040, &[0; 8192])]).await, None, "beyond the end of the disk");
    let reason = source.close_reason().await;
    assert!(reason.contains("16 sectors at sector 2040 are not on disk 1"), "{reason}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_were_there_before_are_said_to_be_worth_comparing_and_new_ones_are_not() {
    let site = Site::new();
    let agent = site.start().await;
    let mut source = site.source().await;
    let opened = source.open(&SIZES, 1, 1).await.unwrap();
    assert!(!opened.comparable && !opened.has_history, "{opened:?}");
    source.synchronise(vec![data(0, 0, random_bytes(1, 4096))], vec![]).await;
    assert!(source.open(&SIZES, 2, 1).await.unwrap().comparable, "something came");
    agent.stop().await;

    let site = Site::new();
    let mut before = vec![0; SIZES[1] as usize];
    before[..4096].fill(7);
    std::fs::write(site.path("d1.raw"), &before).unwrap();
    let agent = site.start().await;
    let mut source = site.source().await;
    let opened = source.open(&SIZES, 1, 1).await.unwrap();
    assert!(opened.comparable && !opened.has_history, "{opened:?}");
    source.begin_bulk().await;
    assert_eq!(source.compare(1, &[(0, 0, &[0; 4096]), (1, 0, &before)]).await.unwrap().0, [0; 0]);
    before[0] = 0;
    assert_eq!(source.compare(2, &[(1, 0, &before)]).await.unwrap().0, [0]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_told_the_marks_of_the_newest_durable_set() {
    let site = Site::new();
    let agent = site.start().await;
    let mut source = site.source().await;
    assert_eq!(source.open(&SIZES, 1, 1).await.unwrap().marks, 0);
    source.marks = 12;
    source.synchronise(vec![data(0, 0, random_bytes(1, 4096))], vec![]).await;
    source.marks = 13;
    source.send_set(2, vec![data(0, 8, random_bytes(2, 512))], "", false).await;
    agent.stop().await;
    let agent = site.start().await;
    let mut source = site.source().await;
    assert_eq!(source.open(&SIZES, 2, 1).await.unwrap().marks, 13);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_frame_is_refused_with_its_place_and_nothing_is_lost() {
    let site = Site::new();
    let mut agent = site.start().await;
    let mut source = site.source().await;
    let mut disks = history(&mut source).await.pop().unwrap();
    let begin = source.part_begin(PartKind::Ordered, 6, 0);
    let mut frames = encode(&begin, vec![data(1, 16, random_bytes(60, 4096))]);
    // The record is whole, its content is not what was captured: only the CRC of the extent can tell.
    let mut payload = frames[0].payload.to_vec();
    payload[100] ^= 1;
    let record =
        proto::record::Record::parse(&[&frames[0].head[..], &frames[0].payload[..]].concat().into()).unwrap().0;
    let header: proto::replication::FrameHeader = record.header_as().unwrap();
    frames[0].head = proto::record::Record::encode_head(proto::record::RecordKind::Frame, &header, &payload);
    frames[0].payload = payload.into();
    source.send_frames(&begin, frames).await;
    let reason = source.close_reason().await;
    assert!(reason.contains("group \"web\", set 6 part 0, disk \"d1\" at byte 8192"), "{reason}");
    let mut source = site.source().await;
    assert_eq!(source.open(&SIZES, 2, 1).await.unwrap().last_set, 5);
    let extents = vec![data(1, 16, random_bytes(60, 4096))];
    apply(&mut disks, &extents);
    source.send_set(6, extents, "", false).await;
    agent.until("applied", |group| group.applied_set == Some(6)).await;
    assert!(site.target(1) == disks[1]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extent_outside_its_disk_is_refused() {
    let site = Site::new();
    let mut agent = site.start().await;
    let mut source = site.source().await;
    history(&mut source).await;
    let begin = source.part_begin(PartKind::Ordered, 6, 0);
    let frames = encode(&begin, vec![data(1, SIZES[1] / 512, random_bytes(60, 512))]);
    source.send_frames(&begin, frames).await;
    let reason = source.close_reason().await;
    assert!(reason.contains("disk \"d1\""), "{reason}");
    let group = agent.until("waiting", |group| group.state == "waiting").await;
    assert_eq!(group.durable_set, Some(5));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_name_or_certificate_gets_no_group() {
    let site = Site::new();
    let agent = site.start().await;
    let liar = Source::connect(&site.path("pki"), "ps-1", "ps-2", site.port).await;
    assert!(matches!(&liar.greeting, Body::Refused(refused) if refused.reason == "name"), "{:?}", liar.greeting);
    // The agent's own certificate is of the right authority, and has no grant.
    let mut other = Source::connect(&site.path("pki"), "mt-1", "mt-1", site.port).await;
    let refused = other.open(&SIZES, 1, 1).await.unwrap_err();
    assert_eq!((refused.reason.as_str(), refused.fence), ("not-granted", false));
    let mut source = site.source().await;
    let refused = source.open(&SIZES[..1], 1, 1).await.unwrap_err();
    assert_eq!(refused.reason, "disks");
    assert!(!site.path("ds1/web").exists(), "nothing is made for a refused source");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_replaces_the_session_and_a_clone_does_not() {
    let site = Site::new();
    let agent = site.start().await;
    let mut first = site.source().await;
    history(&mut first).await;
    let mut second = site.source().await;
    assert_eq!(second.open(&SIZES, 1, 1).await.unwrap().last_set, 5);
    assert!(first.close_reason().await.contains("taken by another connection"));
    let mut clone = site.source().await;
    let refused = clone.open(&SIZES, 1, 0).await.unwrap_err();
    assert_eq!(refused.reason, "clone");
    second.send_set(6, vec![data(0, 0, random_bytes(1, 512))], "", false).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_somebody_else_replaced_must_be_sent_anew() {
    let site = Site::new();
    let agent = site.start().await;
    let mut source = site.source().await;
    history(&mut source).await;
    let first = source.open(&SIZES, 2, 1).await.unwrap();
    source.close().await;
    agent.stop().await;
    for name in ["d0.vmdk", "d0-flat.vmdk"] {
        std::fs::remove_file(site.path("ds1/web").join(name)).unwrap();
    }
    let mut agent = site.start().await;
    let mut source = site.source().await;
    let second = source.open(&SIZES, 3, 1).await.unwrap();
    assert!(!second.has_history && second.last_set == 0, "{second:?}");
    assert_ne!(first.lineage, second.lineage);
    assert_eq!(agent.points().await.len(), 0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_synchronisation_is_shown_and_continued() {
    let site = Site::new();
    let mut agent = site.start().await;
    let mut source = site.source().await;
    let opened = source.open(&SIZES, 1, 1).await.unwrap();
    assert!(!opened.has_history && !opened.bulk_open);
    source.begin_bulk().await;
    let begin = source.part_begin(PartKind::Bulk, 0, 0);
    source.send_part(&begin, vec![data(0, 0, random_bytes(1, 1 << 20))]).await;
    assert_eq!(agent.group().await.state, "syncing");
    let error = agent.failback(None, true).await.unwrap_err();
    assert!(error.contains("no recovery point"), "{error}");
    source.close().await;
    let mut source = site.source().await;
    let opened = source.open(&SIZES, 2, 1).await.unwrap();
    assert!(opened.bulk_open);
    source.begin_bulk().await;
    source.send_set(1, vec![data(1, 0, random_bytes(2, 512))], "", true).await;
    agent.until("protected", |group| group.state == "protected").await;
    assert_eq!(agent.points().await.len(), 1);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_stops_its_group_with_file_and_remedy() {
    let site = Site::new();
    let agent = site.start().await;
    let mut source = site.source().await;
    history(&mut source).await;
    agent.stop().await;
    let before = site.target(0);
    let manifest = site.path("retention/web/journal-1/manifest");
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&manifest, bytes).unwrap();
    let mut agent = site.start().await;
    let group = agent.until("failed", |group| group.state == "failed").await;
    assert!(group.reason.unwrap().contains("journal-1/manifest"));
    let error = agent.client.points(PointsRequest { group: "web".to_owned() }).await.unwrap_err();
    assert!(error.message().contains("can't be read"), "{}", error.message());
    let mut source = site.source().await;
    let refused = source.open(&SIZES, 2, 1).await.unwrap_err();
    assert_eq!((refused.reason.as_str(), refused.fence), ("failed", false));
    agent.stop().await;
    assert!(site.target(0) == before, "nothing is written without its journal");
}

#[tokio::test(flavor = "multi_thread")]
async fn r7_a_group_whose_configured_disks_differ_keeps_its_points_until_a_source_has_the_same() {
    let site = Site::new();
    let agent = site.start().await;
    let mut source = site.source().await;
    history(&mut source).await;
    agent.stop().await;
    let config = std::fs::read_to_string(site.path("mt.toml")).unwrap();
    std::fs::write(site.path("mt.toml"), config.replace("name = \"d1\"", "name = \"d7\"")).unwrap();
    let mut agent = site.start().await;
    let group = agent.until("its points", |group| group.newest_point_time.is_some()).await;
    assert_ne!(group.state, "failed", "{:?}", group.reason);
    let names: Vec<_> = group.disks.iter().map(|disk| (disk.name.as_str(), disk.size.is_some())).collect();
    assert_eq!(names, [("d0", true), ("d7", false)], "nobody has opened it with d7 yet");
    agent.stop().await;
}

/// What a crash leaves behind when sessions were locked out already, with or without a rollback begun.
fn leave_failback_half_done(site: &Site, choice: Choice, rollback_to: Option<u64>) {
    let volume = DirVolume::open(&site.path("retention/web/journal-1")).unwrap();
    let spec = |(index, size): (usize, u64)| DiskSpec { name: format!("d{index}"), size, logical_block: 512 };
    let specs: Vec<DiskSpec> = SIZES.into_iter().enumerate().map(spec).collect();
    let now = Timestamp(1_700_000_100_000_000);
    let journal = Journal::open(volume, &specs, now, Options::default()).unwrap();
    let plan = Plan {
        request: 1,
        choice,
        source: FailbackSource::Without,
        stage: Stage::LockedOut,
        fenced: None,
        started_us: now.us(),
        is_again: false,
        spoilt: Ranges::default(),
    };
    RecoveryState::FailingBack { plan: serde_json::to_string(&plan).unwrap() }.record(&journal, None).unwrap();
    if let Some(set) = rollback_to {
        journal.begin_rollback(SetNumber(set), Lineage([5; 16]), now).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_that_crashed_after_the_lock_out_is_finished_at_the_next_start() {
    for (choice, rollback_to, point) in
        [(Choice::Latest, None, 5), (Choice::Point(2), None, 2), (Choice::Point(3), Some(3), 3)]
    {
        let site = Site::new();
        let mut agent = site.start().await;
        let mut source = site.source().await;
        let history = history(&mut source).await;
        agent.until("applied", |group| group.applied_set == Some(5)).await;
        agent.stop().await;
        leave_failback_half_done(&site, choice, rollback_to);
        let mut agent = site.start().await;
        let mut source = site.source().await;
        assert!(source.open(&SIZES, 2, 1).await.unwrap_err().fence, "no set may come in between");
        agent.until("failed-back", |group| group.state == "failed-back").await;
        let report = agent.failback(None, false).await.unwrap();
        assert_eq!(report.point, point.to_string());
        let expected = &history[point - 1];
        assert!(site.target(0) == expected[0] && site.target(1) == expected[1], "{choice:?}");
        agent.stop().await;
    }
}
