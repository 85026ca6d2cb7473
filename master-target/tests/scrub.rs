//! `master-target scrub` against a running agent: what it says, and how it ends.
#![allow(clippy::unwrap_used)]

mod site;
mod source;

use std::path::PathBuf;
use std::process::{Command, Output};

use site::{Site, history, random_bytes};
use source::data;

async fn scrub(site: &Site, more: &'static [&str]) -> Output {
    let config = site.path("mt.toml");
    let run = move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_master-target"));
        command.arg("scrub").arg("--config").arg(config).args(more).output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// The largest file of redo.
fn redo(site: &Site) -> PathBuf {
    let files = std::fs::read_dir(site.path("retention/web/journal-1")).unwrap().map(|entry| entry.unwrap().path());
    let redo = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("redo"));
    redo.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_passes_a_clean_journal_and_locates_a_flipped_byte() {
    let site = Site::new();
    let mut agent = site.start().await;
    let nothing = scrub(&site, &[]).await;
    assert!(nothing.status.success(), "a group that was never replicated has nothing to read: {nothing:?}");
    let unknown = scrub(&site, &["--group", "db"]).await;
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("the groups are web"));
    let mut source = site.source().await;
    history(&mut source).await;
    agent.until("applied", |group| group.applied_set == Some(5)).await;

    let clean = scrub(&site, &["--json"]).await;
    assert_eq!(clean.status.code(), Some(0), "{clean:?}");
    let report: serde_json::Value = serde_json::from_slice(&clean.stdout).unwrap();
    assert_eq!(report["groups"][0]["name"], "web");
    assert!(report["groups"][0]["records"].as_u64().unwrap() > 20, "{report}");

    let file = redo(&site);
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let damaged = scrub(&site, &["--group", "web", "--json"]).await;
    assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
    let report: serde_json::Value = serde_json::from_slice(&damaged.stdout).unwrap();
    let damage = &report["groups"][0]["damages"][0];
    assert_eq!(damage["file"], file.display().to_string());
    let offset = damage["offset"].as_u64().unwrap();
    assert!(offset <= at as u64 && at as u64 - offset < 70_000, "{damage}");
    assert_eq!(damage["newest_point"], "5");
    let text = scrub(&site, &[]).await;
    assert_eq!(text.status.code(), Some(1));
    let (out, err) = (String::from_utf8_lossy(&text.stdout), String::from_utf8_lossy(&text.stderr));
    assert!(out.contains(&*file.to_string_lossy()) && out.contains("may spoil"), "{out}");
    assert!(err.contains("1 place of the journals is damaged") && err.contains("scrubbing web"), "{err}");

    // Replication went on meanwhile.
    source.send_set(6, vec![data(0, 0, random_bytes(7, 512))], "", false).await;
    agent.until("applied", |group| group.state == "protected" && group.applied_set == Some(6)).await;
    source.close().await;
    agent.stop().await;
}
