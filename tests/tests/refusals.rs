//! What is refused, and how: configurations, certificates, targets. Each refusal says what, where and what to do, and
//! nothing is touched (A3, R4, M4).

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use tests::agent::Role;
use tests::site::{self, GROUP, Site};
use tests::{image, tool, wait};

const MIB: u64 = 1 << 20;

/// Runs an agent that must end by itself with code 1, and returns what it said.
#[track_caller]
fn refused_start(site: &mut Site, role: Role) -> String {
    site.write_configs();
    let agent = match role {
        Role::Source => &mut site.source,
        Role::Target => &mut site.target,
    };
    agent.clear_log();
    agent.spawn();
    let code = agent.wait();
    let log = agent.log();
    assert_eq!(code, Some(1), "{} must refuse to start:\n{log}", role.binary());
    log
}

/// Puts `line` at the top of a configuration: before any table, so that it is a key of the whole file.
fn with_first_line(config: &str, line: &str) -> String {
    format!("{line}\n{config}")
}

#[track_caller]
fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
}

/// `file:LINE` or `file, line LINE`: both lead to the place.
#[track_caller]
fn assert_points_at(said: &str, file: &str, line: usize) {
    let forms = [format!("{file}:{line}"), format!("{file}, line {line}"), format!("{file} line {line}")];
    assert!(forms.iter().any(|form| said.contains(form)), "neither of {forms:?} is in:\n{said}");
}

#[test]
fn an_unknown_key_is_refused_with_file_and_line() {
    let mut site = Site::new(&[MIB]);
    let (source, target) = (site.source_config.clone(), site.target_config.clone());
    site.source_config = with_first_line(&source, "colour = \"red\"");
    let said = refused_start(&mut site, Role::Source);
    assert_says(&said, &["colour"]);
    assert_points_at(&said, "process-server.toml", 1);

    let line =
        1 + target.lines().position(|line| line.starts_with("retention = \"24h\"")).expect("the group's retention");
    site.target_config = target.replace("retention = \"24h\"", "retentoin = \"24h\"");
    let said = refused_start(&mut site, Role::Target);
    assert_says(&said, &["retentoin"]);
    assert_points_at(&said, "master-target.toml", line);
}

#[test]
fn bad_values_are_refused_with_file_line_and_remedy() {
    let cases = [
        (Role::Source, "point_interval = \"1s\"", "point_interval = \"soon\"", "soon"),
        (Role::Source, "point_interval = \"1s\"", "point_interval = 1", "1"),
        (Role::Source, "name = \"web\"", "name = \"../web\"", "../web"),
        (Role::Source, "name = \"disk0\"", "name = \"a/b\"", "a/b"),
        (Role::Source, "nbd = \"unix:", "nbd = \"pipe:", "pipe:"),
        (Role::Target, "retention = \"24h\"", "retention = \"a while\"", "a while"),
        (Role::Target, "listen = \"127.0.0.1:", "listen = \"nowhere at all:", "address"),
        (Role::Target, "target = \"[ds1] web/disk0.vmdk\"", "target = \"[ds9] web/disk0.vmdk\"", "ds9"),
        (Role::Target, "target = \"[ds1] web/disk0.vmdk\"", "target = \"relative/disk0.raw\"", "relative/disk0.raw"),
    ];
    let mut site = Site::new(&[MIB]);
    let (source, target) = (site.source_config.clone(), site.target_config.clone());
    for (role, good, bad, word) in cases {
        let config = if role == Role::Source { &source } else { &target };
        let line = 1 + config.lines().position(|line| line.contains(good)).expect("the line to break");
        (site.source_config, site.target_config) = match role {
            Role::Source => (source.replacen(good, bad, 1), target.clone()),
            Role::Target => (source.clone(), target.replacen(good, bad, 1)),
        };
        let said = refused_start(&mut site, role);
        assert_says(&said, &[word]);
        let file = if role == Role::Source { "process-server.toml" } else { "master-target.toml" };
        assert_points_at(&said, file, line);
    }
}

