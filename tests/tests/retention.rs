//! Retention as an operator sees it (P2): pinned points, how far history reaches, rules that are refused.

use tests::site::{GROUP, Site};

const MIB: u64 = 1 << 20;

#[test]
fn points_are_pinned_and_let_go_by_name() {
    let mut site = Site::new(&[8 * MIB]);
    site.start();
    let id = site.point(Some("before upgrade"));
    let pinned = |site: &Site| {
        let points = site.target.ask(&["points", "--group", GROUP, "--json"]).ok().json();
        let points = points.as_array().expect("a list").clone();
        let of = |point: serde_json::Value| (point["id"].as_str().map(str::to_owned), point["pinned"] == true);
        points.into_iter().map(of).filter(|(_, is_pinned)| *is_pinned).filter_map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert!(pinned(&site).is_empty());
    let words = |what| [what, "--group", GROUP, "--point", "before upgrade"];
    assert_eq!(site.target.ask(&words("pin")).ok().stdout.trim(), id);
    assert_eq!(pinned(&site), [id.as_str()]);
    site.target.kill();
    site.start_target();
    site.wait_protected();
    assert_eq!(pinned(&site), [id.as_str()], "it is durable");
    assert_eq!(site.target.ask(&words("unpin")).ok().stdout.trim(), id);
    assert!(pinned(&site).is_empty());
    site.target.ask(&["pin", "--group", GROUP, "--point", "no such point"]).fails_with(1).says("no recovery point");
    site.wait_protected();
    let group = site.target.group(GROUP);
    assert!(group["history_seconds"].is_number() && group["forecast_seconds"].is_null(), "too young: {group}");
    site.finish(&[]);
}

#[test]
fn a_group_with_rules_for_older_points_replicates_and_marks_their_generations() {
    let mut site = Site::new(&[8 * MIB]);
    let retention = "retention = \"24h\"\n";
    let rules = "thin = [{ after = \"2h\", keep = \"5m\" }, { after = \"12h\", keep = \"1h\" }]\nkeep_at_least = \"1h\"\n\
                 retention_size = \"1GiB\"\n";
    site.target_config = site.target_config.replace(retention, &format!("{retention}{rules}"));
    site.start();
    let labels: Vec<String> = (0..3).map(|index| site.point(Some(&format!("label {index}")))).collect();
    site.wait_applied();
    site.target.stop();
    site.start_target();
    let points: Vec<String> = site.points().into_iter().map(|point| point.id).collect();
    assert!(labels.iter().all(|id| points.contains(id)), "{labels:?} of {points:?}");
    for id in &labels {
        let _ = site.restore(0, id);
    }
    site.wait_protected();
    site.finish(&[]);
}
