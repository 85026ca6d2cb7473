//! Whether compressing pays: the policy behind the level that parts are encoded with.
//!
//! Pure: it is told what the pipeline did and answers with a level. The encoder itself sends raw what
//! does not shrink; this is about the other question, whether the link takes bytes faster than the
//! CPU compresses them. Then compression is what slows the copy down, and raw is faster.
//!
//! How it knows. With `e` raw bytes/s that the workers can compress together, `s` the share that is
//! left after compression and `l` bytes/s that the link takes, zstd moves `min(e, l / s)` raw bytes/s
//! and raw moves `l`. `e` and `s` are measured on what is compressed (while raw, on one batch of
//! [`PROBE_EVERY`]). `l` is what was sent by the time in which the link was busy; while that is nearly
//! all the time, the link is what parts wait for. So: while compressing, parts that wait mostly for the
//! encoder, and a link that would move [`GAIN`] times as much raw, mean that raw is tried; while raw, a
//! busy link from which zstd would move [`GAIN`] times as much means that zstd comes back.
//!
//! Where neither is what parts wait for, compressing costs nothing that anybody misses, and bytes on the link are often paid for:
//! zstd comes back when for [`CALM_SPANS`] seconds there was less content than [`CALM_SHARE`] of what the workers compress. A
//! first synchronisation over a fast link would else leave it off for good. Sets come in bursts, so these are whole seconds.
//!
//! It does not flap: changes need [`WINDOWS_TO_CHANGE`] windows in a row that agree, and each time a
//! try of raw is taken back soon, the next try waits twice as long, up to [`HOLD_MAX`].

use std::time::Duration;

/// How often the pipeline's counters are handed in. A copy of some gigabytes is over in seconds.
pub const WINDOW: Duration = Duration::from_millis(200);
/// While sending raw, one batch of this many is compressed all the same, to keep the measure fresh.
/// At a quarter of the link's speed this costs about 6 % of one worker.
pub const PROBE_EVERY: u64 = 64;
/// The other mode must promise this many times the throughput before it is tried.
const GAIN: f64 = 1.25;
/// A link that is busy for this share of the time is what limits.
const BUSY_SHARE: f64 = 0.7;
/// Windows in a row that must agree before the mode changes.
const WINDOWS_TO_CHANGE: u32 = 3;
/// Less raw content says nothing about speed, bytes: windows are joined until they have as much...
const MEANINGFUL_BYTES: u64 = 1 << 20;
/// ...or are as long as this.
const JOINED_MAX: Duration = Duration::from_secs(5);
/// The encoder limits only at more than this share of what the workers compress together.
const SHORT_SHARE: f64 = 0.5;
/// Content at less than this share of what the workers compress together leaves them idle.
const CALM_SHARE: f64 = 0.25;
/// What is judged together for that: as long as sets mostly are apart.
const CALM_SPAN: Duration = Duration::from_secs(1);
/// Spans with little content, in a row, after which zstd comes back.
const CALM_SPANS: u32 = 3;
/// What is left by zstd must be less than this share for that: the encoder sends raw where it saves less.
const CALM_SHRUNK_TO: f64 = 15.0 / 16.0;
/// How long zstd is kept at least, after raw was given up: at first, and at most.
const HOLD_FIRST: Duration = Duration::from_secs(5);
/// See [`HOLD_FIRST`].
const HOLD_MAX: Duration = Duration::from_secs(320);
/// A try of raw that lasted for so long was right, whatever came after.
const TRY_CONFIRMED: Duration = Duration::from_secs(30);
/// Weight of a new sample in the moving averages.
const EWMA_WEIGHT: f64 = 0.3;

const _: () = assert!(CALM_SHARE < SHORT_SHARE, "what brings zstd back does not turn it off again");

/// What the parts of a connection are encoded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// zstd at its fastest level.
    Zstd,
    /// As it is, with probes.
    Raw,
}

/// One batch that was run through zstd.
#[derive(Debug, Clone, Copy)]
pub struct EncodeSample {
    /// Bytes before.
    pub raw_bytes: u64,
    /// Bytes after, whatever encoding each frame ended up with.
    pub wire_bytes: u64,
    /// Time one worker took.
    pub took: Duration,
}

