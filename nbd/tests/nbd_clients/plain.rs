//! Clients over a unix socket and TCP, without TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use nbd::TlsMode;
use proto::config::{HostPort, NbdAddress};
use tempfile::TempDir;

use crate::clients::{python, run, run_failing, unix_uri};
use crate::memory_server::MemoryServer;

const MIB: usize = 1 << 20;

struct Served {
    dir: TempDir,
    socket: PathBuf,
    server: MemoryServer,
}

fn serve(disks: &[(&str, usize)]) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let server = MemoryServer::start(&NbdAddress::Unix(socket.clone()), TlsMode::Off, disks);
    Served { dir, socket, server }
}

impl Served {
    fn uri(&self, export: &str) -> String {
        unix_uri(&self.socket, export)
    }

    /// A file of pseudo-random bytes with holes in it.
    fn sample(&self, len: usize) -> (PathBuf, Vec<u8>) {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut content: Vec<u8> = (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        content.chunks_mut(256 << 10).step_by(3).for_each(|chunk| chunk.fill(0));
        let path = self.dir.path().join("sample");
        std::fs::write(&path, &content).unwrap();
        (path, content)
    }
}

#[test]
fn nbdinfo_shows_an_export_with_all_that_it_offers() {
    let served = serve(&[("web/os", 8 * MIB), ("web/data", 5 * MIB)]);
    let shown = run("nbdinfo", &["--json", &served.uri("web/os")]);
    for expected in [
        "\"export-name\": \"web/os\"",
        "\"description\": \"memory disk web/os\"",
        "\"export-size\": 8388608",
        "\"base:allocation\"",
        "\"structured\": true",
        "\"can_multi_conn\": true",
        "\"can_cache\": true",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"is_read_only\": false",
        "\"block_size_minimum\": 1",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(shown.contains(expected), "{expected} in {shown}");
    }
}

#[test]
fn nbdinfo_lists_all_exports() {
    let served = serve(&[("web/os", MIB), ("db/os", MIB), ("db/log-ro", MIB)]);
    let shown = run("nbdinfo", &["--list", "--json", &served.uri("")]);
    for name in ["web/os", "db/os", "db/log-ro"] {
        assert!(shown.contains(&format!("\"export-name\": \"{name}\"")), "{name} in {shown}");
    }
    assert!(shown.contains("\"is_read_only\": true"));
}

#[test]
fn a_disk_is_reached_by_bare_name_where_it_is_unique() {
    let served = serve(&[("web/os", MIB), ("db/os", MIB), ("db/log", 3 * MIB)]);
    assert_eq!(run("nbdinfo", &["--size", &served.uri("log")]).trim(), "3145728");
    let refused = run_failing("nbdinfo", &["--size", &served.uri("os")]);
    assert!(refused.contains("nbdinfo"), "{refused}");
    run_failing("nbdinfo", &["--size", &served.uri("")]);
    run_failing("nbdinfo", &["--size", &served.uri("nope")]);
    let alone = serve(&[("web/os", MIB)]);
    assert_eq!(run("nbdinfo", &["--size", &alone.uri("")]).trim(), "1048576");
}

#[test]
fn nbdinfo_maps_data_and_holes() {
    let served = serve(&[("web/os", 4 * MIB)]);
    run("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 64k", "-c", "write -P 7 2M 1M", &served.uri("")]);
    let map = run("nbdinfo", &["--map", &served.uri("")]);
    let map: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let expected = [
        ["0", "1048576", "3"],
        ["1048576", "65536", "0"],
        ["1114112", "983040", "3"],
        ["2097152", "1048576", "0"],
        ["3145728", "1048576", "3"],
    ];
    assert_eq!(map, expected);
}

#[test]
fn nbdcopy_copies_in_and_out_over_several_connections() {
    let served = serve(&[("web/os", 24 * MIB)]);
    let (sample, content) = served.sample(24 * MIB);
    run("nbdcopy", &["--connections=4", "--threads=4", "--requests=16", sample.to_str().unwrap(), &served.uri("")]);
    assert!(served.server.disks[0].content() == content);
    assert!(served.server.connections.load(Ordering::SeqCst) >= 4);
    let copy = served.dir.path().join("copy");
    run("nbdcopy", &["--connections=4", &served.uri(""), copy.to_str().unwrap()]);
    assert!(std::fs::read(copy).unwrap() == content);
}

