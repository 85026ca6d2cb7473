//! What the configuration accepts, and with which words it refuses.

use std::fs;
use std::path::Path;
use std::time::Duration;

use proto::throttle::BitRate;
use tempfile::TempDir;

use super::values::{Config, load, load_for_run};
use super::{Days, Schedule, Weekday, Window};

struct Site {
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["ca.pem", "ps.pem", "ps.key", "os.raw", "data.raw"] {
            fs::write(folder.path().join(name), vec![0; 4096]).unwrap();
        }
        Self { folder }
    }

    /// Line numbers in the tests below count from the top of this.
    fn text(&self) -> String {
        let dir = self.folder.path().display();
        format!(
            r#"name = "ps-1"
state_dir = "{dir}/state"
control = "{dir}/run/control.sock"
[tls]
ca = "{dir}/ca.pem"
cert = "{dir}/ps.pem"
key = "{dir}/ps.key"
[master_target]
address = "10.0.0.2:9443"
name = "mt-1"
[[group]]
name = "web"
point_interval = "1s"
memory = "128MiB"
[[group.disk]]
name = "os"
source = "{dir}/os.raw"
nbd = "unix:{dir}/run/os.sock"
[[group.disk]]
name = "data"
source = "{dir}/data.raw"
nbd = "tcp:127.0.0.1:10809"
"#
        )
    }

    fn write(&self, text: &str) -> std::path::PathBuf {
        let path = self.folder.path().join("process-server.toml");
        fs::write(&path, text).unwrap();
        path
    }

    fn accept(&self, text: &str) -> Config {
        load_for_run(&self.write(text)).unwrap()
    }

    /// The refusal, without the path of the file before it.
    fn refuse(&self, text: &str) -> String {
        let path = self.write(text);
        let message = load_for_run(&path).unwrap_err().to_string();
        assert!(!message.contains('\n'), "one line: {message}");
        message.strip_prefix(&path.display().to_string()).expect("names the file").to_owned()
    }

    fn refuse_change(&self, from: &str, to: &str, expected: &[&str]) {
        let text = self.text();
        assert!(text.contains(from), "{from}");
        let message = self.refuse(&text.replacen(from, to, 1));
        for part in expected {
            assert!(message.contains(part), "{from} -> {to}: {message}");
        }
    }
}

#[test]
fn the_contract_example_is_accepted() {
    let site = Site::new();
    let config = site.accept(&site.text());
    assert_eq!(config.name.as_str(), "ps-1");
    assert_eq!(config.master_target.address.to_string(), "10.0.0.2:9443");
    let group = &config.groups[0];
    assert_eq!((group.point_interval, group.memory_bytes), (Duration::from_secs(1), 128 << 20));
    assert_eq!(group.disks[1].name.as_str(), "data");
    assert!(config.nbd_tls.is_none());
}

#[test]
fn the_documented_example_is_accepted() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("process-server.toml.example");
    let config = load(&example).unwrap();
    assert_eq!((config.groups.len(), config.groups[0].disks.len()), (1, 3));
    assert!(config.nbd_tls.is_some());
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let site = Site::new();
    let text = site.text().replace("point_interval = \"1s\"\n", "").replace("memory = \"128MiB\"\n", "");
    let config = site.accept(&text);
    assert_eq!(config.groups[0].point_interval, Duration::from_secs(1));
    assert_eq!(config.groups[0].memory_bytes, 256 << 20);
}

#[test]
fn a_cache_volume_gives_each_group_a_spool_of_its_own_size() {
    let site = Site::new();
    assert_eq!(site.accept(&site.text()).groups[0].spool_bytes, 0);
    let dir = site.folder.path().display();
    let text = site.text().replacen("control =", &format!("cache_dir = \"{dir}/cache\"\ncontrol ="), 1);
    let config = site.accept(&text);
    assert_eq!(config.cache_dir, Some(site.folder.path().join("cache")));
    assert_eq!(config.groups[0].spool_bytes, 4 << 30);
    for (size, bytes) in [("64MiB", 64 << 20), ("2GiB", 2 << 30), ("0B", 0)] {
        let text = text.replacen("memory =", &format!("spool = \"{size}\"\nmemory ="), 1);
        assert_eq!(site.accept(&text).groups[0].spool_bytes, bytes);
    }
    let message = site.refuse(&text.replacen("memory =", "spool = \"1MiB\"\nmemory =", 1));
    assert!(message.contains(":15: spool of group web") && message.contains("64MiB"), "{message}");
    let message = site.refuse(&text.replacen("/cache\"", "/os.raw/cache\"", 1));
    assert!(message.contains(":3: cache_dir: "), "{message}");
    let message = site.refuse(&text.replacen(&format!("{dir}/cache"), "cache", 1));
    assert!(message.contains(":3: cache_dir: \"cache\" is not an absolute path"), "{message}");
}