/// What happened since the last window.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window {
    /// Length of the window.
    pub elapsed: Duration,
    /// Content handed to the connection, before encoding, bytes.
    pub raw_bytes: u64,
    /// The same after encoding, bytes.
    pub wire_bytes: u64,
    /// Time that parts spent waiting for the encoder, summed over parts.
    pub encode_wait: Duration,
    /// Time in which the link had at least one whole part to move.
    pub link_busy: Duration,
}

impl Window {
    fn join(&mut self, next: &Self) {
        self.elapsed += next.elapsed;
        self.raw_bytes += next.raw_bytes;
        self.wire_bytes += next.wire_bytes;
        self.encode_wait += next.encode_wait;
        self.link_busy += next.link_busy;
    }

    /// Content, bytes/s.
    fn rate(&self) -> f64 {
        as_f64(self.raw_bytes) / self.elapsed.as_secs_f64()
    }

    fn says_something(&self) -> bool {
        self.raw_bytes >= MEANINGFUL_BYTES
    }

    /// What the link takes, bytes/s; beyond all bounds where it was never busy.
    fn link_rate(&self) -> f64 {
        as_f64(self.wire_bytes) / self.link_busy.as_secs_f64().max(1e-6)
    }

    /// The stage that parts waited for: they must have waited for most of the window, or nothing limited at all.
    fn limit(&self) -> Option<Limit> {
        if !self.says_something() {
            None
        } else if self.link_busy >= self.elapsed.mul_f64(BUSY_SHARE) {
            Some(Limit::Link)
        } else if self.encode_wait * 2 >= self.elapsed {
            Some(Limit::Encoder)
        } else {
            None
        }
    }
}

enum Limit {
    Encoder,
    Link,
}

/// The policy of one connection.
#[derive(Debug)]
pub struct Policy {
    mode: Mode,
    workers: f64,
    /// Raw bytes/s that one worker compresses; `None` before the first sample.
    encode_rate: Option<f64>,
    /// Bytes after / bytes before.
    shrunk_to: f64,
    agreeing: u32,
    in_mode: Duration,
    hold: Duration,
    joined: Window,
    /// While raw: calm spans so far, and the one that lasts.
    calm: u32,
    span: Window,
}

impl Policy {
    /// A policy for a connection whose parts are encoded by `workers` threads. Starts with zstd.
    pub fn new(workers: usize) -> Self {
        assert!(workers > 0, "somebody must encode");
        Self {
            mode: Mode::Zstd,
            workers: f64::from(u32::try_from(workers).unwrap_or(u32::MAX)),
            encode_rate: None,
            shrunk_to: 1.0,
            agreeing: 0,
            in_mode: HOLD_FIRST,
            hold: HOLD_FIRST,
            joined: Window::default(),
            calm: 0,
            span: Window::default(),
        }
    }

    /// What to encode with now.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Learns from a batch that went through zstd.
    pub fn handle_sample(&mut self, sample: EncodeSample) {
        let seconds = sample.took.as_secs_f64();
        if sample.raw_bytes == 0 || seconds <= 0.0 {
            return;
        }
        let rate = as_f64(sample.raw_bytes) / seconds;
        let shrunk_to = as_f64(sample.wire_bytes) / as_f64(sample.raw_bytes);
        match &mut self.encode_rate {
            Some(mean) => {
                *mean += (rate - *mean) * EWMA_WEIGHT;
                self.shrunk_to += (shrunk_to - self.shrunk_to) * EWMA_WEIGHT;
            }
            none => {
                *none = Some(rate);
                self.shrunk_to = shrunk_to;
            }
        }
    }