#[test]
fn libnbd_uses_every_command_and_flag() {
    let served = serve(&[("web/os", 4 * MIB)]);
    let program = r#"
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(URI)
assert h.get_structured_replies_negotiated() and h.can_meta_context("base:allocation")
h.pwrite(b"a" * 8192, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(3, 4095) == b"\0aa"
whole = []
h.pread_structured(12288, 0, lambda buf, o, s, err: whole.append(bytes(buf)), nbd.CMD_FLAG_DF)
assert whole == [b"\0" * 4096 + b"a" * 8192]
h.pwrite(b"xyz", 5001)
assert h.pread(5, 5000) == b"axyza"
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(8192, 4096) == b"\0" * 4096 + b"a" * 4096
h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO)
try:
    h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    raise SystemExit("a slow zero was not refused")
except nbd.Error as e:
    assert e.errnum == 95, e
h.trim(4096, 4096, nbd.CMD_FLAG_FUA)
h.cache(65536, 0)
h.flush()
h.pwrite(b"d" * 4096, 1 << 20)
extents = []
h.block_status(4 << 20, 0, lambda c, o, e, err: extents.extend(e))
assert extents == [1 << 20, 3, 4096, 0, (3 << 20) - 4096, 3], extents
extents.clear()
h.block_status(3 << 20, 1 << 20, lambda c, o, e, err: extents.extend(e), nbd.CMD_FLAG_REQ_ONE)
assert extents == [4096, 0], extents
chunks = []
h.pread_structured(1 << 20, 1 << 20, lambda buf, o, s, err: chunks.append((o, s)))
assert chunks[0] == (1 << 20, nbd.READ_DATA) and chunks[1] == ((1 << 20) + 4096, nbd.READ_HOLE), chunks[:3]
h.shutdown()
"#;
    python(&served.uri(""), program);
    assert!(served.server.disks[0].flushes.load(Ordering::SeqCst) >= 4);
}