#[test]
fn a_spool_without_a_cache_volume_is_refused() {
    let site = Site::new();
    site.refuse_change("memory =", "spool = \"1GiB\"\nmemory =", &[":14: spool of group web", "add cache_dir"]);
}

#[test]
fn unknown_keys_are_refused_at_every_level() {
    let site = Site::new();
    site.refuse_change("name = \"ps-1\"", "nmae = \"ps-1\"", &[":1: unknown field `nmae`"]);
    site.refuse_change("ca =", "cacert =", &[":5: unknown field `cacert`"]);
    site.refuse_change("address =", "adress =", &[":9: unknown field `adress`"]);
    site.refuse_change("memory =", "ram =", &[":14: unknown field `ram`"]);
    site.refuse_change("nbd =", "export =", &[":18: unknown field `export`"]);
}

#[test]
fn bad_values_are_refused_with_line_and_remedy() {
    let site = Site::new();
    site.refuse_change("\"ps-1\"", "\"../ps\"", &[":1: ", "is not a valid name"]);
    site.refuse_change("9443", "port", &[":9: ", "HOST:PORT"]);
    site.refuse_change("\"1s\"", "\"50ms\"", &[":13: point_interval of group web is 50ms", "100ms"]);
    site.refuse_change("\"1s\"", "\"25h\"", &[":13: ", "24h"]);
    site.refuse_change("\"1s\"", "\"often\"", &[":13: "]);
    site.refuse_change("128MiB", "1MiB", &[":14: memory of group web", "64MiB"]);
    site.refuse_change("tcp:127.0.0.1:10809", "10809", &[":22: ", "NBD address"]);
}

#[test]
fn relative_paths_are_refused() {
    let site = Site::new();
    let dir = site.folder.path().display().to_string();
    site.refuse_change(&format!("{dir}/state"), "state", &[":2: state_dir: \"state\" is not an absolute path"]);
    site.refuse_change(&format!("{dir}/run/control.sock"), "c.sock", &[":3: control"]);
    site.refuse_change(&format!("{dir}/ps.key"), "ps.key", &[":7: key"]);
    site.refuse_change(&format!("{dir}/os.raw"), "os.raw", &[":17: source"]);
}

#[test]
fn groups_without_disks_and_files_without_groups_are_refused() {
    let site = Site::new();
    let text = site.text();
    let message = site.refuse(text.split("[[group]]").next().unwrap());
    assert!(message.starts_with(": there is no group"), "{message}");
    let message = site.refuse(text.split("[[group.disk]]").next().unwrap());
    assert!(message.contains(":12: group web has 0 disks"), "{message}");
}

#[test]
fn names_used_twice_are_refused_with_both_lines() {
    let site = Site::new();
    site.refuse_change("\"data\"", "\"os\"", &[":20: a second disk of group web is named os, the first on line 16"]);
    let text = site.text();
    let second = &text[text.find("[[group]]").unwrap()..];
    let message = site.refuse(&format!("{text}{second}"));
    assert!(message.contains(":24: a second group is named web, the first on line 12"), "{message}");
}

#[test]
fn one_disk_under_two_names_is_refused_also_through_a_link() {
    let site = Site::new();
    site.refuse_change("data.raw", "os.raw", &[":21: ", "is the source of two disks, the first on line 17"]);
    std::os::unix::fs::symlink(site.folder.path().join("os.raw"), site.folder.path().join("link.raw")).unwrap();
    site.refuse_change("data.raw", "link.raw", &[":21: ", "is the source of two disks"]);
}

#[test]
fn nbd_addresses_are_unique_and_not_the_control_socket() {
    let site = Site::new();
    let dir = site.folder.path().display().to_string();
    let os = format!("unix:{dir}/run/os.sock");
    site.refuse_change("tcp:127.0.0.1:10809", &os, &[":22: ", "is the nbd address of two disks"]);
    let control = format!("unix:{dir}/run/control.sock");
    site.refuse_change("tcp:127.0.0.1:10809", &control, &[":22: ", "is the control socket"]);
}