    /// Judges a window; returns the new mode when it changes.
    pub fn handle_window(&mut self, window: Window) -> Option<Mode> {
        self.in_mode += window.elapsed;
        if self.joined.raw_bytes == 0 && window.raw_bytes > 0 {
            // A pause says nothing of the speed of what comes after it.
            self.joined = Window::default();
        }
        self.joined.join(&window);
        if self.has_calmed(&window) {
            // It says nothing against raw: when much comes again, raw may come at once.
            (self.mode, self.agreeing, self.calm, self.in_mode) = (Mode::Zstd, 0, 0, self.hold);
            return Some(self.mode);
        }
        if !self.joined.says_something() && self.joined.elapsed < JOINED_MAX {
            return None;
        }
        let window = std::mem::take(&mut self.joined);
        let change = match self.mode {
            Mode::Zstd => self.in_mode > self.hold && self.is_encoder_short(&window),
            Mode::Raw => self.zstd_would_gain(&window),
        };
        self.agreeing = if change { self.agreeing + 1 } else { 0 };
        if self.agreeing < WINDOWS_TO_CHANGE {
            return None;
        }
        (self.calm, self.agreeing) = (0, 0);
        self.mode = match self.mode {
            Mode::Zstd => Mode::Raw,
            Mode::Raw => {
                let confirmed = self.in_mode >= TRY_CONFIRMED;
                self.hold = if confirmed { HOLD_FIRST } else { (self.hold * 2).min(HOLD_MAX) };
                Mode::Zstd
            }
        };
        self.in_mode = Duration::ZERO;
        Some(self.mode)
    }

    /// Raw bytes/s that the workers compress together; `None` before the first sample.
    fn capacity(&self) -> Option<f64> {
        self.encode_rate.map(|rate| rate * self.workers)
    }

    /// Whether parts wait for the encoder since it has as much to do as it can, and the link would take more without it. On a
    /// machine that is busy with other things they wait for it at any rate, and would for whatever else uses a processor.
    fn is_encoder_short(&self, window: &Window) -> bool {
        let short_from = self.capacity().unwrap_or(0.0) * SHORT_SHARE;
        let is_short = matches!(window.limit(), Some(Limit::Encoder)) && window.rate() > short_from;
        is_short && window.link_rate() > window.rate() * GAIN
    }

    /// Whether content has been so little for a while that neither the workers nor the link miss what zstd costs.
    fn has_calmed(&mut self, window: &Window) -> bool {
        self.span.join(window);
        if self.span.elapsed < CALM_SPAN {
            return false;
        }
        let span = std::mem::take(&mut self.span);
        let Some(capacity) = self.capacity().filter(|_| self.mode == Mode::Raw) else { return false };
        let is_little = span.rate() < capacity * CALM_SHARE;
        let is_calm = is_little && !matches!(span.limit(), Some(Limit::Link)) && self.shrunk_to < CALM_SHRUNK_TO;
        self.calm = if is_calm { self.calm + 1 } else { 0 };
        self.calm >= CALM_SPANS
    }

    fn zstd_would_gain(&self, window: &Window) -> bool {
        let (Some(Limit::Link), Some(capacity)) = (window.limit(), self.capacity()) else {
            return false;
        };
        let with_zstd = capacity.min(window.link_rate() / self.shrunk_to.max(0.001));
        with_zstd > window.rate() * GAIN
    }
}

