//! Application-consistent points with real agents (P2, P3): the hook runs, what is frozen is thawed, and the content needs no
//! recovery.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tests::file_system::FileSystem;
use tests::site::{GROUP, Site};
use tests::{tool, wait};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// Gives the site's group a hook.
fn with_hook(site: &mut Site, lines: &str) {
    site.source_config = site.source_config.replacen("[[group.disk]]", &format!("{lines}\n[[group.disk]]"), 1);
}

/// A hook that logs what it does; the freeze takes `seconds`.
fn logging_hook(site: &mut Site, every: &str, seconds: f64) -> PathBuf {
    let log = site.path().join("hook.log");
    let say = |word: &str| format!("echo {word} >> {}", log.display());
    let (freeze, thaw) = (format!("{}; sleep {seconds}", say("freeze")), say("thaw"));
    let lines = format!("app_consistent_every = \"{every}\"\n[group.hook]\nfreeze = \"{freeze}\"\nthaw = \"{thaw}\"");
    with_hook(site, &lines);
    log
}

fn logged(log: &Path) -> Vec<String> {
    fs::read_to_string(log).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn app_consistent_points_come_by_policy_and_on_demand_and_are_listed_as_such() {
    let mut site = Site::new(&[16 * MIB]);
    let log = logging_hook(&mut site, "1h", 0.0);
    site.start();
    wait::until("the first application-consistent point", PATIENCE, || {
        let points = site.points();
        let is_over = points.iter().any(|point| point.kind == "app") && logged(&log) == ["freeze", "thaw"];
        if is_over { Ok(()) } else { Err(points) }
    });
    let words = ["point", "--group", GROUP, "--app-consistent", "--label", "before upgrade"];
    let id = site.source.ask(&words).ok().stdout.trim().to_owned();
    let points = site.points();
    let asked = points.iter().find(|point| point.id == id).expect("it is listed");
    assert_eq!((asked.kind.as_str(), asked.label.as_deref()), ("app", Some("before upgrade")));
    assert_eq!(points.iter().filter(|point| point.kind == "app").count(), 2, "{points:?}");
    assert_eq!(logged(&log), ["freeze", "thaw", "freeze", "thaw"]);
    // Without the target there is no point, and what was frozen is thawed all the same.
    site.target.stop();
    wait::until("the source to notice", PATIENCE, || {
        let state = site.source.group(GROUP)["state"].clone();
        if state == "connecting" { Ok(()) } else { Err(state) }
    });
    site.source.ask(&words).fails_with(1).says("no ordered moment");
    assert_eq!(logged(&log).len(), 4, "the hook was not run");
    site.finish(&[]);
}

#[test]
fn how_often_points_are_application_consistent_is_said_by_the_target() {
    let mut site = Site::new(&[16 * MIB]);
    let log = logging_hook(&mut site, "1h", 0.0);
    let retention = "retention = \"24h\"\n";
    site.target_config = site.target_config.replace(retention, &format!("{retention}app_consistent_every = \"0s\"\n"));
    site.start();
    std::thread::sleep(Duration::from_secs(6));
    assert!(logged(&log).is_empty(), "the target wants them on demand only: {:?}", logged(&log));
    site.source.ask(&["point", "--group", GROUP, "--app-consistent"]).ok();
    assert_eq!(logged(&log), ["freeze", "thaw"]);
    site.target.stop();
    site.target_config = site.target_config.replace("every = \"0s\"", "every = \"2h\"");
    site.start_target();
    wait::until("a point by the policy", PATIENCE, || {
        let logged = logged(&log);
        if logged.len() == 4 { Ok(()) } else { Err(logged) }
    });
    site.finish(&[]);
}

#[test]
fn without_a_hook_an_app_consistent_point_is_refused() {
    let mut site = Site::new(&[4 * MIB]);
    site.start();
    site.source.ask(&["point", "--group", GROUP, "--app-consistent"]).fails_with(1).says("[group.hook]");
    site.finish(&[]);
}

#[test]
fn machines_are_thawed_also_when_the_agent_is_killed_while_they_are_frozen() {
    let mut site = Site::new(&[16 * MIB]);
    let log = logging_hook(&mut site, "1h", 1.0);
    site.start();
    wait::until("the freeze to begin", PATIENCE, || {
        let logged = logged(&log);
        if logged.is_empty() { Err(()) } else { Ok(()) }
    });
    site.source.kill();
    wait::until("the guard to thaw", PATIENCE, || {
        let logged = logged(&log);
        if logged == ["freeze", "thaw"] { Ok(()) } else { Err(logged) }
    });
    // The guard may have been killed as well, for all the agent knows: it thaws what it finds noted, then goes on.
    site.start_source();
    wait::until("the next application-consistent point", PATIENCE, || {
        let logged = logged(&log);
        if logged == ["freeze", "thaw", "thaw", "freeze", "thaw"] { Ok(()) } else { Err(logged) }
    });
    site.finish(&[]);
}

/// Whether the journal of an ext4 image must be replayed before the file system can be used.
fn needs_recovery(image: &Path) -> bool {
    let shown = tool::run("dumpe2fs", [Path::new("-h"), image]).ok().stdout;
    let features = shown.lines().find(|line| line.starts_with("Filesystem features:")).expect("its features");
    features.contains("needs_recovery")
}

#[test]
#[ignore = "needs root: loop devices"]
fn a_frozen_file_system_needs_no_recovery() {
    let mut site = Site::new(&[96 * MIB]);
    let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hooks/fsfreeze-hook");
    let folder = site.path().join("file-system");
    let call = |what: &str| format!("{} {what} {}", hook.display(), folder.join("mounted").display());
    let (freeze, thaw) = (call("freeze"), call("thaw"));
    with_hook(
        &mut site,
        &format!("app_consistent_every = \"0s\"\n[group.hook]\nfreeze = \"{freeze}\"\nthaw = \"{thaw}\""),
    );
    site.start();
    let file_system = FileSystem::make(&site.uri(0), &folder);
    let (stop, root) = (AtomicBool::new(false), file_system.path());
    let (crash, app) = std::thread::scope(|scope| {
        scope.spawn(|| {
            for file in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                let path = root.join(format!("file-{}", file % 500));
                fs::write(path, vec![file as u8; 20_000]).expect("a file");
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        let crash = site.point(Some("crash"));
        let app = site.source.ask(&["point", "--group", GROUP, "--app-consistent", "--label", "app"]).ok();
        stop.store(true, Ordering::Relaxed);
        (crash, app.stdout.trim().to_owned())
    });
    let (crash, app) = (site.restore(0, &crash), site.restore(0, &app));
    assert!(needs_recovery(&crash), "a point in the midst of writing is as a power cut leaves it");
    assert!(!needs_recovery(&app), "frozen, all is in its place");
    tool::run("e2fsck", [Path::new("-fn"), &app]).ok();
    drop(file_system);
    site.finish(&[]);
}
