//! A database on a protected disk (P1, F2): whatever point is mounted, the copy recovers, and every transaction that the client
//! saw committed before the point is there.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tests::file_system::FileSystem;
use tests::mounts::{mount, unmount};
use tests::postgres::Server;
use tests::random::Random;
use tests::site::Site;
use tests::{random, tool};

const MIB: u64 = 1 << 20;
const POINTS: usize = 10;

/// Lets the user of the server reach what lies below.
fn open_up(folder: &std::path::Path) {
    tool::run("chmod", ["711", &folder.to_string_lossy()]).ok();
}

#[test]
#[ignore = "needs root: loop devices"]
fn a_database_recovers_from_any_point_with_all_that_was_committed_before_it() {
    let mut site = Site::new(&[256 * MIB]);
    open_up(site.path());
    site.start();
    let disk = FileSystem::make(&site.uri(0), &site.path().join("disk"));
    open_up(&site.path().join("disk"));
    open_up(&disk.path());
    let server = Server::create(&disk.path().join("data"));
    assert!(server.pgbench(&["-i", "-s", "1", "-q"]).wait().expect("pgbench").success());
    let _ = server.ask("CREATE TABLE seen (n bigint PRIMARY KEY)");
    let mut load = server.pgbench(&["-c", "2", "-T", "600"]);

    let (stop, committed) = (AtomicBool::new(false), Mutex::new(0));
    let mut seed = Random::new(random::seed(151));
    let taken: Vec<(String, u64)> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut session = server.session();
            for number in (1..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                session.commit(number);
                *committed.lock().expect("a number") = number;
            }
        });
        let take = |_| {
            std::thread::sleep(Duration::from_millis(200 + seed.below(900)));
            let before = *committed.lock().expect("a number");
            (site.point(None), before)
        };
        let taken = (0..POINTS).map(take).collect();
        stop.store(true, Ordering::Relaxed);
        taken
    });
    load.kill().expect("the load ends");
    let _ = load.wait();

    let mut lasts = Vec::new();
    for (index, (point, before)) in taken.iter().enumerate() {
        let name = format!("copy-{index}");
        let mounted = mount(&site, point, &name, &["--writable"]);
        let folder = site.path().join(&name);
        let copy = FileSystem::open(&mounted.uris[0], &folder);
        open_up(&folder);
        // The server that runs has left its locks in the copy, as a power cut would.
        let data = copy.path().join("data");
        for lock in ["postmaster.pid", ".s.PGSQL.5432", ".s.PGSQL.5432.lock"] {
            std::fs::remove_file(data.join(lock)).expect("a lock of another life");
        }
        let recovered = Server::start(&data);
        let answer = recovered.ask("SELECT count(*), coalesce(max(n), 0) FROM seen");
        let (count, last) = answer.trim().split_once('|').expect("two numbers");
        let last: u64 = last.parse().expect("a number");
        assert_eq!(count, last.to_string(), "point {point}: there is a hole below {last}");
        assert!(last >= *before, "point {point}: {before} was committed before it, the last there is {last}");
        lasts.push(last);
        drop(recovered);
        drop(copy);
        unmount(&site, &mounted);
    }
    assert!(lasts.is_sorted() && lasts[0] < lasts[POINTS - 1], "the database was not written: {lasts:?}");
    println!("rows at the points: {lasts:?}");
    drop(server);
    drop(disk);
    site.finish(&[]);
}
