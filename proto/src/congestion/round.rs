//! One round: from a moment until something that was sent after it is acknowledged, and what arrived meanwhile.
//!
//! Rounds are counted by the times of sending, not by packet numbers: each space of QUIC numbers its own packets.

use std::time::{Duration, Instant};

/// The shortest round. On a link of 50 us a round would be a handful of packets, and its rate that of the scheduler.
const ROUND_MIN: Duration = Duration::from_millis(5);
/// Packets of a round that may be lost without meaning anything, whatever their share.
const LOST_PACKETS_MIN: u64 = 8;
/// Share of a round that may be lost, one part in so many. Radio and long lines lose up to 1 %, policers more.
const LOST_SHARE: u64 = 50;

/// What is too much where a router marks packets: it does so before anything is lost, and does not say how much.
const MARKED_SHARE: f64 = 0.15;

/// The round that is under way.
#[derive(Debug, Clone)]
pub(super) struct Round {
    start: Instant,
    delivered: u64,
    lost: u64,
    /// The shortest round trip of a packet that was acknowledged in it.
    rtt_min: Option<Duration>,
    /// Something sent since its start was acknowledged.
    has_come_round: bool,
    /// There was nothing to send at times: it says nothing of what the link takes.
    is_idle: bool,
    is_marked: bool,
}

/// What a round has shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// Bytes a second that arrived.
    pub(super) rate: f64,
    /// Its shortest round trip.
    pub(super) rtt: Duration,
    /// The link could have taken more.
    pub(super) is_idle: bool,
    /// So much was lost, or a router said so, that the link must be overfull: the part of the window that is too much.
    pub(super) overfull: Option<f64>,
}

impl Round {
    pub(super) fn new(start: Instant) -> Self {
        Self { start, delivered: 0, lost: 0, rtt_min: None, has_come_round: false, is_idle: false, is_marked: false }
    }

    pub(super) fn acked(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        let rtt = now.saturating_duration_since(sent);
        self.rtt_min = Some(self.rtt_min.map_or(rtt, |least| least.min(rtt)));
        self.has_come_round |= sent >= self.start;
    }

    pub(super) fn idle(&mut self) {
        self.is_idle = true;
    }

    /// A router marked packets instead of dropping them.
    pub(super) fn marked(&mut self) {
        self.is_marked = true;
    }

    pub(super) fn lost(&mut self, bytes: u64) {
        self.lost += bytes;
    }

    /// What it has shown, once it is over.
    pub(super) fn end(&self, now: Instant, packet_bytes: u64) -> Option<Seen> {
        let elapsed = now.saturating_duration_since(self.start);
        if !self.has_come_round || elapsed < ROUND_MIN {
            return None;
        }
        let is_lossy =
            self.lost > LOST_PACKETS_MIN * packet_bytes && self.lost * LOST_SHARE > self.lost + self.delivered;
        let lost_share = self.lost as f64 / (self.lost + self.delivered).max(1) as f64;
        let overfull = if self.is_marked { Some(MARKED_SHARE) } else { is_lossy.then_some(lost_share) };
        Some(Seen {
            rate: self.delivered as f64 / elapsed.as_secs_f64(),
            rtt: self.rtt_min?,
            is_idle: self.is_idle,
            overfull,
        })
    }
}
