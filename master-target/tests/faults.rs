//! Faults of the target's machine: a retention volume that becomes read-only, vanishes or is full. A group ends its
//! session, says what is wrong, and comes back by itself; other groups of the same connection go on.
#![allow(clippy::unwrap_used)]

mod mounted;
mod site;
mod source;

use mounted::Mounted;
use proto::replication::GroupLost;
use proto::replication::target_message::Body;
use site::{SIZES, Site, history, random_bytes};
use source::{Source, apply, data};

/// Waits until the target gives the group up.
async fn lost(source: &mut Source) -> GroupLost {
    let lost = source.answer(|body| match body {
        Body::GroupLost(lost) => Some(lost),
        _ => None,
    });
    lost.await.expect("the connection stays")
}

/// Opens the group as often as it takes, as a process-server does; says what it was refused with until then.
async fn opened(source: &mut Source, phase: u64) -> (u64, Vec<String>) {
    let mut refusals = Vec::new();
    for _ in 0..600 {
        match source.open(&SIZES, phase, 1).await {
            Ok(opened) => return (opened.last_set, refusals),
            Err(refused) => refusals.push(format!("{}: {}", refused.reason, refused.message)),
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("never opened again: {:?}", refusals.last());
}

const DB: &str = r#"[[group]]
name = "db"
process_server = "ps-1"
[[group.disk]]
name = "d0"
target = "[ds1] db/d0.vmdk"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_retention_volume_fails_its_group_only_which_comes_back_by_itself() {
    let site = Site::new();
    site.write_config_with("", DB);
    // Only the folder of one group lies on this volume.
    let volume = Mounted::new(&site.path("retention/web"), 64);
    let mut agent = site.start().await;
    let mut source = site.source().await;
    let mut disks = history(&mut source).await.pop().unwrap();
    agent.until("applied", |group| group.applied_set == Some(5)).await;
    source.group = "db".to_owned();
    source.open(&SIZES[..1], 1, 1).await.unwrap();
    source.begin_bulk().await;

    volume.fail();
    (source.group, source.phase) = ("web".to_owned(), 1);
    let extents = vec![data(0, 0, random_bytes(9, 512))];
    let begin = source.part_begin(proto::replication::PartKind::Ordered, 6, 0);
    source.send_frames(&begin, source::encode(&begin, extents.clone())).await;
    let told = lost(&mut source).await;
    assert_eq!((told.group.as_str(), told.phase, told.reason.as_str()), ("web", 1, "failed"));
    let file = site.path("retention/web/journal-1").display().to_string();
    assert!(told.message.contains(&file) && told.message.contains("make the retention volume writable"), "{told:?}");
    let group = agent.until("failed", |group| group.state == "failed").await;
    assert!(group.reason.unwrap().contains("Read-only file system"));
    let refused = source.open(&SIZES, 2, 1).await.unwrap_err();
    assert_eq!((refused.reason.as_str(), refused.fence), ("failed", false));

    // The other group of the same connection never noticed.
    (source.group, source.phase) = ("db".to_owned(), 1);
    source.send_set(1, vec![data(0, 0, random_bytes(8, 4096))], "", true).await;

    agent.until("let go", |group| group.durable_set.is_none()).await;
    volume.unmount();
    volume.mount();
    source.group = "web".to_owned();
    let (last_set, refusals) = opened(&mut source, 2).await;
    assert_eq!(last_set, 5);
    assert!(refusals.iter().all(|refusal| refusal.starts_with("failed: ")), "{refusals:?}");
    apply(&mut disks, &extents);
    source.send_set(6, extents, "", false).await;
    agent.until("applied", |group| group.state == "protected" && group.applied_set == Some(6)).await;
    assert!(site.target(0) == disks[0] && site.target(1) == disks[1]);
    assert_eq!(agent.points().await.len(), 6);
    source.close().await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vanished_retention_volume_voids_nothing_and_is_found_again_when_it_is_back() {
    let site = Site::new();
    let volume = Mounted::new(&site.path("retention/web"), 64);
    let mut agent = site.start().await;
    let mut source = site.source().await;
    history(&mut source).await;
    agent.until("applied", |group| group.applied_set == Some(5)).await;
    volume.fail();
    let begin = source.part_begin(proto::replication::PartKind::Ordered, 6, 0);
    source.send_frames(&begin, source::encode(&begin, vec![data(0, 0, random_bytes(9, 512))])).await;
    lost(&mut source).await;
    // All files of the failed group are let go, so the volume can be taken away and checked.
    agent.until("let go", |group| group.durable_set.is_none()).await;
    volume.unmount();
    let group =
        agent.until("vanished", |group| group.reason.as_ref().is_some_and(|why| why.contains("vanished"))).await;
    assert!(group.reason.unwrap().contains("mount the retention volume again"));
    let left: Vec<_> = std::fs::read_dir(&volume.path).unwrap().collect();
    assert!(left.is_empty(), "nothing is made in the empty folder: {left:?}");
    volume.mount();
    assert_eq!(opened(&mut source, 2).await.0, 5);
    source.send_set(6, vec![data(0, 0, random_bytes(7, 512))], "", false).await;
    assert_eq!(agent.points().await.len(), 6);
    source.close().await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datastore_that_vanished_is_waited_for_and_no_new_disk_is_made() {
    let site = Site::new();
    let volume = Mounted::new(&site.path("ds1"), 64);
    let mut agent = site.start().await;
    let mut source = site.source().await;
    history(&mut source).await;
    agent.until("applied", |group| group.applied_set == Some(5)).await;
    volume.fail();
    // The content of a disk on it can't be made durable any more.
    source.send_set(6, vec![data(0, 0, random_bytes(9, 1 << 16))], "", false).await;
    agent.until("let go", |group| group.state == "failed" && group.durable_set.is_none()).await;
    volume.unmount();
    agent.until("missing", |group| group.reason.as_ref().is_some_and(|why| why.contains("d0.vmdk"))).await;
    assert_eq!(std::fs::read_dir(&volume.path).unwrap().count(), 0, "no disk is made in the empty folder");
    volume.mount();
    assert_eq!(opened(&mut source, 2).await.0, 6, "what was acknowledged is there");
    agent.until("applied", |group| group.applied_set == Some(6)).await;
    assert_eq!(agent.points().await.len(), 6);
    source.close().await;
    agent.stop().await;
}

/// A set that does not compress, over the same blocks each time.
fn busy_set(number: u64) -> Vec<proto::frame::RawExtent> {
    vec![data(0, 0, random_bytes(number as u8, 256 << 10)), data(1, 0, random_bytes(number as u8 + 1, 64 << 10))]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_that_may_drop_the_oldest_keeps_replicating_and_the_newest_points() {
    let site = Site::new();
    let _volume = Mounted::new(&site.path("retention/web"), 24);
    let mut agent = site.start().await;
    let mut source = site.source().await;
    let mut disks = history(&mut source).await.pop().unwrap();
    for number in 6..=150 {
        let extents = busy_set(number);
        apply(&mut disks, &extents);
        source.send_set(number, extents, "", false).await;
    }
    let group = agent.until("applied", |group| group.applied_set == Some(150)).await;
    assert_eq!((group.state.as_str(), group.reason), ("protected", None));
    let points = agent.points().await;
    let sets: Vec<u64> = points.iter().map(|point| point.set).collect();
    assert_eq!(sets.last(), Some(&150));
    assert!(sets[0] > 5, "the oldest went: {sets:?}");
    assert!(sets.windows(2).all(|pair| pair[0] + 1 == pair[1]), "none went from the middle: {sets:?}");
    for (disk, expected) in disks.iter().enumerate() {
        let to = site.path(&format!("latest-{disk}.raw"));
        agent.restore(&format!("d{disk}"), "latest", &to, "raw").await.unwrap();
        assert!(std::fs::read(&to).unwrap() == *expected);
    }
    let to = site.path("oldest.raw");
    agent.restore("d0", &sets[0].to_string(), &to, "raw").await.unwrap();
    assert!(std::fs::read(&to).unwrap()[..256 << 10] == random_bytes(sets[0] as u8, 256 << 10));
    source.close().await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_pauses_on_a_full_volume_says_so_and_goes_on_by_itself() {
    let site = Site::new();
    site.write_config("when_full = \"pause\"");
    let volume = Mounted::new(&site.path("retention/web"), 64);
    let mut agent = site.start().await;
    let mut source = site.source().await;
    let mut disks = history(&mut source).await.pop().unwrap();
    agent.until("applied", |group| group.applied_set == Some(5)).await;
    volume.fill(3 << 20);
    let begin = source.part_begin(proto::replication::PartKind::Ordered, 6, 0);
    let large = (0..4u8).map(|mib| data(0, u64::from(mib) << 11, random_bytes(mib, 1 << 20))).collect();
    source.send_frames(&begin, source::encode(&begin, large)).await;
    let told = lost(&mut source).await;
    assert_eq!((told.group.as_str(), told.reason.as_str()), ("web", "retention-full"));
    let group = agent.until("waiting", |group| group.state == "waiting").await;
    let reason = group.reason.unwrap();
    assert!(reason.starts_with("retention-full: ") && reason.contains("make room on it"), "{reason}");
    assert_eq!(source.open(&SIZES, 2, 1).await.unwrap_err().reason, "retention-full");
    let sets: Vec<u64> = agent.points().await.iter().map(|point| point.set).collect();
    assert_eq!(sets, [1, 2, 3, 4, 5], "nothing was dropped");
    volume.make_room();
    let (last_set, refusals) = opened(&mut source, 2).await;
    assert_eq!(last_set, 5);
    assert!(refusals.iter().all(|refusal| refusal.starts_with("retention-full: ")), "{refusals:?}");
    apply(&mut disks, &busy_set(6));
    source.send_set(6, busy_set(6), "", false).await;
    agent.until("applied", |group| group.state == "protected" && group.applied_set == Some(6)).await;
    assert!(site.target(0) == disks[0] && site.target(1) == disks[1]);
    assert_eq!(agent.points().await.len(), 6);
    source.close().await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_of_one_group_leaves_the_other_groups_of_the_connection_alone() {
    let site = Site::new();
    site.write_config_with("", DB);
    let mut agent = site.start().await;
    let mut source = site.source().await;
    history(&mut source).await;
    source.group = "db".to_owned();
    source.open(&SIZES[..1], 1, 1).await.unwrap();
    source.begin_bulk().await;
    source.send_set(1, vec![data(0, 0, random_bytes(3, 4096))], "", true).await;

    let report = agent.failback(None, true).await.unwrap();
    assert_eq!(report.point, "5");
    // The session of the group is over before its disks are handed over; the connection carries the other on.
    let told = lost(&mut source).await;
    assert_eq!((told.group.as_str(), told.reason.as_str()), ("web", "failed-back"));
    source.send_set(2, vec![data(0, 8, random_bytes(4, 4096))], "", false).await;
    source.group = "web".to_owned();
    assert!(source.open(&SIZES, 2, 1).await.unwrap_err().fence);
    (source.group, source.phase) = ("db".to_owned(), 1);
    source.send_set(3, vec![data(0, 16, random_bytes(5, 4096))], "", false).await;
    source.close().await;
    agent.stop().await;
}