#[test]
fn tcp_beyond_loopback_needs_tls() {
    let site = Site::new();
    site.refuse_change("tcp:127.0.0.1", "tcp:0.0.0.0", &[":22: ", "without TLS", "[nbd_tls]"]);
    site.refuse_change("tcp:127.0.0.1", "tcp:ps.example", &[":22: ", "[nbd_tls]"]);

    let dir = site.folder.path().display();
    let tls = format!("[nbd_tls]\nca = \"{dir}/ca.pem\"\ncert = \"{dir}/ps.pem\"\nkey = \"{dir}/ps.key\"\n[[group]]\n");
    let text = site.text().replace("tcp:127.0.0.1", "tcp:0.0.0.0").replacen("[[group]]\n", &tls, 1);
    assert!(site.accept(&text).nbd_tls.is_some());
    let message = site.refuse(&text.replacen("ca.pem", "none.pem", 2).replacen("none.pem", "ca.pem", 1));
    assert!(message.contains(":12: ca: ") && message.contains("none.pem"), "{message}");
}

#[test]
fn missing_files_are_refused_when_the_agent_is_to_run_only() {
    let site = Site::new();
    for (name, line) in [("ps.key", 7), ("os.raw", 17)] {
        site.refuse_change(name, "missing", &[&format!(":{line}: "), "missing: No such file"]);
    }
    let path = site.write(&site.text().replace("os.raw", "missing"));
    assert!(load(&path).is_ok(), "status must work while a disk is away");
}

#[test]
fn things_that_are_no_disk_no_file_and_no_folder_are_refused() {
    let site = Site::new();
    let dir = site.folder.path().display().to_string();
    site.refuse_change(&format!("{dir}/os.raw"), &dir, &[":17: source: ", "neither a file nor a block device"]);
    site.refuse_change(&format!("{dir}/ps.pem"), &dir, &[":6: cert: ", "is not a file"]);
    site.refuse_change("/state\"", "/os.raw/state\"", &[":2: state_dir: "]);
    site.refuse_change("/state\"", "/os.raw\"", &[":2: state_dir: ", "is not a folder"]);
}

#[test]
fn a_disk_inside_the_state_folder_is_refused() {
    let site = Site::new();
    site.refuse_change("/state\"", "\"", &[":17: ", "lies in state_dir"]);
}

#[test]
fn a_disk_inside_the_cache_folder_is_refused() {
    let site = Site::new();
    let dir = site.folder.path().display();
    let text = site.text().replacen("control =", &format!("cache_dir = \"{dir}\"\ncontrol ="), 1);
    let message = site.refuse(&text);
    assert!(message.contains(":18: ") && message.contains("lies in cache_dir"), "{message}");
}

#[test]
fn a_file_that_is_not_there_is_refused_by_name() {
    let message = load(Path::new("/nonexistent/ps.toml")).unwrap_err().to_string();
    assert!(message.starts_with("/nonexistent/ps.toml: "), "{message}");
}

const WORKDAY: &str =
    "[[throttle]]\nfrom = \"08:00\"\nto = \"18:00\"\ndays = [\"mon\", \"fri\"]\nrate = \"10 Mbit/s\"\n";

fn with_throttle(site: &Site) -> String {
    let text = site.text().replace("name = \"mt-1\"\n", "name = \"mt-1\"\nrate = \"50 Mbit/s\"\n");
    text.replacen("[[group]]\n", &format!("{WORKDAY}[[group]]\n"), 1)
}

#[test]
fn a_cap_and_its_windows_are_read() {
    let site = Site::new();
    assert_eq!(site.accept(&site.text()).master_target.schedule, Schedule::default());
    let schedule = site.accept(&with_throttle(&site)).master_target.schedule;
    assert_eq!(schedule.otherwise, Some(BitRate(50_000_000)));
    let days = Days::default().with(Weekday::Mon).with(Weekday::Fri);
    assert_eq!(schedule.windows, [Window { days, from: 480, to: 1080, rate: BitRate(10_000_000) }]);
    let text = with_throttle(&site).replace("days = [\"mon\", \"fri\"]\n", "").replace("18:00", "24:00");
    let schedule = site.accept(&text).master_target.schedule;
    assert_eq!((schedule.windows[0].days, schedule.windows[0].to), (Days::EVERY, 1440));
}