#[test]
fn missing_files_are_refused_by_name() {
    let mut site = Site::new(&[MIB]);
    for (role, file) in [
        (Role::Source, "pki/ps-1.key"),
        (Role::Source, "pki/ca.pem"),
        (Role::Source, "source/disk0.img"),
        (Role::Target, "pki/mt-1.pem"),
        (Role::Target, "retention"),
        (Role::Target, "datastore"),
    ] {
        let (path, aside) = (site.path().join(file), site.path().join("aside"));
        move_to(&path, &aside);
        let said = refused_start(&mut site, role);
        assert_says(&said, &[file]);
        move_to(&aside, &path);
    }
}

fn move_to(from: &Path, to: &Path) {
    tool::run("mv", [from, to]).ok();
}

#[test]
fn the_same_disk_or_target_twice_is_refused() {
    let mut site = Site::new(&[MIB, MIB]);
    let (source, target) = (site.source_config.clone(), site.target_config.clone());
    site.source_config = source.replace("disk1.img", "disk0.img");
    assert_says(&refused_start(&mut site, Role::Source), &["disk0.img"]);
    site.source_config = source.replace("name = \"disk1\"", "name = \"disk0\"");
    assert_says(&refused_start(&mut site, Role::Source), &["disk0"]);
    site.target_config = target.replace("web/disk1.vmdk", "web/disk0.vmdk");
    assert_says(&refused_start(&mut site, Role::Target), &["disk0.vmdk"]);
}

#[test]
fn nbd_beyond_loopback_is_refused_without_tls() {
    for address in ["tcp:0.0.0.0:10809", "tcp:192.0.2.7:10809", "tcp:[::]:10809"] {
        let mut site = Site::new(&[MIB]);
        let unix = format!("unix:{}", site.path().join("run/disk0.sock").display());
        site.source_config = site.source_config.replace(&unix, address);
        let said = refused_start(&mut site, Role::Source);
        assert_says(&said, &["TLS", "127.0.0.1"]);
    }
}

#[test]
fn a_vmdk_path_that_leaves_its_datastore_is_refused() {
    for target in ["[ds1] ../escaped.vmdk", "[ds1] web/../../escaped.vmdk", "[ds1] /etc/escaped.vmdk", "[ds1] "] {
        let mut site = Site::with_disks(&[MIB], |_, disk| disk.target = target.to_owned());
        let said = refused_start(&mut site, Role::Target);
        assert_says(&said, &["datastore"]);
        assert!(!site.path().join("escaped.vmdk").exists(), "{target} was made");
    }
}

/// A site whose VMDK exists already, as `make` leaves it; both agents run until the target has said why not.
#[track_caller]
fn refused_vmdk(make: impl FnOnce(&Site), words: &[&str]) {
    let mut site = Site::new(&[MIB]);
    make(&site);
    site.write_configs();
    site.target.spawn();
    // It may refuse at its start, or when the group is opened: in both cases the operator is told why.
    site.source.spawn();
    let said = wait::until("a refusal", site::SYNC_MAX, || {
        let said = if site.target.ended().is_some() {
            site.target.log()
        } else {
            format!(
                "{}{}",
                site.target.ask(&["status", "--json"]).stdout,
                site.source.ask(&["status", "--json"]).stdout
            )
        };
        if words.iter().all(|word| said.contains(word)) { Ok(said) } else { Err(said) }
    });
    assert!(!said.contains("\"protected\""), "{said}");
}

#[test]
fn a_vmdk_whose_extent_lies_outside_its_datastore_is_refused_and_the_file_untouched() {
    for extent in ["../../outside.raw", "/tmp/backhaul-outside.raw"] {
        refused_vmdk(
            |site| {
                image::create(&site.path().join("outside.raw"), MIB);
                let text = format!(
                    "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n\
                     # Extent description\nRW 2048 FLAT \"{extent}\" 0\n\n# The Disk Data Base\n#DDB\n\n\
                     ddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"2\"\nddb.geometry.heads = \"16\"\n\
                     ddb.geometry.sectors = \"63\"\nddb.virtualHWVersion = \"4\"\n"
                );
                fs::write(site.vmdk(0), text).expect("a descriptor");
            },
            &["outside.raw"],
        );
    }
}

#[test]
fn vmdks_that_cannot_be_written_in_place_are_refused_by_kind() {
    for kind in ["streamOptimized", "twoGbMaxExtentSparse"] {
        refused_vmdk(
            |site| {
                let option = format!("subformat={kind}");
                let vmdk = site.vmdk(0);
                tool::run("qemu-img", ["create", "-q", "-f", "vmdk", "-o", &option, &vmdk.to_string_lossy(), "1M"])
                    .ok();
            },
            &[kind],
        );
    }
}