#[test]
fn libnbd_gets_errors_for_what_is_wrong_and_the_connection_goes_on() {
    let served = serve(&[("web/os", MIB), ("web/log-ro", MIB)]);
    let program = r#"
def refused(errnum, call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errnum == errnum, (e, args)
        return
    raise SystemExit(f"not refused: {args}")

for structured in True, False:
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.set_strict_mode(0)
    h.connect_uri(URI)
    refused(22, h.pread, 512, 1 << 20)
    refused(28, h.pwrite, b"x" * 512, (1 << 20) - 511)
    refused(28, h.zero, 512, 1 << 20)
    refused(22, h.trim, 512, (1 << 64) - 512)
    refused(22, h.cache, 512, 1 << 20)
    refused(22, h.trim, 512, 0, nbd.CMD_FLAG_NO_HOLE)
    if structured:
        refused(22, h.block_status, 512, 0, lambda *a: 0)
    else:
        refused(22, h.pread, 512, 0, nbd.CMD_FLAG_DF)
    h.pwrite(b"good", 0)
    assert h.pread(4, 0) == b"good"
    h.shutdown()

h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(URI.replace("web/os", "web/log-ro"))
assert h.is_read_only()
refused(1, h.pwrite, b"x" * 512, 0)
refused(1, h.zero, 512, 0)
refused(1, h.trim, 512, 0)
assert h.pread(4, 0) == b"\0" * 4
"#;
    python(&served.uri("web/os"), program);
}

#[test]
fn old_clients_without_options_or_structured_replies_are_served() {
    let served = serve(&[("web/os", MIB)]);
    let program = r#"
for flags in 0, nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE, nbd.HANDSHAKE_FLAG_NO_ZEROES:
    h = nbd.NBD()
    h.set_handshake_flags(flags)
    h.set_request_structured_replies(False)
    h.connect_uri(URI)
    assert h.get_size() == 1 << 20 and h.can_flush() and not h.can_df()
    h.pwrite(bytes([flags + 65]) * 512, 512)
    assert h.pread(514, 511) == b"\0" + bytes([flags + 65]) * 512 + b"\0"
    h.shutdown()
"#;
    python(&served.uri(""), program);
}

#[test]
fn libnbd_negotiates_option_by_option() {
    let served = serve(&[("web/os", MIB), ("web/data", 2 * MIB)]);
    let program = r#"
h = nbd.NBD()
h.set_opt_mode(True)
h.set_full_info(True)
h.connect_uri(URI)
names = []
assert h.opt_list(lambda name, description: names.append((name, description))) == 2
assert names[1] == ("web/data", "memory disk web/data"), names
h.add_meta_context("base:allocation")
h.set_export_name("data")
contexts = []
assert h.opt_list_meta_context(lambda name: contexts.append(name)) == 1
assert contexts == ["base:allocation"], contexts
h.opt_info()
assert h.get_size() == 2 << 20
assert h.get_canonical_export_name() == "web/data"
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
try:
    h.set_export_name("nope")
    h.opt_go()
    raise SystemExit("an unknown export was given")
except nbd.Error as e:
    assert e.errnum == 2, e
h.set_export_name("web/os")
h.opt_go()
assert h.get_size() == 1 << 20 and h.can_meta_context("base:allocation")
h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(URI)
h.opt_abort()
"#;
    python(&served.uri(""), program);
}

#[test]
fn qemu_io_writes_verifies_discards_and_zeroes() {
    let served = serve(&[("web/os", 8 * MIB)]);
    let commands = [
        "write -P 0xa5 0 1M",
        "write -f -P 0x5a 4k 512",
        "read -P 0x5a 4k 512",
        "read -P 0xa5 0 4k",
        "write -z -u 64k 64k",
        "write -z 256k 64k",
        "discard 512k 128k",
        "flush",
        "read -P 0 64k 64k",
        "read -P 0 256k 64k",
        "read -P 0 512k 128k",
        "aio_write -P 1 2M 1M",
        "aio_write -P 2 3M 1M",
        "aio_flush",
        "read -P 1 2M 1M",
        "read -P 2 3M 1M",
        "map",
    ];
    let uri = served.uri("web/os");
    let args: Vec<&str> = ["-t", "none", "-f", "raw", "-d", "unmap"]
        .into_iter()
        .chain(commands.iter().flat_map(|command| ["-c", *command]))
        .chain([uri.as_str()])
        .collect();
    let printed = run("qemu-io", &args);
    assert!(!printed.contains("failed") && !printed.contains("error"), "{printed}");
}

#[test]
fn qemu_img_converts_and_compares() {
    let served = serve(&[("web/os", 12 * MIB)]);
    let (sample, content) = served.sample(12 * MIB);
    let (sample, uri) = (sample.to_str().unwrap(), served.uri("os"));
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", sample, &uri]);
    assert!(served.server.disks[0].content() == content);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", sample, &uri]);
    let info = run("qemu-img", &["info", &format!("nbd:unix:{}:exportname=web/os", served.socket.display())]);
    assert!(info.contains("12 MiB"), "{info}");
}

#[test]
fn fio_verifies_what_it_wrote_from_several_jobs() {
    let served = serve(&[("web/os", 16 * MIB)]);
    let printed = run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={}", served.uri("web/os")),
            "--rw=randwrite",
            "--bs=512-64k",
            "--bs_unaligned=0",
            "--iodepth=32",
            "--numjobs=2",
            "--size=8m",
            "--offset_increment=8m",
            "--verify=crc32c",
            "--verify_state_save=0",
            "--fsync=64",
            "--group_reporting",
        ],
    );
    assert!(printed.contains("err= 0"), "{printed}");
}

#[test]
fn tcp_on_loopback_is_served() {
    let server = MemoryServer::start(
        &NbdAddress::Tcp(HostPort { host: "127.0.0.1".to_owned(), port: 0 }),
        TlsMode::Off,
        &[("web/os", 2 * MIB)],
    );
    let NbdAddress::Tcp(HostPort { port, .. }) = *server.address() else { panic!("it is TCP") };
    let uri = format!("nbd://127.0.0.1:{port}/web/os");
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), "2097152");
    run("qemu-io", &["-f", "raw", "-c", "write -P 3 0 2M", "-c", "read -P 3 0 2M", &uri]);
}

#[test]
fn garbage_costs_its_sender_the_connection_and_nobody_else() {
    let server = MemoryServer::start(
        &NbdAddress::Tcp(HostPort { host: "127.0.0.1".to_owned(), port: 0 }),
        TlsMode::Off,
        &[("web/os", MIB)],
    );
    let NbdAddress::Tcp(HostPort { port, .. }) = *server.address() else { panic!("it is TCP") };
    let go = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";
    let long_write = [&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1], [0; 16].as_slice(), &[0xff; 4]].concat();
    let kinds: [Vec<u8>; 4] = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        [b"\0\0\0\x03".as_slice(), &[0xff; 100]].concat(),
        [go.as_slice(), &[0xff; 100]].concat(),
        [go.as_slice(), &long_write].concat(),
    ];
    for garbage in kinds {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(&garbage).unwrap();
        // The server closes; a reset is a way to close too.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(run("nbdinfo", &["--size", &format!("nbd://127.0.0.1:{port}")]).trim(), "1048576");
}