#[test]
fn caps_that_mean_nothing_are_refused_with_line_and_remedy() {
    let site = Site::new();
    let text = with_throttle(&site);
    for (from, to, expected) in [
        ("50 Mbit/s", "50 mbps", [":11: ", "is not a rate", "Mbit/s"]),
        ("50 Mbit/s", "1 kbit/s", [":11: ", "too little", "128 kbit/s"]),
        ("10 Mbit/s", "0 bit/s", [":16: ", "too little", "128 kbit/s"]),
        ("\"10 Mbit/s\"", "10", [":16: ", "invalid type", "correct the value"]),
        ("08:00", "8 am", [":13: ", "from: \"8 am\" is not a time of day", "HH:MM"]),
        ("08:00", "24:00", [":13: ", "is not a time of day", "23:59"]),
        ("18:00", "24:01", [":14: ", "is not a time of day", "24:00"]),
        ("18:00", "08:00", [":14: ", "is empty", "24:00"]),
        ("\"fri\"", "\"Friday\"", [":15: ", "\"Friday\" is no day", "mon, tue"]),
        ("\"fri\"", "\"mon\"", [":15: ", "is there twice", "once"]),
        ("\"mon\", \"fri\"", "", [":15: ", "none is named", "every day"]),
        ("days =", "day =", [":15: ", "unknown field `day`", "spelling"]),
        ("from = \"08:00\"\n", "", [":12: ", "missing field `from`", "add the key"]),
    ] {
        assert!(text.contains(from), "{from}");
        let message = site.refuse(&text.replacen(from, to, 1));
        for part in expected {
            assert!(message.contains(part), "{from} -> {to}: {message}");
        }
    }
}

/// `text` with lines for the end of the group's own table, before its disks.
fn with_group_lines(text: &str, lines: &str) -> String {
    text.replacen("[[group.disk]]", &format!("{lines}\n[[group.disk]]"), 1)
}

#[test]
fn a_hook_has_its_defaults() {
    let site = Site::new();
    let config = site.accept(&with_group_lines(&site.text(), "[group.hook]\nfreeze = \"f\"\nthaw = \"t\""));
    let hook = config.groups[0].hook.clone().unwrap();
    assert_eq!((hook.freeze.as_str(), hook.thaw.as_str(), hook.timeout), ("f", "t", Duration::from_secs(10)));
    assert_eq!(config.groups[0].app_consistent_every, Some(Duration::from_secs(3600)));
    let never = "app_consistent_every = \"0s\"\n[group.hook]\nfreeze = \"f\"\nthaw = \"t\"\ntimeout = \"1m\"";
    let config = site.accept(&with_group_lines(&site.text(), never));
    assert_eq!(config.groups[0].app_consistent_every, None);
    assert_eq!(config.groups[0].hook.clone().unwrap().timeout, Duration::from_secs(60));
    assert!(site.accept(&site.text()).groups[0].app_consistent_every.is_none());
}

#[test]
fn a_hook_that_can_not_work_is_refused() {
    let site = Site::new();
    for (lines, expected) in [
        ("app_consistent_every = \"1h\"", ":15: group web has app_consistent_every and no hook"),
        (
            "app_consistent_every = \"1s\"\n[group.hook]\nfreeze = \"f\"\nthaw = \"t\"",
            ":15: app_consistent_every of group web is 1s",
        ),
        ("[group.hook]\nfreeze = \" \"\nthaw = \"t\"", ":16: freeze of the hook is empty"),
        ("[group.hook]\nfreeze = \"f\"", ":15: missing field `thaw`"),
        ("[group.hook]\nfreeze = \"f\"\nthaw = \"t\"\ntimeout = \"1h\"", ":18: timeout of the hook is 1h"),
    ] {
        let message = site.refuse(&with_group_lines(&site.text(), lines));
        assert!(message.contains(expected), "{lines}: {message}");
    }
}

#[test]
fn several_machines_make_one_group() {
    let site = Site::new();
    let dir = site.folder.path().display().to_string();
    fs::write(site.folder.path().join("m2.raw"), vec![0; 4096]).unwrap();
    let machines = format!(
        "[[group.machine]]\nname = \"m1\"\n[[group.machine.disk]]\nname = \"os\"\nsource = \"{dir}/data.raw\"\n\
         nbd = \"unix:{dir}/run/m1.sock\"\n[[group.machine]]\nname = \"m2\"\n[[group.machine.disk]]\nname = \"os\"\n\
         source = \"{dir}/m2.raw\"\nnbd = \"unix:{dir}/run/m2.sock\"\n"
    );
    let text = site.text();
    let one_disk = &text[..text.rfind("[[group.disk]]").unwrap()];
    let text = format!("{one_disk}{machines}");
    let names = |config: &Config| config.groups[0].disks.iter().map(|disk| disk.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&site.accept(&text)), ["os", "m1.os", "m2.os"]);
    for (from, to, expected) in [
        ("name = \"m2\"", "name = \"m1\"", "a second machine of group web is named m1"),
        ("m2.raw", "os.raw", "is the source of two disks"),
        ("m2.sock", "m1.sock", "is the nbd address of two disks"),
        ("[[group.machine]]\nname = \"m1\"", "[[group.machine]]\nnmae = \"m1\"", "unknown field `nmae`"),
    ] {
        let message = site.refuse(&text.replacen(from, to, 1));
        assert!(message.contains(expected), "{to}: {message}");
    }
}
