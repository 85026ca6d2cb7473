//! Points in time as both agents write them: microseconds since the Unix epoch, RFC 3339 for people.
//!
//! The clock is not read here: shells turn a `SystemTime` into a [`Timestamp`] and hand it to the cores.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;

const US_PER_SECOND: u64 = 1_000_000;
const SECONDS_PER_DAY: u64 = 86_400;
/// 9999-12-31T23:59:59.999999Z, the last one that RFC 3339 can write.
const LAST_US: u64 = 253_402_300_800 * US_PER_SECOND - 1;

/// Microseconds since 1970-01-01T00:00:00Z, without leap seconds. Displays as RFC 3339 with six decimals and `Z`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time of a clock reading. A clock before 1970 counts as 1970.
    #[must_use]
    pub fn from_system_time(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self(u64::try_from(since.as_micros()).unwrap_or(LAST_US).min(LAST_US))
    }

    /// Microseconds since the epoch, as messages carry them.
    #[must_use]
    pub fn us(self) -> u64 {
        self.0
    }

    /// Time since `earlier`; zero if that is later, as clocks of two machines may say.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This much later; the end of time at most.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// This much earlier; 1970 at least.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// `now`, or one microsecond after `last` where the clock went back: times of points never do.
    #[must_use]
    pub fn after(last: Timestamp, now: Timestamp) -> Self {
        now.max(Self(last.0.saturating_add(1)))
    }
}

