//! Decides how many bytes may be on their way. Pure: it is told what was sent, arrived and lost, and when.
//!
//! It begins by doubling, until the rate grows no more or a queue builds up. Then it keeps the window at what the link
//! holds by itself (the highest rate of the last rounds, times the shortest round trip) and [`QUEUE`] beyond. With room in
//! the link that is more than it delivers now, so the window grows until there is a queue of that length and no longer one.
//!
//! The shortest round trip has to be looked for again: routes change, and a processor that is short delays everything.
//! Every [`BASE_AGE_MAX`], and when round trips are longer than its own queue explains, the window is halved for a round,
//! and the round trip that is left is the new one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::round::{Round, Seen};

/// The queue that is aimed at. Long enough to keep 1 Gbit/s busy while a thread waits for its turn, short enough for
/// heartbeats and answers behind it.
const QUEUE: Duration = Duration::from_millis(10);
/// On a long way the queue may be a quarter of it: what is lost and sent again needs the time of the way.
const QUEUE_SHARE: u32 = 4;
/// Bytes that every connection keeps in the queue besides. It makes connections that share a link equal with time: it
/// weighs more with those that have less.
const EQUALISER_BYTES: u64 = 48 << 10;
/// Rounds whose rates are remembered.
const RATES_KEPT: usize = 10;
/// The shortest round trip is looked for again after this long.
const BASE_AGE_MAX: Duration = Duration::from_secs(10);
/// It is looked for at most this often.
const DRAIN_EVERY_MIN: Duration = Duration::from_secs(1);
/// While beginning, a rate that does not grow by this factor has not grown.
const GROWTH: f64 = 1.25;
/// Rounds without growth that end the beginning.
const FLAT_ROUNDS_MAX: u32 = 3;
/// The most that the window gives way at once when the link is overfull.
const BACK_OFF_MAX: f64 = 0.3;
/// After that the window grows by one part in so many a round.
const REGROWTH: u64 = 64;
/// Packets that may always be on their way.
const PACKETS_MIN: u64 = 8;
/// Packets that may be on their way at first, as in use on the web for a decade (RFC 6928), three times over.
const PACKETS_FIRST: u64 = 32;
/// No link that is worth it holds more: 10 Gbit/s times 200 ms.
const WINDOW_BYTES_MAX: u64 = 256 << 20;

/// What it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Doubling.
    Begin,
    /// Following the link.
    Follow,
    /// The window is halved until a whole round was sent with it.
    Drain { since: Instant },
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(super) struct Pilot {
    packet_bytes: u64,
    window: u64,
    stage: Stage,
    round: Round,
    rates: VecDeque<f64>,
    /// The shortest round trip, and when it was last seen.
    base: Option<(Duration, Instant)>,
    drained: Instant,
    /// The highest rate while beginning, and rounds since it grew.
    growth: (f64, u32),
    /// The window that the link could not take, growing back.
    ceiling: Option<u64>,
    /// The window gave way in the last round: what is lost in this one was sent before.
    has_given_way: bool,
}

impl Pilot {
    pub(super) fn new(now: Instant, packet_bytes: u16) -> Self {
        let packet_bytes = u64::from(packet_bytes);
        Self {
            packet_bytes,
            window: PACKETS_FIRST * packet_bytes,
            stage: Stage::Begin,
            round: Round::new(now),
            rates: VecDeque::with_capacity(RATES_KEPT),
            base: None,
            drained: now,
            growth: (0.0, 0),
            ceiling: None,
            has_given_way: false,
        }
    }

