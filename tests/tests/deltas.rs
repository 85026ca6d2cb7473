//! Pages of which a few bytes change, as a database writes them: only these cross the link, every point is what the guest
//! wrote, and where the target's disk has rotted below a change this is noticed and everything comes whole.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tests::nbd::Connection;
use tests::random::Random;
use tests::site::Site;
use tests::verdict::assert_targets_equal_sources;

const MIB: u64 = 1 << 20;
const PAGE: usize = 8192;
/// Where the pages lie, and how many bytes they are.
const PAGES: (u64, usize) = (4 * MIB, 4 << 20);

fn write_pages(client: &mut Connection, pages: &[u8]) {
    for (index, page) in pages.chunks_exact(PAGE).enumerate() {
        let at = PAGES.0 + (index * PAGE) as u64;
        assert_eq!(client.write(at, page).expect("an answer"), 0);
    }
}

fn sent(site: &Site) -> u64 {
    site.source.status()["link"]["sent_bytes"].as_u64().expect("a number")
}

/// A site whose source has written the pages twice: from then on it knows what the target has of them.
fn site_with_known_pages() -> (Site, Connection, Vec<u8>) {
    let mut site = Site::new(&[16 * MIB]);
    site.start();
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    let mut pages = Random::new(7).noise(PAGES.1);
    for _ in 0..2 {
        write_pages(&mut client, &pages);
        let _ = site.point(None);
        pages[0] ^= 1;
    }
    (site, client, pages)
}

/// Changes a few bytes of each page.
fn touch(pages: &mut [u8], round: u8) {
    for page in pages.chunks_exact_mut(PAGE) {
        let at = 100 + 40 * usize::from(round);
        page[at..at + 16].fill(round);
    }
}

#[test]
fn of_pages_that_change_a_little_only_the_changes_cross_the_link() {
    let (mut site, mut client, mut pages) = site_with_known_pages();
    let before = sent(&site);
    let rounds = 4;
    for round in 0..rounds {
        touch(&mut pages, round);
        write_pages(&mut client, &pages);
        let _ = site.point(None);
    }
    let crossed = sent(&site) - before;
    let written = PAGES.1 as u64 * u64::from(rounds);
    println!("{written} bytes of pages written, {crossed} bytes crossed the link");
    assert!(crossed * 10 < written, "{crossed} of {written} bytes");
    assert_targets_equal_sources(&site);
    // The journal needs nothing but itself: it is read anew.
    site.target.kill();
    site.target.start();
    let _ = site.point(None);
    assert_targets_equal_sources(&site);
}

/// Pages as a database has them: most of each shrinks.
fn rows(bytes: usize) -> Vec<u8> {
    let noise = Random::new(11).noise(bytes / 8);
    noise.into_iter().flat_map(|byte| [byte, b'r', b'o', b'w', 0, 0, 0, 1]).collect()
}

#[test]
fn pages_that_only_the_first_synchronisation_sent_cross_as_what_changes_in_them() {
    let mut site = Site::new(&[64 * MIB]);
    // With as much memory as the disk is large, the first synchronisation goes in rounds and not as one set.
    let interval = "point_interval = \"1s\"\n";
    site.source_config = site.source_config.replacen(interval, &format!("{interval}memory = \"64 MiB\"\n"), 1);
    site.cap("200 Mbit/s");
    let mut pages = rows(PAGES.1);
    let source = File::options().write(true).open(&site.disks[0].source).expect("the disk");
    source.write_all_at(&pages, PAGES.0).expect("written");
    site.start();
    assert!(site.source.log().contains("a round of the catching-up has ended"), "it went in rounds");
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    touch(&mut pages, 0);
    let before = sent(&site);
    write_pages(&mut client, &pages);
    let _ = site.point(None);
    let crossed = sent(&site) - before;
    println!("{} bytes of pages written, {crossed} bytes crossed the link", PAGES.1);
    // Compressed whole, they are a sixth at best: one byte of eight is noise.
    assert!(crossed * 20 < PAGES.1 as u64, "{crossed} of {} bytes", PAGES.1);
    assert_targets_equal_sources(&site);
}

#[test]
fn rot_below_a_change_is_noticed_and_content_comes_whole_from_then_on() {
    let (site, mut client, mut pages) = site_with_known_pages();
    let rotten = PAGES.0 + 20 * PAGE as u64 + 5000;
    site.wait_applied();
    site.rot(0, rotten);
    touch(&mut pages, 9);
    write_pages(&mut client, &pages);
    let _ = site.point(None);
    assert!(site.target.log().contains("do not hold what was acknowledged"), "the rot is noticed");
    let alarms = site.target.alarms(&["do not hold what was acknowledged", "a part was refused"]);
    assert_eq!(alarms, Vec::<String>::new());
    // The page was written whole: what had rotted is mended by it.
    assert_targets_equal_sources(&site);
}
