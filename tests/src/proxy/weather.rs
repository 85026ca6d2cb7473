//! What becomes of a datagram. Pure: the same seed and the same order of datagrams give the same fates.

use std::time::Duration;

use crate::random::Random;

/// The state of the link; the same in both directions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Each datagram takes this long.
    pub delay: Duration,
    /// And up to this much longer, at random. Overtaking follows from it.
    pub jitter: Duration,
    /// Of a million datagrams, so many are lost.
    pub lost_ppm: u64,
    /// Of a million, so many arrive twice.
    pub doubled_ppm: u64,
    /// Of a million, so many are held back by [`Weather::HELD_BACK`], so that tens of others overtake them.
    pub late_ppm: u64,
    /// Bits a second of UDP payload in each direction; 0 is no limit. What would wait for over [`Weather::QUEUE_MAX`] is lost.
    pub bits_per_second: u64,
}

/// One direction of a link with a rate: how long what it has taken will occupy it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Queue {
    busy: Duration,
}

impl Queue {
    /// Takes a datagram, `elapsed` after the last one; the time until its last bit has left, or `None` if it is lost.
    pub(super) fn take(&mut self, bytes: usize, elapsed: Duration, bits_per_second: u64) -> Option<Duration> {
        self.busy = self.busy.saturating_sub(elapsed);
        if bits_per_second == 0 {
            return Some(Duration::ZERO);
        }
        if self.busy > Weather::QUEUE_MAX {
            return None;
        }
        self.busy += Duration::from_nanos(bytes as u64 * 8 * 1_000_000_000 / bits_per_second);
        Some(self.busy)
    }
}

/// Delays of the copies of a datagram that arrive: none, one or two.
pub(super) type Fate = [Option<Duration>; 2];

impl Weather {
    /// What a late datagram takes longer.
    pub const HELD_BACK: Duration = Duration::from_millis(3);
    /// What a router's queue holds; as `latency 50ms` of tc's tbf.
    pub const QUEUE_MAX: Duration = Duration::from_millis(50);

    /// The fate of the next datagram.
    pub(super) fn fate(&self, random: &mut Random) -> Fate {
        let mut happens = |ppm: u64| random.below(1_000_000) < ppm;
        let (lost, doubled, late) = (happens(self.lost_ppm), happens(self.doubled_ppm), happens(self.late_ppm));
        if lost {
            return [None, None];
        }
        let jitter_us = u64::try_from(self.jitter.as_micros()).expect("a jitter of milliseconds");
        let mut delay = || self.delay + Duration::from_micros(random.below(jitter_us + 1));
        let held_back = if late { Self::HELD_BACK } else { Duration::ZERO };
        [Some(delay() + held_back), doubled.then(delay)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(weather: Weather, count: usize) -> Vec<Fate> {
        let mut random = Random::new(7);
        (0..count).map(|_| weather.fate(&mut random)).collect()
    }

    #[test]
    fn on_a_fine_day_every_datagram_arrives_once_and_at_once() {
        assert!(fates(Weather::default(), 1000).iter().all(|fate| *fate == [Some(Duration::ZERO), None]));
    }

    #[test]
    fn bad_weather_is_as_bad_as_forecast_and_the_same_for_the_same_seed() {
        let weather = Weather {
            delay: Duration::from_millis(20),
            jitter: Duration::from_millis(4),
            lost_ppm: 100_000,
            doubled_ppm: 200_000,
            late_ppm: 300_000,
            ..Weather::default()
        };
        let seen = fates(weather, 10_000);
        assert_eq!(seen, fates(weather, 10_000));
        let count = |wanted: fn(&Fate) -> bool| seen.iter().filter(|fate| wanted(fate)).count();
        assert!((900..1100).contains(&count(|fate| fate[0].is_none())));
        assert!((1650..1950).contains(&count(|fate| fate[1].is_some())));
        let late = |fate: &Fate| fate[0].is_some_and(|delay| delay > Duration::from_millis(24));
        assert!(seen.iter().filter(|fate| late(fate)).count() > 1000);
        assert!(seen.iter().flatten().flatten().all(|delay| *delay >= weather.delay));
    }

    #[test]
    fn a_rate_delays_what_queues_and_loses_what_would_wait_too_long() {
        let rate = 8_000_000;
        let mut queue = Queue::default();
        let millisecond = Duration::from_millis(1);
        assert_eq!(queue.take(1000, Duration::ZERO, rate), Some(millisecond));
        assert_eq!(queue.take(1000, Duration::ZERO, rate), Some(2 * millisecond));
        assert_eq!(queue.take(1000, 5 * millisecond, rate), Some(millisecond));
        let passed = (0..100).filter(|_| queue.take(1000, Duration::ZERO, rate).is_some()).count();
        assert_eq!(passed, 50);
        assert_eq!(queue.take(1000, Duration::ZERO, 0), Some(Duration::ZERO));
    }
}
