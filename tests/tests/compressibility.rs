//! Points show how compressible what they changed is, and mark where that drops: the hint at ransomware (F1).

use serde_json::Value;
use tests::nbd::Connection;
use tests::random::Random;
use tests::site::{GROUP, Site};

const MIB: u64 = 1 << 20;
/// Written for each point: more than what is needed to judge one, also where the interval cuts it in two.
const ROUND_BYTES: u64 = 3 * MIB;
/// Points of usual load: more than what a history needs.
const ROUNDS: u64 = 20;

/// Text-like content: a few words in an order that does not repeat.
fn text(random: &mut Random, len: usize) -> Vec<u8> {
    const WORDS: [&str; 8] = ["retention ", "volume ", "of ", "a ", "group ", "keeps ", "points ", "\n"];
    let mut text = Vec::with_capacity(len + 16);
    while text.len() < len {
        text.extend(WORDS[random.below(8) as usize].bytes());
    }
    text.truncate(len);
    text
}

/// Writes content in pieces of 64 KiB over the disk, then takes a point.
fn round(site: &Site, client: &mut Connection, random: &mut Random, content: fn(&mut Random, usize) -> Vec<u8>) {
    for _ in 0..ROUND_BYTES / (64 << 10) {
        let piece = content(random, 64 << 10);
        let at = random.below(client.size() / (64 << 10)) * (64 << 10);
        assert_eq!(client.write(at, &piece).expect("an answer"), 0);
    }
    site.point(None);
}

fn points(site: &Site) -> Vec<Value> {
    let points = site.target.ask(&["points", "--group", GROUP, "--json"]).ok().json();
    points.as_array().expect("a list").clone()
}

fn set_of(point: &Value) -> u64 {
    point["set"].as_u64().expect("a number")
}

#[test]
fn points_of_encrypted_content_are_marked_and_those_of_a_steady_load_are_not() {
    let mut site = Site::new(&[64 * MIB]);
    site.start();
    let mut random = Random::new(4711);
    let mut client = Connection::open(&site.disks[0].nbd, &site.export(0)).expect("a client");
    for _ in 0..ROUNDS {
        round(&site, &mut client, &mut random, text);
    }
    let steady = points(&site);
    let last_steady = set_of(steady.last().expect("a point"));
    let measured: Vec<&Value> = steady.iter().filter(|point| point["compressibility"].is_number()).collect();
    assert!(measured.len() as u64 >= ROUNDS, "{steady:?}");
    for point in &measured {
        assert!(point["compressibility"].as_f64().is_some_and(|share| (0.5..1.0).contains(&share)), "{point}");
    }
    let churn = steady.iter().filter_map(|point| point["churn_bytes_per_second"].as_f64()).fold(0.0, f64::max);
    assert!(churn > 100_000.0, "megabytes in some seconds at most: {steady:?}");
    assert!(steady.iter().all(|point| point["compressibility_drop"] == false), "{steady:?}");

    for _ in 0..3 {
        round(&site, &mut client, &mut random, Random::noise);
    }
    let is_marked = |points: &[Value]| {
        let marked = points.iter().filter(|point| point["compressibility_drop"] == true);
        let sets: Vec<u64> = marked.map(set_of).collect();
        assert!(sets.len() >= 3 && sets.iter().all(|set| *set > last_steady), "{sets:?} of {points:?}");
    };
    is_marked(&points(&site));
    let table = site.target.ask(&["points", "--group", GROUP]).ok();
    assert!(table.stdout.contains("compresses far worse than before"), "{}", table.stdout);
    // What is needed for it is kept.
    site.target.kill();
    site.start_target();
    site.wait_protected();
    is_marked(&points(&site));
    site.finish(&[]);
}
