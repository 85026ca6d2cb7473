//! Mounts: any point as NBD exports, at once, read-only or with an overlay, while replication goes on (F2).

use std::fs;

use serde_json::Value;
use tests::load::{Load, Pace};
use tests::mounts::{Mounted, copy, listed, mount, open, socket, unmount};
use tests::nbd::{Address, Connection, ENOSPC, EPERM};
use tests::site::{GROUP, SYNC_MAX, Site};
use tests::verdict::{assert_targets_equal_sources, model_with_content};
use tests::{image, random, tool, wait};

const MIB: u64 = 1 << 20;

fn pace(seed: u64) -> Pace {
    Pace { seed: random::seed(seed), writes_per_second: 120, sectors_used: 16384, trims: true }
}

#[test]
fn a_mount_is_a_job_of_its_agent_and_cancelling_it_unmounts() {
    let mut site = Site::new(&[4 * MIB]);
    site.start();
    let point = site.point(None);
    let job = |site: &Site, id: &str| {
        let jobs = site.target.ask(&["jobs", "--json"]).ok().json();
        let all = jobs.as_array().expect("jobs").clone();
        all.into_iter().find(|job| job["id"].as_u64() == id.parse().ok()).expect("the job of the mount")
    };
    let newest = |site: &Site| {
        let jobs = site.target.ask(&["jobs", "--json"]).ok().json();
        assert_eq!((jobs[0]["kind"].as_str(), jobs[0]["state"].as_str()), (Some("mount"), Some("running")), "{jobs}");
        assert!(jobs[0]["group"] == GROUP && jobs[0]["step"].as_str().is_some_and(|step| step.contains(&point)));
        jobs[0]["id"].to_string()
    };
    let first = mount(&site, &point, "first", &[]);
    let of_first = newest(&site);
    site.target.ask(&["jobs", "cancel", &of_first]).ok();
    wait::until("the mount to end", SYNC_MAX, || {
        let (mounts, job) = (listed(&site), job(&site, &of_first));
        if mounts.is_empty() && job["state"] == "cancelled" { Ok(()) } else { Err((mounts, job)) }
    });
    assert!(!first.socket.exists());
    let second = mount(&site, &point, "second", &[]);
    let of_second = newest(&site);
    unmount(&site, &second);
    let done = job(&site, &of_second);
    assert!(done["state"] == "done" && done["result"].as_str().is_some_and(|why| why.contains("unmounted")), "{done}");
    let _third = mount(&site, &point, "third", &[]);
    let of_third = newest(&site);
    site.target.kill();
    site.start_target();
    assert_eq!(job(&site, &of_third)["state"], "interrupted", "mounts are not made again");
    site.wait_protected();
    site.finish(&[]);
}