    /// Bytes that may be on their way.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    pub(super) fn window_first(&self) -> u64 {
        PACKETS_FIRST * self.packet_bytes
    }

    pub(super) fn set_packet_bytes(&mut self, bytes: u16) {
        self.packet_bytes = u64::from(bytes);
        self.set_window(self.window);
    }

    /// A packet of `bytes`, sent at `sent`, has arrived.
    pub(super) fn acked(&mut self, now: Instant, sent: Instant, bytes: u64, is_idle: bool) {
        self.round.acked(now, sent, bytes);
        if self.stage == Stage::Begin && !is_idle {
            self.set_window(self.window + bytes);
        }
    }

    /// All that one acknowledgement says was told. `is_idle` says that there was nothing to send before it came.
    pub(super) fn acks_ended(&mut self, now: Instant, is_idle: bool) {
        if is_idle {
            self.round.idle();
        }
        if let Some(seen) = self.round.end(now, self.packet_bytes) {
            self.round_ended(now, seen);
            self.round = Round::new(now);
        }
    }

    /// Bytes are lost; none where a router marked packets.
    pub(super) fn lost(&mut self, bytes: u64) {
        if bytes == 0 { self.round.marked() } else { self.round.lost(bytes) }
    }

    /// Nothing at all arrived for several time-outs: the link is another one when it comes back.
    pub(super) fn silent(&mut self, now: Instant) {
        let packet_bytes = self.packet_bytes;
        *self = Self { packet_bytes, window: PACKETS_MIN * packet_bytes, ..Self::new(now, 0) };
    }

    fn round_ended(&mut self, now: Instant, seen: Seen) {
        self.note_rate(seen);
        let base = self.note_round_trip(now, seen);
        if let Some(too_much) = seen.overfull
            && !matches!(self.stage, Stage::Drain { .. })
            && !std::mem::replace(&mut self.has_given_way, true)
        {
            self.back_off(too_much);
            return;
        }
        self.has_given_way = false;
        if let Some(ceiling) = self.ceiling.as_mut() {
            *ceiling += (*ceiling / REGROWTH).max(self.packet_bytes);
        }
        match self.stage {
            Stage::Begin => self.begin(seen, base),
            Stage::Follow => self.follow(now, seen, base),
            Stage::Drain { since } => {
                // What this round measured may have been sent before the window shrank.
                if now.saturating_duration_since(since) > seen.rtt * 2 {
                    self.base = Some((seen.rtt, seen_at(now, seen.rtt, base)));
                    self.drained = now;
                    self.stage = Stage::Follow;
                    self.set_window(self.aim(seen.rtt));
                }
            }
        }
    }

    fn note_rate(&mut self, seen: Seen) {
        let best = self.rate();
        if seen.is_idle && seen.rate < best {
            return;
        }
        if self.rates.len() == RATES_KEPT {
            self.rates.pop_front();
        }
        self.rates.push_back(seen.rate);
    }

    fn note_round_trip(&mut self, now: Instant, seen: Seen) -> Duration {
        match &mut self.base {
            Some((base, at)) if seen.rtt <= *base + *base / 16 => {
                *at = seen_at(now, seen.rtt, *base);
                *base = seen.rtt.min(*base);
                *base
            }
            Some((base, _)) => *base,
            none => none.insert((seen.rtt, now)).0,
        }
    }

    fn begin(&mut self, seen: Seen, base: Duration) {
        let (highest, flat) = self.growth;
        if seen.rate >= highest * GROWTH {
            self.growth = (seen.rate, 0);
        } else if !seen.is_idle {
            self.growth.1 = flat + 1;
        }
        if self.growth.1 >= FLAT_ROUNDS_MAX || seen.rtt > base + queue(base) {
            self.stage = Stage::Follow;
            self.set_window(self.aim(base));
        }
    }

    fn follow(&mut self, now: Instant, seen: Seen, base: Duration) {
        let since = |at: Instant| now.saturating_duration_since(at);
        let own = Duration::from_secs_f64(EQUALISER_BYTES as f64 / self.rate().max(1.0));
        let is_unexplained = seen.rtt > base + queue(base) * 5 / 4 + own;
        let is_old = self.base.is_some_and(|(_, at)| since(at) > BASE_AGE_MAX);
        if (is_unexplained || is_old) && since(self.drained) > DRAIN_EVERY_MIN {
            self.stage = Stage::Drain { since: now };
            self.set_window(self.window / 2);
            return;
        }
        let aim = self.aim(base);
        if aim > self.window && !seen.is_idle {
            self.set_window(aim.min(self.window * 2));
        } else if aim < self.window && !seen.is_idle {
            // Halfway: a single bad round is not taken at its word.
            self.set_window(self.window - (self.window - aim) / 2);
        }
    }

    fn back_off(&mut self, too_much: f64) {
        let lower = (self.window as f64 * (1.0 - too_much.min(BACK_OFF_MAX))) as u64;
        self.ceiling = Some(lower.max(PACKETS_MIN * self.packet_bytes));
        self.stage = Stage::Follow;
        self.set_window(lower);
    }

    /// The window that fills the link and the queue.
    fn aim(&self, base: Duration) -> u64 {
        let time = base + queue(base);
        (self.rate() * time.as_secs_f64()) as u64 + EQUALISER_BYTES
    }

    fn rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    fn set_window(&mut self, bytes: u64) {
        let limit = self.ceiling.unwrap_or(WINDOW_BYTES_MAX).min(WINDOW_BYTES_MAX);
        self.window = bytes.min(limit).max(PACKETS_MIN * self.packet_bytes);
        if self.ceiling.is_some_and(|ceiling| ceiling > 2 * self.window) {
            // What the link could not take once is far away: it no longer matters.
            self.ceiling = None;
        }
    }
}

/// When a round trip counts as seen that may replace `base`. One that is much shorter may hide a still shorter one behind
/// the queue that the way had when it was long: it is taken for old, and looked for again soon.
fn seen_at(now: Instant, rtt: Duration, base: Duration) -> Instant {
    if rtt < base * 7 / 8 { now.checked_sub(BASE_AGE_MAX + DRAIN_EVERY_MIN).unwrap_or(now) } else { now }
}

fn queue(base: Duration) -> Duration {
    QUEUE.max(base / QUEUE_SHARE)
}
