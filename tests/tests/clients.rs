//! Real NBD clients and outside judges: libnbd, QEMU and fio agree with what the agents do.

use std::fs;
use std::net::TcpListener;

use serde_json::Value;
use tests::nbd::{Address, Command, Connection, EINVAL, ENOSPC, FLAG_FUA};
use tests::sector;
use tests::site::Site;
use tests::verdict::{assert_targets_equal_sources, model_with_content};
use tests::{image, tool};

const MIB: u64 = 1 << 20;

#[test]
fn fio_verifies_what_it_wrote_through_the_tap_while_both_agents_replicate() {
    let mut site = Site::new(&[32 * MIB]);
    site.start();
    let uri = format!("--uri={}", site.uri(0));
    let fio = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bsrange=512-128k",
        "--blockalign=512",
        "--iodepth=16",
        "--size=32m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_state_save=0",
        "--output-format=json",
    ];
    let report = tool::run("fio", fio).ok();
    let json: Value = serde_json::from_str(report.stdout.trim_start_matches(|c| c != '{')).expect("fio's JSON");
    assert_eq!(json["jobs"][0]["error"], 0, "{json}");
    site.point(None);
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

#[test]
fn nbdcopy_writes_a_disk_whose_restored_point_is_identical() {
    let mut site = Site::new(&[16 * MIB]);
    site.start();
    let original = site.path().join("original.img");
    image::create(&original, 16 * MIB);
    let model = tests::guest::Model::new(&[16 * MIB]);
    image::fill(&original, &model, 0, 0, 9000);
    image::fill(&original, &model, 0, 20000, 333);
    tool::run("nbdcopy", ["--flush", &original.to_string_lossy(), &site.uri(0)]).ok();
    let id = site.point(Some("copied"));
    image::assert_same(&site.restore(0, &id), &original);
    image::assert_same(&site.restore(0, "copied"), &original);
    let back = site.path().join("back.img");
    tool::run("nbdcopy", [site.uri(0), back.to_string_lossy().into_owned()]).ok();
    image::assert_same(&back, &original);
    site.finish(&[]);
}

#[test]
fn nbdinfo_sees_the_exports_their_sizes_and_their_holes() {
    let mut site = Site::new(&[8 * MIB, 4 * MIB]);
    site.start_source();
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    assert_eq!(client.write(MIB, &vec![1; MIB as usize]).expect("a write"), 0);
    drop(client);

    let list = tool::run("nbdinfo", ["--list", "--json", &site.disks[0].nbd.uri("")]).ok().json();
    let names: Vec<&str> =
        list["exports"].as_array().expect("a list").iter().filter_map(|e| e["export-name"].as_str()).collect();
    assert!(names.contains(&"web/disk0"), "{list}");
    let size = tool::run("nbdinfo", ["--size", &site.uri(0)]).ok();
    assert_eq!(size.stdout.trim(), (8 * MIB).to_string());
    let info = tool::run("nbdinfo", ["--json", &site.uri(0)]).ok().json();
    let export = &info["exports"][0];
    for feature in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_cache"] {
        assert_eq!(export[feature], true, "{feature} in {info}");
    }
    assert_eq!(export["is_read_only"], false, "{info}");

    let map = tool::run("nbdinfo", ["--map", "--json", &site.uri(0)]).ok().json();
    let mut data = 0;
    let mut end = 0;
    for extent in map.as_array().expect("a list") {
        assert_eq!(extent["offset"].as_u64(), Some(end), "the map has no gaps: {map}");
        let length = extent["length"].as_u64().expect("a length");
        end += length;
        if extent["type"] == 0 {
            data += length;
        }
    }
    assert_eq!(end, 8 * MIB, "the map covers the disk: {map}");
    assert_eq!(data, MIB, "one MiB was written: {map}");
    site.finish(&[]);
}

