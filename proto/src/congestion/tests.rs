//! The pilot on a simulated link: a queue before a bottleneck, random loss, round trips that change, others beside it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::pilot::Pilot;

const PACKET: u64 = 1452;
const STEP: Duration = Duration::from_micros(100);

struct Packet {
    number: u64,
    sent: Instant,
}

/// One connection that always has something to send.
struct Flow {
    pilot: Pilot,
    begins: Duration,
    next: u64,
    under_way: VecDeque<Packet>,
    in_flight: u64,
    tokens: f64,
    smoothed: f64,
    delivered: u64,
}

struct Link {
    bytes_per_second: f64,
    queue_max: Duration,
    /// There and back, without the queue.
    way: Duration,
    lost_ppm: u64,
    /// What is in the queue, bytes.
    queued: f64,
    /// Packets that will have come back, with the moment.
    back: VecDeque<(Instant, usize, u64)>,
    random: u64,
    longest_queue: Duration,
}

impl Link {
    fn new(mbit: f64, way_ms: f64, queue_ms: f64, lost_ppm: u64) -> Self {
        Self {
            bytes_per_second: mbit * 125_000.0,
            queue_max: Duration::from_secs_f64(queue_ms / 1e3),
            way: Duration::from_secs_f64(way_ms / 1e3),
            lost_ppm,
            queued: 0.0,
            back: VecDeque::new(),
            random: 0x9e37_79b9_7f4a_7c15,
            longest_queue: Duration::ZERO,
        }
    }

    fn is_lost(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1_000_000 < self.lost_ppm
    }

    fn wait(&self) -> Duration {
        Duration::from_secs_f64(self.queued / self.bytes_per_second)
    }

    fn take(&mut self, now: Instant, flow: usize, number: u64) {
        if self.wait() > self.queue_max || self.is_lost() {
            return;
        }
        self.queued += PACKET as f64;
        self.longest_queue = self.longest_queue.max(self.wait());
        self.back.push_back((now + self.wait() + self.way, flow, number));
    }
}

impl Flow {
    fn new(now: Instant, begins: Duration) -> Self {
        Self {
            pilot: Pilot::new(now, PACKET as u16),
            begins,
            next: 0,
            under_way: VecDeque::new(),
            in_flight: 0,
            tokens: 0.0,
            smoothed: 0.1,
            delivered: 0,
        }
    }

    /// What quinn's window and pacer let out in a step.
    fn send(&mut self, now: Instant, link: &mut Link, index: usize) {
        let rate = 1.25 * self.pilot.window() as f64 / self.smoothed;
        let most = (rate * 0.002).clamp(10.0 * PACKET as f64, 256.0 * PACKET as f64);
        self.tokens = (self.tokens + rate * STEP.as_secs_f64()).min(most);
        while self.tokens >= PACKET as f64 && self.in_flight + PACKET < self.pilot.window() {
            self.tokens -= PACKET as f64;
            self.in_flight += PACKET;
            link.take(now, index, self.next);
            self.under_way.push_back(Packet { number: self.next, sent: now });
            self.next += 1;
        }
    }

    fn arrived(&mut self, now: Instant, number: u64) {
        let Ok(at) = self.under_way.binary_search_by_key(&number, |packet| packet.number) else { return };
        let packet = self.under_way.remove(at).expect("it was found");
        self.in_flight -= PACKET;
        self.delivered += PACKET;
        self.smoothed += (now.duration_since(packet.sent).as_secs_f64() - self.smoothed) / 8.0;
        self.pilot.acked(now, packet.sent, PACKET, false);
        self.pilot.acks_ended(now, false);
        let mut lost = 0;
        while self.under_way.front().is_some_and(|packet| packet.number + 3 <= number) {
            self.under_way.pop_front();
            lost += PACKET;
        }
        self.in_flight -= lost;
        if lost > 0 {
            self.pilot.lost(lost);
        }
    }

    /// Everything on its way was swallowed: a time-out, as quinn would report it.
    fn time_out(&mut self, now: Instant) {
        let oldest = self.under_way.front().map(|packet| packet.sent);
        if oldest.is_some_and(|sent| now.duration_since(sent) > Duration::from_secs_f64(self.smoothed * 4.0 + 0.2)) {
            self.under_way.clear();
            self.in_flight = 0;
            self.pilot.silent(now);
        }
    }
}

/// Lets flows run for some time; the part of the link that each used in it.
fn run(link: &mut Link, flows: &mut [Flow], start: Instant, from: Duration, to: Duration) -> Vec<f64> {
    let before: Vec<u64> = flows.iter().map(|flow| flow.delivered).collect();
    link.longest_queue = Duration::ZERO;
    let mut at = from;
    while at < to {
        let now = start + at;
        while let Some(&(due, flow, number)) = link.back.front()
            && due <= now
        {
            link.back.pop_front();
            flows[flow].arrived(now, number);
        }
        for (index, flow) in flows.iter_mut().enumerate().filter(|(_, flow)| at >= flow.begins) {
            flow.time_out(now);
            flow.send(now, link, index);
        }
        link.queued = (link.queued - link.bytes_per_second * STEP.as_secs_f64()).max(0.0);
        at += STEP;
    }
    let most = link.bytes_per_second * (to - from).as_secs_f64();
    flows.iter().zip(before).map(|(flow, before)| (flow.delivered - before) as f64 / most).collect()
}