impl From<u64> for Timestamp {
    fn from(us: u64) -> Self {
        Self(us)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.min(LAST_US);
        let (seconds, micros) = (us / US_PER_SECOND, us % US_PER_SECOND);
        let (days, second) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
        let (year, month, day) = date_of_day(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

/// Why a text is not a time.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a time: write it as RFC 3339, such as 2026-11-05T17:30:00Z or 2026-11-05T18:30:00.250+01:00")]
pub struct TimestampError {
    text: String,
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        parse(text.as_bytes()).ok_or_else(|| TimestampError { text: text.chars().take(64).collect() })
    }
}

/// RFC 3339 with any number of decimals (those after the sixth are cut off) and any offset.
fn parse(text: &[u8]) -> Option<Timestamp> {
    let mut rest = text;
    let year = digits(&mut rest, 4)?;
    let month = literal(&mut rest, b"-").and_then(|()| digits(&mut rest, 2))?;
    let day = literal(&mut rest, b"-").and_then(|()| digits(&mut rest, 2))?;
    let hour = literal(&mut rest, b"Tt ").and_then(|()| digits(&mut rest, 2))?;
    let minute = literal(&mut rest, b":").and_then(|()| digits(&mut rest, 2))?;
    let second = literal(&mut rest, b":").and_then(|()| digits(&mut rest, 2))?;
    let micros = if literal(&mut rest, b".").is_some() { decimals(&mut rest)? } else { 0 };
    let offset_seconds = offset(&mut rest)?;
    let in_range = rest.is_empty()
        && year >= 1970
        && (1..=12).contains(&month)
        && (1..=days_of_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range {
        return None;
    }
    let local = day_of_date(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    let seconds = u64::try_from(i64::try_from(local).ok()? - offset_seconds).ok()?;
    let us = seconds * US_PER_SECOND + micros;
    (us <= LAST_US).then_some(Timestamp(us))
}

fn digits(rest: &mut &[u8], count: usize) -> Option<u64> {
    let (head, tail) = rest.split_at_checked(count)?;
    let mut value = 0;
    for byte in head {
        value = value * 10 + u64::from(byte.is_ascii_digit().then(|| byte - b'0')?);
    }
    *rest = tail;
    Some(value)
}

fn literal(rest: &mut &[u8], any_of: &[u8]) -> Option<()> {
    let (first, tail) = rest.split_first()?;
    any_of.contains(first).then(|| *rest = tail)
}

fn decimals(rest: &mut &[u8]) -> Option<u64> {
    let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (head, tail) = rest.split_at(count);
    *rest = tail;
    let micros = (0..6).fold(0, |value, i| value * 10 + head.get(i).map_or(0, |digit| u64::from(digit - b'0')));
    (count > 0).then_some(micros)
}

/// Seconds that local time is ahead of UTC.
fn offset(rest: &mut &[u8]) -> Option<i64> {
    if literal(rest, b"Zz").is_some() {
        return Some(0);
    }
    let sign = if literal(rest, b"+").is_some() { 1 } else { literal(rest, b"-").map(|()| -1)? };
    let hours = digits(rest, 2)?;
    let minutes = literal(rest, b":").and_then(|()| digits(rest, 2))?;
    let seconds = i64::try_from(hours * 3600 + minutes * 60).ok()?;
    (hours < 24 && minutes < 60).then_some(sign * seconds)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Leap days between year 1 and the beginning of `year`.
fn leap_days_before(year: u64) -> u64 {
    let before = year - 1;
    before / 4 - before / 100 + before / 400
}

fn day_of_new_year(year: u64) -> u64 {
    (year - 1970) * 365 + leap_days_before(year) - leap_days_before(1970)
}

/// Days since 1970-01-01 of a date from 1970 on.
fn day_of_date(year: u64, month: u64, day: u64) -> u64 {
    day_of_new_year(year) + (1..month).map(|month| days_of_month(year, month)).sum::<u64>() + day - 1
}

fn date_of_day(day: u64) -> (u64, u64, u64) {
    // 366 days to the year gives a year that is never too late; the loop corrects it by a few at most.
    let mut year = 1970 + day / 366;
    while day_of_new_year(year + 1) <= day {
        year += 1;
    }
    let mut rest = day - day_of_new_year(year);
    let mut month = 1;
    while rest >= days_of_month(year, month) {
        rest -= days_of_month(year, month);
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_times_are_written_as_rfc_3339_with_microseconds() {
        for (us, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400_000_001, "2000-02-29T00:00:00.000001Z"),
            (1_793_899_800_250_000, "2026-11-05T17:30:00.250000Z"),
            (4_107_542_399_999_999, "2100-02-28T23:59:59.999999Z"),
            (LAST_US, "9999-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(Timestamp(us).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(us)));
        }
    }

    #[test]
    fn offsets_and_decimals_are_understood() {
        let expected = Ok(Timestamp(1_793_899_800_250_000));
        for text in ["2026-11-05T17:30:00.25Z", "2026-11-05t18:30:00.2500009+01:00", "2026-11-05 12:00:00.250-05:30"] {
            assert_eq!(text.parse(), expected, "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_time_are_refused() {
        for text in [
            "",
            "latest",
            "12",
            "2026-11-05",
            "2026-11-05T17:30:00",
            "2026-11-05T17:30Z",
            "2026-13-05T17:30:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-31T00:00:00Z",
            "2026-11-05T24:00:00Z",
            "2026-11-05T17:60:00Z",
            "2026-11-05T17:30:60Z",
            "2026-11-05T17:30:00.Z",
            "2026-11-05T17:30:00Zx",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "2026-11-05T17:30:00+24:00",
            "2026-11-05T17:30:00+0100",
            "+026-11-05T17:30:00Z",
            "2026-11-05T17:30:00.0ä",
            "9999-12-31T23:59:59-23:59",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_point_is_later_than_the_one_before_even_when_the_clock_goes_back() {
        assert_eq!(Timestamp::after(Timestamp(10), Timestamp(5)), Timestamp(11));
        assert_eq!(Timestamp::after(Timestamp(10), Timestamp(50)), Timestamp(50));
    }

    proptest! {
        #[test]
        fn every_time_reads_back_as_written(us in 0..=LAST_US) {
            prop_assert_eq!(Timestamp(us).to_string().parse(), Ok(Timestamp(us)));
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in "[-0-9TtZz:. +]{0,40}") {
            let _: Result<Timestamp, _> = text.parse();
        }
    }
}
