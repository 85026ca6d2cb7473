//! From `rate` and `[[throttle]]` in the file to a checked schedule.

use proto::config::{ConfigError, Source, Spanned};
use proto::throttle::BitRate;

use super::file;
use super::schedule::{Days, MINUTES_PER_DAY, Schedule, Weekday, Window};

/// At this rate a full datagram takes 0.1 s: a handshake and the heartbeats still get through in time.
const RATE_MIN: BitRate = BitRate(128_000);
/// More windows than anybody keeps track of.
const WINDOWS_MAX: usize = 100;
const DAY_NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Checks the caps of the link.
pub(super) fn check(file: &file::File, source: &Source) -> Result<Schedule, ConfigError> {
    let otherwise = file.master_target.rate.as_ref().map(|at| rate(source, at)).transpose()?;
    if let Some(one_too_many) = file.throttle.get(WINDOWS_MAX) {
        let what = format!("there are more than {WINDOWS_MAX} [[throttle]] windows");
        return Err(source.invalid(&one_too_many.from, what, "join some of them"));
    }
    let windows = file.throttle.iter().map(|entry| window(source, entry)).collect::<Result<_, _>>()?;
    Ok(Schedule { otherwise, windows })
}

fn rate(source: &Source, at: &Spanned<BitRate>) -> Result<BitRate, ConfigError> {
    let rate = *at.get_ref();
    if rate >= RATE_MIN {
        return Ok(rate);
    }
    let what = format!("rate: {rate} is too little to keep the link up");
    Err(source.invalid(at, what, format!("choose {RATE_MIN} at least, or stop the agent for that time")))
}

fn window(source: &Source, entry: &file::Throttle) -> Result<Window, ConfigError> {
    let from = minute(source, &entry.from, "from", MINUTES_PER_DAY - 1)?;
    let to = minute(source, &entry.to, "to", MINUTES_PER_DAY)?;
    if from == to {
        let what = format!("the window from {0:?} to {0:?} is empty", entry.to.get_ref());
        return Err(source.invalid(&entry.to, what, "for a whole day write from \"00:00\" to \"24:00\""));
    }
    let days = entry.days.as_ref().map_or(Ok(Days::EVERY), |at| days(source, at))?;
    Ok(Window { days, from, to, rate: rate(source, &entry.rate)? })
}

fn minute(source: &Source, at: &Spanned<String>, key: &str, last: u16) -> Result<u16, ConfigError> {
    let text = at.get_ref();
    parse_minute(text).filter(|minute| *minute <= last).ok_or_else(|| {
        let end = if last == MINUTES_PER_DAY { "24:00" } else { "23:59" };
        let remedy = format!("write HH:MM, from 00:00 to {end}, such as \"08:00\"");
        source.invalid(at, format!("{key}: {text:?} is not a time of day"), remedy)
    })
}

/// Exactly two digits, a colon, and two digits.
fn parse_minute(text: &str) -> Option<u16> {
    let &[h1, h2, b':', m1, m2] = text.as_bytes() else { return None };
    let two = |tens: u8, ones: u8| {
        let is_number = tens.is_ascii_digit() && ones.is_ascii_digit();
        is_number.then(|| u16::from(tens - b'0') * 10 + u16::from(ones - b'0'))
    };
    let (hours, minutes) = (two(h1, h2)?, two(m1, m2)?);
    (minutes < 60).then_some(hours * 60 + minutes)
}

fn days(source: &Source, at: &Spanned<Vec<String>>) -> Result<Days, ConfigError> {
    let mut days = Days::default();
    let refused = |what: String| source.invalid(at, what, "name each day once: mon, tue, wed, thu, fri, sat, sun");
    for name in at.get_ref() {
        let index = DAY_NAMES.iter().position(|known| known == name);
        let day = index.map(|index| Weekday::ALL[index]).ok_or_else(|| refused(format!("days: {name:?} is no day")))?;
        if days.has(day) {
            return Err(refused(format!("days: {name:?} is there twice")));
        }
        days = days.with(day);
    }
    if days == Days::default() {
        return Err(source.invalid(at, "days: none is named", "name some, or leave the key out for every day"));
    }
    Ok(days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_are_two_digits_each() {
        for (text, minute) in [("00:00", 0), ("08:05", 485), ("23:59", 1439), ("24:00", 1440)] {
            assert_eq!(parse_minute(text), Some(minute), "{text}");
        }
        for text in ["", "8:00", "08:0", "08:60", "0800", "08:00:00", "+8:00", "ab:cd", "08.00", " 8:00", "08:00 "] {
            assert_eq!(parse_minute(text), None, "{text}");
        }
    }
}