#[test]
fn several_points_are_mounted_under_load_and_equal_their_restored_copies() {
    let mut site = Site::new(&[16 * MIB, 12 * MIB]);
    let model = model_with_content(&site);
    site.start();
    let load = Load::start(&model, &site.clients(2, 6), pace(801));
    let points: Vec<String> = (0..3)
        .map(|_| {
            load.wait_for_writes(150);
            site.point(None)
        })
        .collect();
    let mounted: Vec<Mounted> = points.iter().map(|point| mount(&site, point, &format!("m{point}"), &[])).collect();
    load.wait_for_writes(150);
    for (point, mounted) in points.iter().zip(&mounted) {
        assert_eq!(mounted.uris.len(), 2);
        for disk in 0..2 {
            let copied = copy(&site, &mounted.uris[disk], &format!("copied-{disk}-{point}"));
            image::assert_same(&copied, &site.restore(disk, point));
        }
    }
    // While they were read, others wrote, and a mount that is read again shows the same.
    load.wait_for_writes(100);
    let again = copy(&site, &mounted[0].uris[1], "again");
    image::assert_same(&again, &site.path().join(format!("copied-1-{}.raw", points[0])));
    let restored = site.path().join(format!("restored-0-{}.raw", points[1]));
    tool::run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &mounted[1].uris[0], &restored.to_string_lossy()]).ok();
    let summary = load.stop();
    assert_eq!((summary.dropped, summary.refused.len()), (0, 0), "{summary:?}");

    let found = listed(&site);
    assert_eq!(found.len(), 6, "{found:?}");
    let first = &found[0];
    assert_eq!((first["id"].as_str(), first["group"].as_str()), (Some(mounted[0].id.as_str()), Some(GROUP)));
    assert_eq!((first["disk"].as_str(), first["point"].as_str()), (Some("disk0"), Some(points[0].as_str())));
    assert_eq!((first["writable"].as_bool(), first["overlay_bytes"].as_u64()), (Some(false), Some(0)));
    assert_eq!(first["nbd"].as_str(), Some(mounted[0].uris[0].as_str()));
    assert!(first["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{first}");
    let table = site.target.ask(&["status"]).ok().stdout;
    assert!(table.contains(&mounted[2].id) && table.contains("read-only"), "{table}");

    unmount(&site, &mounted[1]);
    assert_eq!(listed(&site).len(), 4);
    site.target.ask(&["unmount", &mounted[1].id]).fails_with(1).says("there is no mount");
    site.target.ask(&["unmount", "--all"]).ok();
    assert!(listed(&site).is_empty() && mounted.iter().all(|mounted| !mounted.socket.exists()));
    site.point(None);
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn beyond_loopback_and_with_nbd_tls_a_client_needs_a_certificate() {
    let mut site = Site::new(&[4 * MIB]);
    let pki = site.path().join("pki");
    let nbd_tls = format!(
        "[nbd_tls]\nca = \"{0}/ca.pem\"\ncert = \"{0}/mt-1.pem\"\nkey = \"{0}/mt-1.key\"\n[[datastore]]",
        pki.display()
    );
    site.target_config = site.target_config.replace("[[datastore]]", &nbd_tls);
    site.start();
    let point = site.point(None);
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let nbd = format!("tcp:0.0.0.0:{port}");
    let reply = site.target.ask(&["mount", "--group", GROUP, "--point", &point, "--nbd", &nbd, "--json"]).ok().json();
    assert_eq!(
        (reply["point"].as_str(), reply["nbd"][0].as_str()),
        (Some(&*point), Some(&*format!("nbds://0.0.0.0:{port}/web/disk0")))
    );
    let certs = site.path().join("client");
    fs::create_dir(&certs).expect("a folder");
    for (from, to) in [("ca.pem", "ca-cert.pem"), ("ps-1.pem", "client-cert.pem"), ("ps-1.key", "client-key.pem")] {
        fs::copy(pki.join(from), certs.join(to)).expect("a key");
    }
    let uri = format!("nbds://127.0.0.1:{port}/web/disk0?tls-certificates={}", certs.display());
    let size = tool::run("nbdinfo", ["--size", &uri]).ok();
    assert_eq!(size.stdout.trim(), (4 * MIB).to_string());
    let plain = tool::run("nbdinfo", ["--size", &format!("nbd://127.0.0.1:{port}/web/disk0")]);
    assert_ne!(plain.code, Some(0), "without TLS: {plain:?}");
    site.finish(&["NBD client"]);
}

#[test]
fn clients_see_names_sizes_and_holes_and_can_not_write() {
    let mut site = Site::new(&[8 * MIB, 4 * MIB]);
    site.start();
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    assert_eq!(client.write(MIB, &vec![1; MIB as usize]).expect("a write"), 0);
    let point = site.point(Some("one"));
    // What comes later is not in the point, although it is on the target's disk.
    assert_eq!(client.write(3 * MIB, &vec![2; MIB as usize]).expect("a write"), 0);
    site.point(None);
    site.wait_applied();
    let both = mount(&site, "one", "both", &[]);
    let list = tool::run("nbdinfo", ["--list", "--json", &Address::Unix(both.socket.clone()).uri("")]).ok().json();
    let names: Vec<&str> =
        list["exports"].as_array().expect("a list").iter().filter_map(|e| e["export-name"].as_str()).collect();
    assert_eq!(names, ["web/disk0", "web/disk1"], "{list}");
    let info = tool::run("nbdinfo", ["--json", &both.uris[0]]).ok().json();
    assert_eq!(info["exports"][0]["is_read_only"], true, "{info}");
    assert_eq!(info["exports"][0]["export-size"], 8 * MIB, "{info}");
    assert!(info["exports"][0]["description"].as_str().is_some_and(|text| text.contains(&point)), "{info}");
    let map = tool::run("nbdinfo", ["--map", "--json", &both.uris[0]]).ok().json();
    let data = |extent: &&Value| extent["type"] == 0;
    let data: u64 =
        map.as_array().expect("a list").iter().filter(data).filter_map(|extent| extent["length"].as_u64()).sum();
    assert_eq!(data, MIB, "one MiB was written before the point: {map}");

    let mut reader = open(&both, "disk0");
    assert_eq!(reader.write(0, &[1; 512]).expect("an answer"), EPERM);
    assert_eq!(reader.read(MIB - 1, 3).expect("odd bytes"), [0, 1, 1]);
    assert_eq!(reader.read(3 * MIB, 4096).expect("a read"), [0; 4096]);

    // One disk alone is the default export.
    let one = mount(&site, "one", "one", &["--disk", "disk1"]);
    assert_eq!(one.uris.len(), 1);
    let size = tool::run("nbdinfo", ["--size", &Address::Unix(one.socket.clone()).uri("")]).ok();
    assert_eq!(size.stdout.trim(), (4 * MIB).to_string());
    assert_eq!(listed(&site)[0]["clients"], 1, "{:?}", listed(&site));
    site.finish(&[]);
}

#[test]
fn what_clients_write_is_theirs_alone_within_the_quota_and_gone_with_the_mount() {
    let mut site = Site::new(&[8 * MIB]);
    let model = model_with_content(&site);
    site.start();
    drop(model);
    let point = site.point(None);
    let original = site.restore(0, &point);
    let mounted = mount(&site, &point, "w", &["--writable", "--quota", "1MiB"]);
    let other = mount(&site, &point, "other", &["--writable"]);
    let io = |commands: &[&str]| {
        let words: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
        let output = tool::run("qemu-io", [&["-f", "raw"], &words[..], &[&mounted.uris[0]]].concat());
        assert!(!output.stdout.contains("failed"), "{output:?}");
        output.ok()
    };
    io(&["write -P 0xab 1000 5000", "write -z 64k 64k", "flush", "discard 256k 64k"]);
    io(&["read -P 0xab 1000 5000", "read -P 0 64k 64k", "read -P 0 256k 64k"]);
    let mut expected = image::read(&original);
    expected[1000..6000].fill(0xab);
    expected[64 << 10..128 << 10].fill(0);
    expected[256 << 10..320 << 10].fill(0);
    let copied = copy(&site, &mounted.uris[0], "written");
    assert!(image::read(&copied) == expected, "the mount does not show the point with what was written over it");
    image::assert_same(&copy(&site, &other.uris[0], "other"), &original);

    // The blocks of 1000..6000 have taken two places of 256.
    let mut client = open(&mounted, "disk0");
    assert_eq!(client.write(4 * MIB, &vec![7; 254 * 4096]).expect("an answer"), 0);
    assert_eq!(client.write(2 * MIB, &[8; 4096]).expect("an answer"), ENOSPC);
    assert_eq!(client.write(4 * MIB, &[9; 8192]).expect("an answer"), 0, "what has a place can be written");
    assert_eq!(client.read(2 * MIB, 4096).expect("a read"), expected[2 << 20..(2 << 20) + 4096]);
    let found = listed(&site);
    assert_eq!((found[0]["overlay_bytes"].as_u64(), found[0]["writable"].as_bool()), (Some(MIB), Some(true)));
    let left: Vec<_> = fs::read_dir(site.path().join("master-target")).expect("a folder").flatten().collect();
    assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().contains("overlay")), "{left:?}");

    unmount(&site, &mounted);
    let again = mount(&site, &point, "w", &["--writable"]);
    image::assert_same(&copy(&site, &again.uris[0], "again"), &original);
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn what_can_not_be_mounted_is_refused_with_the_reason() {
    let mut site = Site::new(&[4 * MIB]);
    site.start();
    let point = site.point(None);
    let taken = socket(&site, "taken");
    fs::write(&taken, "mine").expect("a file");
    let there = mount(&site, &point, "there", &[]);
    let (taken, there) = (format!("unix:{}", taken.display()), format!("unix:{}", there.socket.display()));
    let free = format!("unix:{}", socket(&site, "free").display());
    let cases: [(&[&str], &str); 8] = [
        (&["--group", "db", "--point", "latest", "--nbd", &free], "there is no group \"db\""),
        (&["--group", GROUP, "--point", "nope", "--nbd", &free], "there is no recovery point \"nope\""),
        (&["--group", GROUP, "--point", "latest", "--nbd", &free, "--disk", "d"], "has no disk \"d\""),
        (&["--group", GROUP, "--point", "latest", "--nbd", &taken], "is not a socket"),
        (&["--group", GROUP, "--point", "latest", "--nbd", &there], "in use"),
        (&["--group", GROUP, "--point", "latest", "--nbd", "tcp:0.0.0.0:10809"], "TLS"),
        (&["--group", GROUP, "--point", "latest", "--nbd", &free, "--writable", "--quota", "1B"], "a quota of"),
        (&["--group", GROUP, "--point", "latest", "--nbd", "unix:/nonexistent/m.sock"], "its folder must exist"),
    ];
    for (words, reason) in cases {
        site.target.ask(&[&["mount"], words].concat()).fails_with(1).says(reason);
    }
    assert_eq!(listed(&site).len(), 1);
    assert!(!socket(&site, "free").exists(), "a refusal leaves nothing");
    site.target.ask(&["unmount", "web-77"]).fails_with(1).says("status");
    site.target.ask(&["unmount", "web"]).fails_with(1).says("status");
    site.finish(&[]);
}
