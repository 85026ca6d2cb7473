//! Peers and files that lie: garbage on the NBD socket, a truncated or damaged journal. Each gets a clear answer, the
//! rest goes on, and nothing is lost (A3, P6).

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tests::guest::Model;
use tests::load::{Load, Pace};
use tests::nbd::{Address, Command, Connection};
use tests::random::{self, Random};
use tests::site::{GROUP, SYNC_MAX, Site};
use tests::verdict::{self, assert_targets_equal_sources, judge_all, judge_point, judge_sources, model_with_content};
use tests::{tool, wait};

const MIB: u64 = 1 << 20;

fn connect(site: &Site) -> UnixStream {
    let Address::Unix(path) = &site.disks[0].nbd else { panic!("a unix socket") };
    let stream = UnixStream::connect(path).expect("the agent listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
    stream.set_write_timeout(Some(Duration::from_secs(20))).expect("a time limit");
    stream
}

/// Reads until the agent closes the connection, which it must.
#[track_caller]
fn assert_closed(mut stream: UnixStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the agent neither answers nor closes: {error}"),
    }
}

/// Sends, not minding that the agent may have closed already.
fn send(stream: &mut UnixStream, bytes: &[u8]) {
    match stream.write_all(bytes) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset) => {}
        Err(error) => panic!("the agent does not read: {error}"),
    }
}

