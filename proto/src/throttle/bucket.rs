//! The token bucket: may a batch of datagrams leave now, and if not, when.
//!
//! Credit grows with time, up to [`BURST`] at the present rate. A batch may go whenever there is no debt, also where it
//! is larger than the credit: it then leaves a debt that is paid before the next one. So over any stretch of time at
//! most `rate x time + BURST + one batch` leaves, no batch is too large to ever go, and a host that is late at the
//! timer by less than [`BURST`] loses nothing of its rate. Pure: the caller passes the time in.

use std::time::Duration;

use tokio::time::Instant;

use super::BitRate;

/// How much may be saved up, in time at the present rate. Timers tick in milliseconds and busy hosts are late by tens
/// of them; over 10 s this is 0.5 % of the rate.
pub(super) const BURST: Duration = Duration::from_millis(50);
/// A batch takes about this long on the link, so that a datagram of a higher priority waits no longer.
const BATCH: Duration = Duration::from_millis(10);
/// Bytes of a large datagram on common paths, to count how many make a batch.
const DATAGRAM_BYTES: u64 = 1452;

const NS_PER_S: i128 = 1_000_000_000;
const BITS_PER_BYTE: i128 = 8;

/// The bucket of one socket.
#[derive(Debug)]
pub struct Bucket {
    rate: Option<BitRate>,
    /// Bits x 10^9 that may leave now; negative is a debt. Whole numbers, so that nothing is lost to rounding.
    credit: i128,
    at: Instant,
}

impl Bucket {
    /// A bucket without credit; `None` is no cap.
    #[must_use]
    pub fn new(rate: Option<BitRate>, now: Instant) -> Self {
        Self { rate, credit: 0, at: now }
    }

    /// The present cap.
    #[must_use]
    pub fn rate(&self) -> Option<BitRate> {
        self.rate
    }

    /// Caps at another rate from `now` on. What was saved up is cut to the new rate; a debt stays.
    ///
    /// # Panics
    /// If the rate is 0: a link that may send nothing is not a link.
    pub fn set_rate(&mut self, rate: Option<BitRate>, now: Instant) {
        assert!(rate.is_none_or(|rate| rate.0 > 0), "a cap of nothing");
        self.refill(now);
        self.rate = rate;
        self.credit = self.credit.min(self.credit_max());
    }

    /// Whether a batch may leave at `now`; otherwise the time until one may.
    pub fn check(&mut self, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        let Some(rate) = self.rate else { return Ok(()) };
        if self.credit >= 0 {
            return Ok(());
        }
        let wait_ns = self.credit.unsigned_abs().div_ceil(u128::from(rate.0));
        Err(Duration::from_nanos(u64::try_from(wait_ns).unwrap_or(u64::MAX)))
    }

    /// A batch of so many bytes has left; [`Self::check`] has allowed it.
    pub fn handle_sent(&mut self, bytes: usize) {
        if self.rate.is_some() {
            self.credit -=
                i128::try_from(bytes).unwrap_or(i128::MAX / NS_PER_S / BITS_PER_BYTE) * BITS_PER_BYTE * NS_PER_S;
        }
    }

    /// Datagrams that one batch may have at most; at least 1.
    #[must_use]
    pub fn batch_datagrams_max(&self) -> usize {
        let Some(rate) = self.rate else { return usize::MAX };
        let bytes = u128::from(rate.0) * BATCH.as_millis() / 8000;
        usize::try_from(bytes / u128::from(DATAGRAM_BYTES)).unwrap_or(usize::MAX).max(1)
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let Some(rate) = self.rate else {
            self.credit = 0;
            return;
        };
        let passed_ns = i128::try_from(passed.as_nanos()).unwrap_or(i128::from(u64::MAX));
        self.credit = self.credit.saturating_add(passed_ns.saturating_mul(i128::from(rate.0))).min(self.credit_max());
    }