#[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
fn start() -> Instant {
    Instant::now()
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One connection that has a link for itself.
struct Alone {
    link: Link,
    flows: [Flow; 1],
    start: Instant,
    at: Duration,
}

impl Alone {
    fn on(link: Link) -> Self {
        let start = start();
        Self { link, flows: [Flow::new(start, Duration::ZERO)], start, at: Duration::ZERO }
    }

    /// Goes on for some time; the part of the link that was used in it.
    fn run(&mut self, length: Duration) -> f64 {
        let from = self.at;
        self.at += length;
        run(&mut self.link, &mut self.flows, self.start, from, self.at)[0]
    }

    fn window(&self) -> u64 {
        self.flows[0].pilot.window()
    }
}

#[test]
fn a_long_way_with_losses_is_filled() {
    // Of the rate without loss, from the first packet on.
    for (lost_ppm, least) in [(0, 0.93), (1000, 0.92), (10_000, 0.90)] {
        let used = Alone::on(Link::new(100.0, 40.0, 50.0, lost_ppm)).run(seconds(20));
        assert!(used > least, "{used:.3} of the link at {lost_ppm} ppm");
    }
}

#[test]
fn short_links_are_filled_at_any_rate() {
    for (mbit, way_ms) in [(100.0, 0.1), (1000.0, 0.1), (1000.0, 5.0), (20.0, 120.0)] {
        let used = Alone::on(Link::new(mbit, way_ms, 50.0, 0)).run(seconds(20));
        assert!(used > 0.93, "{used:.3} of {mbit} Mbit/s, {way_ms} ms");
    }
}

#[test]
fn what_else_is_on_the_link_waits_behind_a_short_queue_only() {
    for (mbit, way_ms) in [(100.0, 40.0), (100.0, 0.1), (1000.0, 1.0)] {
        let mut alone = Alone::on(Link::new(mbit, way_ms, 1000.0, 0));
        alone.run(seconds(2));
        let used = alone.run(seconds(28));
        let longest = alone.link.longest_queue;
        assert!(longest < Duration::from_millis(35), "{longest:?} behind {mbit} Mbit/s, {way_ms} ms");
        assert!(used > 0.95, "{used:.3}");
    }
}

#[test]
fn a_router_with_little_memory_is_not_flooded() {
    let mut alone = Alone::on(Link::new(100.0, 40.0, 3.0, 0));
    alone.run(seconds(5));
    let sent = alone.flows[0].next;
    let used = alone.run(seconds(30));
    let sent = ((alone.flows[0].next - sent) * PACKET) as f64 / (alone.link.bytes_per_second * 30.0);
    assert!(used > 0.8, "{used:.3} of the link");
    assert!(sent - used < 0.04, "{:.3} of the link was lost", sent - used);
}

#[test]
fn a_link_that_loses_more_than_it_should_is_still_used() {
    let used = Alone::on(Link::new(100.0, 20.0, 50.0, 25_000)).run(seconds(20));
    assert!(used > 0.5, "{used:.3} of the link");
}

#[test]
fn a_mark_of_a_router_counts_like_losses() {
    let mut alone = Alone::on(Link::new(100.0, 20.0, 100.0, 0));
    alone.run(seconds(3));
    let before = alone.window();
    alone.flows[0].pilot.lost(0);
    alone.run(Duration::from_millis(60));
    let after = alone.window();
    assert!(after < before * 95 / 100, "{before} and then {after}");
}

#[test]
fn a_way_that_becomes_longer_or_shorter_is_followed() {
    let mut alone = Alone::on(Link::new(100.0, 10.0, 50.0, 0));
    alone.run(seconds(5));
    alone.link.way = Duration::from_millis(90);
    alone.run(seconds(5));
    let used = alone.run(seconds(15));
    assert!(used > 0.9, "{used:.3} of the longer way");
    alone.link.way = Duration::from_millis(10);
    alone.run(seconds(6));
    let used = alone.run(seconds(14));
    assert!(used > 0.9, "{used:.3} of the shorter way");
    let longest = alone.link.longest_queue;
    assert!(longest < Duration::from_millis(35), "{longest:?}");
}

#[test]
fn a_delay_that_is_no_queue_of_its_own_does_not_starve_it() {
    // Threads that wait for a processor answer late, however little is on its way.
    let mut alone = Alone::on(Link::new(1000.0, 0.1, 50.0, 0));
    alone.run(seconds(2));
    alone.link.way = Duration::from_millis(30);
    alone.run(seconds(4));
    let used = alone.run(seconds(10));
    assert!(used > 0.85, "{used:.3} of the link");
}

#[test]
fn two_share_a_link_and_the_later_one_gets_its_part() {
    let mut link = Link::new(100.0, 20.0, 100.0, 100);
    let start = start();
    let mut flows = [Flow::new(start, Duration::ZERO), Flow::new(start, seconds(5))];
    run(&mut link, &mut flows, start, Duration::ZERO, seconds(30));
    let used = run(&mut link, &mut flows, start, seconds(30), seconds(60));
    assert!(used.iter().sum::<f64>() > 0.93, "{used:?}");
    assert!(used.iter().all(|used| *used > 0.3), "{used:?}");
}

#[test]
fn after_a_silence_it_begins_anew() {
    let mut alone = Alone::on(Link::new(100.0, 20.0, 50.0, 0));
    alone.run(seconds(5));
    alone.link.lost_ppm = 1_000_000;
    alone.run(seconds(3));
    assert_eq!(alone.window(), 8 * PACKET, "a dead link gets a handful of packets");
    alone.link.lost_ppm = 0;
    alone.run(seconds(2));
    let used = alone.run(seconds(10));
    assert!(used > 0.93, "{used:.3}");
}