#[test]
fn nbdsh_speaks_structured_replies_with_every_command() {
    let mut site = Site::new(&[8 * MIB]);
    site.start_source();
    let script = r#"
assert h.get_structured_replies_negotiated()
assert h.can_meta_context("base:allocation")
h.pwrite(b"a" * 8192, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(8192, 4096) == b"a" * 8192
h.zero(512, 4096, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(1024, 4096) == bytearray(512) + b"a" * 512
h.trim(4096, 8192)
h.cache(65536, 0)
h.flush()
seen = []
h.block_status(1 << 20, 0, lambda context, offset, entries, error: seen.extend(entries))
assert seen, "block status says something"
for bad in (lambda: h.pread(512, 8 << 20), lambda: h.pwrite(b"x" * 512, 8 << 20), lambda: h.zero(1024, (8 << 20) - 512)):
    try:
        bad()
        raise SystemExit("a request beyond the end succeeded")
    except nbd.Error as error:
        assert error.errno in ("EINVAL", "ENOSPC"), error
assert h.pread(512, 4608) == b"a" * 512
"#;
    // Strict mode off: libnbd would refuse the bad requests itself.
    let command = format!(
        "h.add_meta_context('base:allocation')\nh.set_strict_mode(0)\nh.connect_uri('{}')\n{script}",
        site.uri(0)
    );
    // Debian's Python has the module; another one, earlier in PATH, would not.
    tool::run("env", ["PATH=/usr/bin:/bin", "nbdsh", "-c", &command]).ok();
    site.finish(&[]);
}

#[test]
fn qemu_io_writes_and_reads_and_a_second_connection_sees_it_after_a_flush() {
    let mut site = Site::new(&[8 * MIB]);
    site.start_source();
    let words = [
        "-f",
        "raw",
        "-c",
        "write -P 0xab 1M 64k",
        "-c",
        "write -z 1M 4k",
        "-c",
        "discard 3M 1M",
        "-c",
        "flush",
        &site.uri(0),
    ];
    tool::run("qemu-io", words).ok();
    let read = ["-f", "raw", "-r", "-c", "read -P 0xab 1028k 60k", "-c", "read -P 0 1M 4k", &site.uri(0)];
    let seen = tool::run("qemu-io", read).ok();
    assert!(!seen.stdout.contains("Pattern verification failed"), "{seen:?}");
    site.finish(&[]);
}

#[test]
fn requests_of_any_size_and_alignment_read_back_as_written() {
    let mut site = Site::new(&[8 * MIB]);
    site.start_source();
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    let mut expected = vec![0u8; 8 * MIB as usize];
    let mut random = tests::random::Random::new(7);
    for number in 0..200u64 {
        let length = (1 + random.below(300) * 512) as usize;
        let offset = random.below(8 * MIB - length as u64) / 512 * 512;
        let length = length / 512 * 512;
        if length == 0 {
            continue;
        }
        let bytes = sector::content(number, 0, offset / 512, length as u64 / 512);
        let flags = if number % 5 == 0 { FLAG_FUA } else { 0 };
        let done = client.call(Command::Write, flags, offset, length as u32, &bytes).expect("an answer");
        assert_eq!(done.error, 0);
        expected[offset as usize..offset as usize + length].copy_from_slice(&bytes);
    }
    for _ in 0..50 {
        let offset = random.below(4 * MIB);
        let length = 1 + random.below(MIB);
        let read = client.read(offset, length as u32).expect("an answer");
        assert!(read == expected[offset as usize..(offset + length) as usize], "{length} bytes at {offset}");
    }
    assert_eq!(client.write(8 * MIB - 512, &[0; 1024]).expect("an answer"), ENOSPC, "beyond the end");
    let beyond = client.call(Command::Read, 0, 8 * MIB, 512, &[]).expect("an answer");
    assert_eq!(beyond.error, EINVAL, "a read beyond the end");
    site.finish(&[]);
}

#[test]
fn the_only_disk_is_the_default_export_and_tcp_on_loopback_works() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let mut site = Site::with_disks(&[4 * MIB], |_, disk| disk.nbd = Address::Tcp(format!("127.0.0.1:{port}")));
    site.start_source();
    let size = tool::run("nbdinfo", ["--size", &format!("nbd://127.0.0.1:{port}")]).ok();
    assert_eq!(size.stdout.trim(), (4 * MIB).to_string());
    Connection::open(&site.disks[0].nbd, "web/other").err().expect("an export that is not there is refused");
    site.finish(&[]);
}

#[test]
fn qemu_img_agrees_with_the_vmdks_that_are_made() {
    let mut site = Site::new(&[16 * MIB]);
    let _model = model_with_content(&site);
    site.start();
    let vmdk = site.vmdk(0);
    let vmdk_text = vmdk.to_string_lossy();
    let info = tool::run("qemu-img", ["info", "-U", "--output=json", &vmdk_text]).ok().json();
    assert_eq!(info["format"], "vmdk", "{info}");
    assert_eq!(info["virtual-size"].as_u64(), Some(16 * MIB), "{info}");
    let kind = info["format-specific"]["data"]["create-type"].as_str();
    assert!(matches!(kind, Some("vmfs" | "monolithicFlat")), "{info}");
    assert_targets_equal_sources(&site);

    // Restored VMDKs are images of their own.
    let restored = site.path().join("restored.vmdk");
    site.restore_to(0, "latest", &restored, "vmdk").ok();
    let restored_text = restored.to_string_lossy();
    let words = ["compare", "-f", "vmdk", "-F", "raw", &restored_text, &site.disks[0].source.to_string_lossy()];
    tool::run("qemu-img", words).ok();
    site.finish(&[]);
}

#[test]
fn qemu_is_kept_from_writing_a_target_that_is_in_use_but_may_read_it() {
    let mut site = Site::new(&[8 * MIB]);
    site.start();
    let vmdk = site.vmdk(0);
    let extent = vmdk.with_file_name("disk0-flat.vmdk");
    assert!(fs::metadata(&extent).is_ok(), "the extent lies beside its descriptor");
    let vmdk = vmdk.to_string_lossy();
    for (format, file) in [("vmdk", vmdk.as_ref()), ("raw", extent.to_string_lossy().as_ref())] {
        let written = tool::run("qemu-io", ["-f", format, "-c", "write 0 512", file]);
        assert!(written.code != Some(0) && written.stderr.contains("lock"), "{written:?}");
    }
    tool::run("qemu-img", ["info", &vmdk]).ok();
    site.finish(&[]);
}

#[test]
fn nbd_beyond_loopback_takes_only_tls_clients_with_a_certificate_of_the_authority() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let mut site = Site::with_disks(&[4 * MIB], |_, disk| disk.nbd = Address::Tcp(format!("0.0.0.0:{port}")));
    let tls = site.source_config.clone();
    let table =
        tls[tls.find("[tls]").expect("[tls]")..tls.find("[master_target]").expect("[master_target]")].to_owned();
    site.source_config = tls.replace("[[group]]", &format!("{}[[group]]", table.replace("[tls]", "[nbd_tls]")));
    site.start_source();

    let foreign = site.path().join("foreign");
    tests::site::pki(&foreign, "ps-1", "mt-1").ok();
    // Names as libnbd wants them. The foreign client trusts the right authority, but has a key of another.
    let folder = |name: &str, keys: &std::path::Path| {
        let folder = site.path().join(name);
        fs::create_dir(&folder).expect("a folder");
        let pki = site.path().join("pki");
        let files = [
            (pki.join("ca.pem"), "ca-cert.pem"),
            (keys.join("mt-1.pem"), "client-cert.pem"),
            (keys.join("mt-1.key"), "client-key.pem"),
        ];
        for (from, to) in files {
            fs::copy(from, folder.join(to)).expect("a copy");
        }
        folder.to_string_lossy().into_owned()
    };
    let size = |uri: &str| tool::run("nbdinfo", ["--size", uri]);
    let good = folder("good", &site.path().join("pki"));
    let secured = size(&format!("nbds://127.0.0.1:{port}/web/disk0?tls-certificates={good}")).ok();
    assert_eq!(secured.stdout.trim(), (4 * MIB).to_string());
    let bad = folder("bad", &foreign);
    for uri in [
        format!("nbd://127.0.0.1:{port}/web/disk0"),
        format!("nbds://127.0.0.1:{port}/web/disk0?tls-certificates={bad}"),
    ] {
        let refused = size(&uri);
        assert_ne!(refused.code, Some(0), "{refused:?}");
    }
    site.finish(&["nbd", "NBD", "client"]);
}