    fn credit_max(&self) -> i128 {
        let burst_ns = i128::try_from(BURST.as_nanos()).expect("milliseconds");
        self.rate.map_or(0, |rate| burst_ns * i128::from(rate.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: u64 = 20_000_000;

    fn bucket(rate: u64) -> (Bucket, Instant) {
        let start = Instant::now();
        (Bucket::new(Some(BitRate(rate)), start), start)
    }

    /// Sends batches as a sender with endless content does that wakes up to `late` after it may; returns the bytes.
    fn flood(
        bucket: &mut Bucket,
        start: Instant,
        length: Duration,
        batch: usize,
        late: impl Fn(u64) -> Duration,
    ) -> u64 {
        let (mut now, mut sent) = (start, 0);
        loop {
            match bucket.check(now) {
                Ok(()) => {
                    bucket.handle_sent(batch);
                    sent += batch as u64;
                }
                Err(wait) => now += wait + late(sent),
            }
            if now - start >= length {
                return sent;
            }
        }
    }

    #[test]
    fn ten_seconds_of_flood_are_within_one_percent_of_the_rate() {
        for (rate, batch) in [(1_000_000, 1452), (RATE, 14_520), (1_000_000_000, 14_520)] {
            let (mut bucket, start) = bucket(rate);
            let ten = Duration::from_secs(10);
            let sent = flood(&mut bucket, start, ten, batch, |sent| Duration::from_micros(sent % 20_000));
            let expected = rate / 8 * 10;
            assert!(sent.abs_diff(expected) * 100 <= expected, "{sent} of {expected} at {rate} bit/s");
        }
    }

    #[test]
    fn what_was_not_sent_for_an_hour_is_not_made_up_for() {
        let (mut bucket, start) = bucket(RATE);
        let later = start + Duration::from_secs(3600);
        let mut sent = 0;
        while bucket.check(later).is_ok() {
            bucket.handle_sent(1452);
            sent += 1452;
        }
        let burst = RATE / 8 * BURST.as_millis() as u64 / 1000;
        assert!((burst..=burst + 1452).contains(&sent), "{sent} bytes at once, {burst} are a burst");
    }

    #[test]
    fn a_batch_larger_than_the_burst_goes_and_is_paid_for_afterwards() {
        let (mut bucket, start) = bucket(8000);
        assert_eq!(bucket.check(start), Ok(()));
        bucket.handle_sent(1452);
        assert_eq!(bucket.check(start), Err(Duration::from_millis(1452)));
        assert_eq!(bucket.check(start + Duration::from_millis(1451)), Err(Duration::from_millis(1)));
        assert_eq!(bucket.check(start + Duration::from_millis(1452)), Ok(()));
    }

    #[test]
    fn a_new_rate_holds_at_once_and_brings_no_old_savings_along() {
        let (mut bucket, start) = bucket(RATE * 100);
        let now = start + Duration::from_secs(1);
        bucket.set_rate(Some(BitRate(8000)), now);
        let mut sent = 0;
        while bucket.check(now).is_ok() {
            bucket.handle_sent(10);
            sent += 10;
        }
        assert!(sent <= 60, "50 ms at 8 kbit/s are 50 bytes, but {sent} went");
        bucket.set_rate(None, now);
        assert_eq!(bucket.check(now), Ok(()), "no cap forgives the debt");
    }

    #[test]
    fn without_a_cap_everything_goes() {
        let now = Instant::now();
        let mut bucket = Bucket::new(None, now);
        for _ in 0..1000 {
            assert_eq!(bucket.check(now), Ok(()));
            bucket.handle_sent(usize::MAX);
        }
        assert_eq!(bucket.batch_datagrams_max(), usize::MAX);
    }

    #[test]
    fn batches_are_short_on_slow_links() {
        for (rate, datagrams) in [(8000, 1), (1_000_000, 1), (5_000_000, 4), (RATE, 17)] {
            assert_eq!(bucket(rate).0.batch_datagrams_max(), datagrams, "{rate}");
        }
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_has_more_than_its_share(
            rate in 128_000_u64..2_000_000_000,
            steps in proptest::collection::vec((0_u64..200_000, 1_usize..15_000), 1..200),
        ) {
            let (mut bucket, start) = bucket(rate);
            let mut now = start;
            let mut sent: Vec<(Instant, usize)> = Vec::new();
            for (pause_us, bytes) in steps {
                now += Duration::from_micros(pause_us);
                if bucket.check(now).is_ok() {
                    bucket.handle_sent(bytes);
                    sent.push((now, bytes));
                }
            }
            for first in 0..sent.len() {
                let mut sum = 0.0;
                for &(at, bytes) in &sent[first..] {
                    let length = (at - sent[first].0 + BURST).as_secs_f64();
                    prop_assert!(sum <= rate as f64 / 8.0 * length + 1.0, "before the last batch");
                    sum += bytes as f64;
                }
            }
        }
    }
}
