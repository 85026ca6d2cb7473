//! Keeps the cap of the link at what the schedule says for this hour, by the clock and the time zone of the host.

use std::time::Duration;

use jiff::ZonedDateTime;
use proto::throttle::{BitRate, LinkRate};
use tracing::info;

use crate::config::{Moment, Schedule, Weekday};

/// Windows begin and end on the minute; clocks are set and zones change at any time.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Sets the cap for this moment.
pub(super) fn set(schedule: &Schedule, rate: &LinkRate) {
    let cap = schedule.rate_at(moment(&ZonedDateTime::now()));
    if rate.set(cap) {
        info!(
            cap = cap.as_ref().map_or_else(|| "none".to_owned(), BitRate::to_string),
            "the cap of the link has changed"
        );
    }
}

/// Keeps the cap as the schedule says. Never ends.
pub(super) async fn follow(schedule: Schedule, rate: LinkRate) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        set(&schedule, &rate);
    }
}

fn moment(time: &ZonedDateTime) -> Moment {
    let day = usize::from(time.weekday().to_monday_zero_offset().unsigned_abs());
    let minute = u16::from(time.hour().unsigned_abs()) * 60 + u16::from(time.minute().unsigned_abs());
    Moment { day: Weekday::ALL[day], minute }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hour_is_that_of_the_zone_also_across_its_changes() {
        for (time, day, minute) in [
            ("2026-11-23T23:30:00+00:00[UTC]", Weekday::Mon, 1410),
            ("2026-11-29T00:00:59+01:00[+01:00]", Weekday::Sun, 0),
            ("2026-10-25T02:30:00+02:00[+02:00]", Weekday::Sun, 150),
            ("2026-10-25T02:30:00+01:00[+01:00]", Weekday::Sun, 150),
        ] {
            let time: ZonedDateTime = time.parse().expect("a time");
            assert_eq!(moment(&time), Moment { day, minute }, "{time}");
        }
    }
}