/// Exact up to 2^53, which is far more than a window moves.
#[allow(clippy::cast_precision_loss)]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A pipeline with a link of `link` bytes/s and workers that compress `encode` bytes/s each to `shrunk_to`.
    struct Pipeline {
        link: f64,
        encode: f64,
        shrunk_to: f64,
    }

    impl Pipeline {
        fn run_one_window(&self, policy: &mut Policy) -> Option<Mode> {
            let compressing = policy.mode() == Mode::Zstd;
            let share = if compressing { self.shrunk_to } else { 1.0 };
            let encode = if compressing { self.encode * policy.workers } else { 4e9 };
            let raw = encode.min(self.link / share);
            policy.handle_sample(EncodeSample {
                raw_bytes: MIB,
                wire_bytes: (self.shrunk_to * 1024.0 * 1024.0) as u64,
                took: Duration::from_secs_f64(1024.0 * 1024.0 / self.encode),
            });
            let encode_wait = if encode <= self.link / share { WINDOW * 4 } else { WINDOW / 5 };
            let (seconds, link_busy) = (WINDOW.as_secs_f64(), WINDOW.mul_f64(raw * share / self.link));
            policy.handle_window(Window {
                elapsed: WINDOW,
                raw_bytes: (raw * seconds) as u64,
                wire_bytes: (raw * share * seconds) as u64,
                encode_wait,
                link_busy,
            })
        }

        fn changes_in(&self, policy: &mut Policy, seconds: u32) -> Vec<Mode> {
            (0..seconds * 5).filter_map(|_| self.run_one_window(policy)).collect()
        }
    }

    #[test]
    fn a_link_slower_than_the_cpu_keeps_zstd() {
        let mut policy = Policy::new(2);
        let vpn = Pipeline { link: 12e6, encode: 280e6, shrunk_to: 0.5 };
        assert_eq!(vpn.changes_in(&mut policy, 600), []);
        assert_eq!(policy.mode(), Mode::Zstd);
    }

    #[test]
    fn a_link_faster_than_the_cpu_turns_zstd_off_and_leaves_it_off() {
        let mut policy = Policy::new(2);
        let lan = Pipeline { link: 1200e6, encode: 280e6, shrunk_to: 0.5 };
        assert_eq!(lan.changes_in(&mut policy, 1), [Mode::Raw]);
        assert_eq!(lan.changes_in(&mut policy, 600), []);
    }

    #[test]
    fn zstd_comes_back_when_the_link_becomes_slow() {
        let mut policy = Policy::new(2);
        let fast = Pipeline { link: 1200e6, encode: 280e6, shrunk_to: 0.5 };
        fast.changes_in(&mut policy, 60);
        assert_eq!(policy.mode(), Mode::Raw);
        let slow = Pipeline { link: 50e6, ..fast };
        assert_eq!(slow.changes_in(&mut policy, 20), [Mode::Zstd]);
    }

    #[test]
    fn zstd_comes_back_on_a_link_of_a_few_megabits() {
        let mut policy = Policy::new(2);
        let fast = Pipeline { link: 1200e6, encode: 280e6, shrunk_to: 0.5 };
        fast.changes_in(&mut policy, 60);
        let slow = Pipeline { link: 0.5e6, ..fast };
        assert_eq!(slow.changes_in(&mut policy, 20), [Mode::Zstd]);
    }

    /// A window in which nothing limited.
    fn trickle(bytes: u64) -> Window {
        let wait = WINDOW / 20;
        Window { elapsed: WINDOW, raw_bytes: bytes, wire_bytes: bytes, encode_wait: wait, link_busy: wait }
    }

    #[test]
    fn zstd_comes_back_when_little_is_written_though_the_link_is_fast_and_goes_at_once_when_much_is() {
        let mut policy = Policy::new(2);
        let lan = Pipeline { link: 1200e6, encode: 280e6, shrunk_to: 0.5 };
        lan.changes_in(&mut policy, 60);
        // A set each second, at the speed of the link.
        let windows = (0..30).map(|window| trickle(if window % 5 == 0 { 40 * MIB } else { 0 }));
        let changes: Vec<_> = windows.map(|window| policy.handle_window(window)).collect();
        assert_eq!(changes.iter().flatten().collect::<Vec<_>>(), [&Mode::Zstd]);
        assert!(changes.iter().position(Option::is_some) < Some(20), "within four seconds");
        assert_eq!(lan.changes_in(&mut policy, 1), [Mode::Raw]);
    }

    #[test]
    fn zstd_stays_away_where_it_would_take_too_much_or_leaves_too_much() {
        for (shrunk_to, bytes) in [(0.5, 40 * MIB), (0.99, 4 * MIB)] {
            let mut policy = Policy::new(2);
            let fast = Pipeline { link: 1200e6, encode: 280e6, shrunk_to };
            fast.changes_in(&mut policy, 60);
            assert!((0..3000).all(|_| policy.handle_window(trickle(bytes)).is_none()), "{shrunk_to} {bytes}");
        }
    }

    #[test]
    fn waiting_for_an_encoder_that_has_little_to_do_does_not_turn_zstd_off() {
        let mut policy = Policy::new(2);
        let slow = Pipeline { link: 12e6, encode: 80e6, shrunk_to: 0.2 };
        slow.changes_in(&mut policy, 30);
        let waits = |raw_bytes| Window { encode_wait: WINDOW * 2, ..trickle(raw_bytes) };
        assert!((0..500).all(|_| policy.handle_window(waits(2 * MIB)).is_none()));
        let changes = (0..10).filter_map(|_| policy.handle_window(waits(30 * MIB)));
        assert_eq!(changes.collect::<Vec<_>>(), [Mode::Raw]);
    }

    #[test]
    fn data_that_does_not_shrink_never_brings_zstd_back() {
        let mut policy = Policy::new(2);
        let fast = Pipeline { link: 1200e6, encode: 280e6, shrunk_to: 0.99 };
        fast.changes_in(&mut policy, 60);
        let slow = Pipeline { link: 50e6, ..fast };
        assert_eq!(slow.changes_in(&mut policy, 600), []);
        assert_eq!(policy.mode(), Mode::Raw);
    }

    #[test]
    fn a_pipeline_on_the_edge_does_not_flap() {
        // Compressing, the encoder limits (560 < 500 / 0.4); raw, the link does, and zstd would gain little.
        let mut policy = Policy::new(2);
        let edge = Pipeline { link: 500e6, encode: 280e6, shrunk_to: 0.4 };
        assert!(edge.changes_in(&mut policy, 3600).len() <= 1);
    }

    #[test]
    fn a_link_of_1_gbit_keeps_zstd_although_the_encoder_is_what_parts_wait_for() {
        let mut policy = Policy::new(2);
        let lan = Pipeline { link: 113e6, encode: 90e6, shrunk_to: 0.5 };
        assert_eq!(lan.changes_in(&mut policy, 600), []);
        // It is not busy all the time: what waits for the encoder can't wait for the link.
        policy.mode = Mode::Raw;
        assert_eq!(lan.changes_in(&mut policy, 600), [Mode::Zstd]);
    }

    #[test]
    fn tries_of_raw_that_fail_become_rare() {
        // Raw always looks worse after the change: what looked like a fast link was one with a deep queue.
        let mut policy = Policy::new(2);
        let edge = Pipeline { link: 180e6, encode: 280e6, shrunk_to: 0.3 };
        let mut changes = Vec::new();
        for _ in 0..3600 * 5 {
            let seemingly = if policy.mode() == Mode::Zstd { 1200e6 } else { edge.link };
            changes.extend(Pipeline { link: seemingly, ..edge }.run_one_window(&mut policy));
        }
        // Seven while the hold doubles, then one in each longest hold; each is taken back.
        let tries = 7 + 3600 / HOLD_MAX.as_secs() as usize;
        assert!((2..=2 * tries).contains(&changes.len()), "{} changes in an hour", changes.len());
        assert_eq!(changes.iter().filter(|mode| **mode == Mode::Raw).count(), changes.len().div_ceil(2));
    }

    #[test]
    fn idle_and_mixed_windows_change_nothing() {
        let mut policy = Policy::new(1);
        for _ in 0..100 {
            assert_eq!(policy.handle_window(Window { elapsed: WINDOW, ..Window::default() }), None);
            let (raw_bytes, wire_bytes) = (100 * MIB, 50 * MIB);
            let mixed = Window { elapsed: WINDOW, raw_bytes, wire_bytes, encode_wait: WINDOW, link_busy: WINDOW / 2 };
            assert_eq!(policy.handle_window(mixed), None);
        }
    }

    #[test]
    fn samples_without_content_or_time_are_ignored() {
        let mut policy = Policy::new(1);
        policy.handle_sample(EncodeSample { raw_bytes: 0, wire_bytes: 0, took: Duration::from_secs(1) });
        policy.handle_sample(EncodeSample { raw_bytes: 1, wire_bytes: 1, took: Duration::ZERO });
        assert_eq!(policy.encode_rate, None);
    }
}