fn option(kind: u32, length: u32) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn request(magic: u32, command: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(7u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

#[test]
fn nbd_clients_that_send_garbage_are_dropped_and_the_others_go_on() {
    let mut site = Site::new(&[16 * MIB]);
    let model = model_with_content(&site);
    site.start();
    let pace = Pace { seed: random::seed(401), writes_per_second: 100, sectors_used: 16384, trims: true };
    let load = Load::start(&model, &site.clients(2, 4), pace);
    load.wait_for_writes(50);

    // Noise instead of a handshake.
    let mut noise = vec![0; 100_000];
    let mut random = Random::new(9);
    noise.iter_mut().for_each(|byte| *byte = random.next_u64() as u8);
    let mut stream = connect(&site);
    send(&mut stream, &noise);
    assert_closed(stream);

    // Client flags that don't exist.
    let mut stream = connect(&site);
    send(&mut stream, &u32::MAX.to_be_bytes());
    assert_closed(stream);

    // An option of 4 GiB.
    let mut stream = connect(&site);
    send(&mut stream, &3u32.to_be_bytes());
    send(&mut stream, &option(7, u32::MAX));
    assert_closed(stream);

    // An option whose inner length goes beyond it: an error reply, or the end.
    let mut stream = connect(&site);
    send(&mut stream, &3u32.to_be_bytes());
    send(&mut stream, &option(7, 6));
    send(&mut stream, &[0xff, 0xff, 0xff, 0xff, 0, 0]);
    stream.shutdown(std::net::Shutdown::Write).expect("half a close");
    assert_closed(stream);

    // Half a handshake, then silence for good.
    let mut stream = connect(&site);
    send(&mut stream, &3u32.to_be_bytes()[..2]);
    drop(stream);

    // In the transmission phase: a wrong magic; a write of 4 GiB; half a request.
    let open = || Connection::open(&site.disks[0].nbd, &site.export(0)).expect("the agent still serves");
    for bytes in [request(0xdead_beef, 1, 0, 512), request(0x2560_9513, 1, 0, u32::MAX)] {
        let mut client = open();
        client.raw().write_all(&bytes).expect("the agent reads");
        let mut rest = Vec::new();
        let ended = client.raw().read_to_end(&mut rest);
        let reset = ended.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(ended.is_ok() || reset, "the agent closes the connection: {ended:?}");
    }
    let mut client = open();
    client.raw().write_all(&request(0x2560_9513, 1, 0, 512)[..13]).expect("the agent reads");
    drop(client);
    // A write whose payload never ends must not hold up anybody: neither points nor other clients.
    let mut stuck = open();
    stuck.raw().write_all(&request(0x2560_9513, 1, 0, 65536)).expect("the agent reads");
    stuck.raw().write_all(&[0x77; 1000]).expect("the agent reads");
    let taken = verdict::take(&site, &model, Some("while one client is stuck"));
    load.wait_for_writes(50);
    drop(stuck);

    // An unknown command is answered with an error, the connection stays.
    let mut client = open();
    client.raw().write_all(&request(0x2560_9513, 99, 0, 0)).expect("the agent reads");
    let mut reply = [0; 16];
    client.raw().read_exact(&mut reply).expect("an answer");
    assert_ne!(reply[4..8], [0; 4], "an unknown command can't succeed");
    client.call(Command::Flush, 0, 0, 0, &[]).expect("the connection goes on");

    let summary = load.stop();
    assert_eq!((summary.dropped, summary.refused.len()), (0, 0), "the good clients notice nothing: {summary:?}");
    let last = verdict::take(&site, &model, None);
    judge_sources(&site, &model);
    judge_all(&site, &model, &[taken, last]);
    assert_targets_equal_sources(&site);
    // A client that breaks the protocol may be worth a warning.
    site.finish(&["nbd", "NBD", "client"]);
}

#[test]
fn clients_that_leave_in_the_middle_of_large_writes_cost_no_memory_for_good() {
    let mut site = Site::new(&[48 * MIB]);
    site.start();
    let open = || Connection::open(&site.disks[0].nbd, &site.export(0)).expect("the agent still serves");
    // Together more than the agent lends to requests in progress: what is lent must come back.
    for _ in 0..6 {
        let mut client = open();
        client.raw().write_all(&request(0x2560_9513, 1, 0, 32 << 20)).expect("the agent reads");
        client.raw().write_all(&vec![0x55; 31 << 20]).expect("the agent reads");
        drop(client);
    }
    let mut client = open();
    client.call(Command::Write, 0, 40 * MIB, 4096, &[0x66; 4096]).expect("the others go on");
    client.call(Command::Flush, 0, 0, 0, &[]).expect("and can flush");
    drop(client);
    site.point(None);
    assert_targets_equal_sources(&site);
    site.finish(&[]);
}

/// All files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The largest file of redo on the retention volume.
fn largest_journal_file(site: &Site) -> PathBuf {
    let all = files(&site.path().join("retention"));
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let redo = all.into_iter().filter(|path| name(path).starts_with("redo-") && !name(path).contains('.'));
    let size = |path: &PathBuf| fs::metadata(path).map(|metadata| metadata.len()).unwrap_or(0);
    redo.max_by_key(size).expect("a journal")
}

/// A protected site whose target was killed after some load, and the load that goes on.
fn with_a_journal(seed: u64) -> (Site, Arc<Model>, Load) {
    let mut site = Site::new(&[16 * MIB]);
    let model = model_with_content(&site);
    site.start();
    let pace = Pace { seed: random::seed(seed), writes_per_second: 150, sectors_used: 16384, trims: true };
    let load = Load::start(&model, &site.clients(2, 4), pace);
    load.wait_for_writes(300);
    verdict::take(&site, &model, None);
    site.target.kill();
    site.source.clear_log();
    (site, model, load)
}

/// The load ends; all points that are listed are right, and the target ends up identical to the source.
#[track_caller]
fn assert_recovers(site: &Site, model: &Model, load: Load) {
    load.wait_for_writes(100);
    site.wait_protected();
    let after = verdict::take(site, model, Some("after"));
    let _ = load.stop();
    verdict::take(site, model, None);
    judge_sources(site, model);
    // Points that the damage took are gone, not wrong.
    judge_all(site, model, &[after]);
    assert_targets_equal_sources(site);
}

#[test]
fn a_truncated_journal_is_noticed_and_what_it_lost_is_sent_again() {
    let (mut site, model, load) = with_a_journal(402);
    let file = largest_journal_file(&site);
    let journal = OpenOptions::new().write(true).open(&file).expect("a journal");
    let length = journal.metadata().expect("its size").len();
    journal.set_len(length / 2).expect("it can be cut");
    drop(journal);
    site.start_target();
    // What is missing is vouched for elsewhere as soon as anything of it is applied: then the target refuses. Else it opens, and
    // the source finds that acknowledged sets are gone.
    let group = wait::until("the loss to show", SYNC_MAX, || {
        let (source, target) = (site.source.group(GROUP), site.target.group(GROUP));
        // A source may not have noticed yet that its target was away.
        let both_go_on = source["state"] == "streaming" && target["state"] == "protected";
        let is_over = target["state"] == "failed" || both_go_on;
        if is_over { Ok(target) } else { Err((source, target)) }
    });
    if group["state"] == "failed" {
        let reason = group["reason"].to_string();
        let name = file.to_string_lossy();
        assert!(reason.contains("damaged") && reason.contains(&*name) && reason.contains("although"), "{reason}");
        move_the_journal_away(&mut site);
        assert_recovers(&site, &model, load);
        return;
    }
    assert_recovers(&site, &model, load);
    let told = site.source.alarms(&[]);
    assert!(told.iter().any(|line| line.contains("no longer has")), "a loss is never silent: {told:?}");
}

/// What the reason of a damaged journal says can be done.
fn move_the_journal_away(site: &mut Site) {
    site.target.stop();
    let journal = site.path().join("retention").join(GROUP);
    tool::run("mv", [&journal, &site.path().join("damaged")]).ok();
    site.start_target();
}

#[test]
fn a_flipped_bit_in_the_journal_is_located_and_costs_no_more_than_what_it_hit() {
    let (mut site, model, load) = with_a_journal(403);
    let file = largest_journal_file(&site);
    let mut bytes = fs::read(&file).expect("a journal");
    // Early in the file, so that much of what follows was synced: it can't pass for a torn tail.
    let early = bytes.len() / 8;
    bytes[early] ^= 0x10;
    fs::write(&file, bytes).expect("it can be written");
    site.start_target();
    let group = wait::until("the target to be back, or to say what is damaged", SYNC_MAX, || {
        let group = site.target.group(GROUP);
        let is_over = group["state"] == "failed" || group["state"] == "protected";
        if is_over { Ok(group) } else { Err(group) }
    });
    let name = file.to_string_lossy();
    if group["state"] == "failed" {
        // The header of a record: what follows can't be told from it.
        let reason = group["reason"].to_string();
        assert!(reason.contains(&*name) && reason.contains("damaged"), "{reason}");
        move_the_journal_away(&mut site);
        return assert_recovers(&site, &model, load);
    }
    // Content: points that need it can't be had any more, everything else goes on.
    let scrubbed = site.target.ask(&["scrub", "--group", GROUP]).fails_with(1);
    let last = file.file_name().expect("its name").to_string_lossy().into_owned();
    assert!(scrubbed.stdout.contains(&last), "the file is named: {scrubbed:?}");
    load.wait_for_writes(100);
    let _ = load.stop();
    let after = verdict::take(&site, &model, None);
    judge_sources(&site, &model);
    assert_targets_equal_sources(&site);
    // A point reads the redo of its generation: one that needs what is damaged is refused, by name, and never wrong.
    let restored = site.restore_to(0, &after.id, &site.path().join("after.raw"), "raw");
    match restored.code {
        Some(0) => _ = judge_point(&site, &model, &after.id, after.bounds()),
        _ => assert!(restored.stderr.contains(&*name) && restored.stderr.contains("damaged"), "{restored:?}"),
    }
}