#[test]
fn a_vmdk_of_the_wrong_size_is_refused() {
    refused_vmdk(
        |site| {
            let vmdk = site.vmdk(0);
            let words =
                ["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", &vmdk.to_string_lossy(), "512k"];
            tool::run("qemu-img", words).ok();
        },
        &["size"],
    );
}

#[test]
fn a_target_that_qemu_is_writing_is_refused() {
    let mut site = Site::new(&[MIB]);
    let vmdk = site.vmdk(0).to_string_lossy().into_owned();
    let words = ["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", &vmdk, "1M"];
    tool::run("qemu-img", words).ok();
    // qemu-io holds the image, and its locks, as long as its standard input is open. Its prompt shows that it has them.
    let qemu = Command::new("qemu-io").args(["-f", "vmdk", &vmdk]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut qemu = qemu.expect("qemu-io (Debian: qemu-utils)");
    let mut prompt = [0; 1];
    qemu.stdout.as_mut().expect("its output").read_exact(&mut prompt).expect("a prompt");
    site.write_configs();
    site.target.spawn();
    site.source.spawn();
    wait::until("a refusal", site::SYNC_MAX, || {
        let said = if site.target.ended().is_some() {
            site.target.log()
        } else {
            format!(
                "{}{}",
                site.target.ask(&["status", "--json"]).stdout,
                site.source.ask(&["status", "--json"]).stdout
            )
        };
        if said.contains("in use") || said.contains("lock") { Ok(()) } else { Err(said) }
    });
    drop(qemu.stdin.take());
    qemu.wait().expect("qemu-io ends with its input");
}

/// Both agents run; the source must not get through, and says a word why.
#[track_caller]
fn refused_source(site: &mut Site, words: &[&str]) {
    site.start_target();
    site.start_source();
    wait::until("the source to say why it is not connected", site::SYNC_MAX, || {
        let status = site.source.status();
        let text = status.to_string();
        assert!(status["groups"][0]["state"] != "streaming", "{text}");
        if words.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text) }
    });
    assert_ne!(site.target.group(GROUP)["state"], "protected");
    assert!(!site.vmdk(0).exists(), "nothing was made on the target");
    assert!(site.points().is_empty());
}

#[test]
fn a_certificate_of_a_foreign_authority_is_refused() {
    let mut site = Site::new(&[MIB]);
    let foreign = site.path().join("foreign");
    site::pki(&foreign, "ps-1", "mt-1").ok();
    // It trusts the right target, but can't prove who it is.
    for file in ["ps-1.pem", "ps-1.key"] {
        site.source_config = site.source_config.replace(&format!("pki/{file}"), &format!("foreign/{file}"));
    }
    refused_source(&mut site, &["certificate"]);
}

#[test]
fn a_target_with_a_foreign_certificate_is_not_trusted() {
    let mut site = Site::new(&[MIB]);
    let foreign = site.path().join("foreign");
    site::pki(&foreign, "ps-1", "mt-1").ok();
    site.source_config = site.source_config.replace("pki/", "foreign/");
    refused_source(&mut site, &["certificate"]);
}

#[test]
fn a_target_with_another_name_is_not_trusted() {
    let mut site = Site::new(&[MIB]);
    site.source_config = site.source_config.replace("name = \"mt-1\"", "name = \"mt-2\"");
    refused_source(&mut site, &["mt-2"]);
}

#[test]
fn a_source_whose_certificate_was_not_granted_the_group_is_refused() {
    let mut site = Site::new(&[MIB]);
    site.target_config = site.target_config.replace("process_server = \"ps-1\"", "process_server = \"ps-2\"");
    refused_source(&mut site, &["process_server"]);
}

#[test]
fn a_wrong_port_is_reported_with_what_to_check() {
    let mut site = Site::new(&[MIB]);
    let address = site.source_config.lines().find(|line| line.starts_with("address")).expect("an address").to_owned();
    site.source_config = site.source_config.replace(&address, "address = \"127.0.0.1:9\"");
    refused_source(&mut site, &["127.0.0.1:9", "port"]);
}
