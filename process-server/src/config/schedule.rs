//! What may leave for the master-target at which time of the week. Pure: the caller brings the local time.

use proto::throttle::BitRate;

/// Minutes of a day.
pub const MINUTES_PER_DAY: u16 = 24 * 60;

/// Days of the week, in the order of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weekday {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Weekday {
    /// All of them, Monday first.
    pub const ALL: [Self; 7] = [Self::Mon, Self::Tue, Self::Wed, Self::Thu, Self::Fri, Self::Sat, Self::Sun];

    fn before(self) -> Self {
        Self::ALL[(self as usize + 6) % 7]
    }
}

/// A set of days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Days(u8);

impl Days {
    /// The whole week.
    pub const EVERY: Self = Self(0b111_1111);

    /// These and `day`.
    #[must_use]
    pub fn with(self, day: Weekday) -> Self {
        Self(self.0 | 1 << day as u8)
    }

    /// Whether `day` is one of them.
    #[must_use]
    pub fn has(self, day: Weekday) -> bool {
        self.0 & (1 << day as u8) != 0
    }
}

/// A minute of the week, by the clock on the wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The day.
    pub day: Weekday,
    /// Minutes since its midnight, below [`MINUTES_PER_DAY`].
    pub minute: u16,
}

/// A window of the week with a cap of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Days on which it begins.
    pub days: Days,
    /// First minute of the day that belongs to it.
    pub from: u16,
    /// First minute that no longer does, up to [`MINUTES_PER_DAY`]. Below `from` it is one of the next day.
    pub to: u16,
    /// The cap.
    pub rate: BitRate,
}

impl Window {
    fn holds(&self, at: Moment) -> bool {
        if self.from < self.to {
            return self.days.has(at.day) && (self.from..self.to).contains(&at.minute);
        }
        // The evening of its own day, and the morning of the day after.
        self.days.has(at.day) && at.minute >= self.from || self.days.has(at.day.before()) && at.minute < self.to
    }
}

/// The cap of a link, hour by hour.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    /// Outside all windows; `None` is no cap.
    pub otherwise: Option<BitRate>,
    /// In no particular order; they may overlap.
    pub windows: Vec<Window>,
}

impl Schedule {
    /// The cap at a time of the week; `None` is no cap.
    #[must_use]
    pub fn rate_at(&self, at: Moment) -> Option<BitRate> {
        let holding = self.windows.iter().filter(|window| window.holds(at));
        holding.map(|window| window.rate).min().or(self.otherwise)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(day: Weekday, hour: u16, minute: u16) -> Moment {
        Moment { day, minute: hour * 60 + minute }
    }

    fn window(days: &[Weekday], from: u16, to: u16, rate: u64) -> Window {
        let days = days.iter().fold(Days::default(), |days, day| days.with(*day));
        Window { days, from: from * 60, to: to * 60, rate: BitRate(rate) }
    }

    fn schedule(windows: &[Window]) -> Schedule {
        Schedule { otherwise: Some(BitRate(50)), windows: windows.to_vec() }
    }

    #[test]
    fn a_window_begins_with_its_first_minute_and_ends_before_its_last() {
        let schedule = schedule(&[window(&[Weekday::Mon], 8, 18, 10)]);
        for (moment, rate) in [
            (at(Weekday::Mon, 7, 59), 50),
            (at(Weekday::Mon, 8, 0), 10),
            (at(Weekday::Mon, 17, 59), 10),
            (at(Weekday::Mon, 18, 0), 50),
            (at(Weekday::Tue, 12, 0), 50),
        ] {
            assert_eq!(schedule.rate_at(moment), Some(BitRate(rate)), "{moment:?}");
        }
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
        let schedule = schedule(&[window(&[Weekday::Sun], 22, 6, 10)]);
        for (moment, rate) in [
            (at(Weekday::Sun, 21, 59), 50),
            (at(Weekday::Sun, 22, 0), 10),
            (at(Weekday::Mon, 0, 0), 10),
            (at(Weekday::Mon, 5, 59), 10),
            (at(Weekday::Mon, 6, 0), 50),
            (at(Weekday::Sun, 3, 0), 50),
            (at(Weekday::Mon, 23, 0), 50),
        ] {
            assert_eq!(schedule.rate_at(moment), Some(BitRate(rate)), "{moment:?}");
        }
    }

    #[test]
    fn of_windows_that_overlap_the_lowest_rate_counts_and_a_window_may_be_faster_than_the_rest() {
        let schedule = schedule(&[window(&Weekday::ALL, 8, 18, 30), window(&[Weekday::Fri], 12, 20, 90)]);
        assert_eq!(schedule.rate_at(at(Weekday::Fri, 13, 0)), Some(BitRate(30)));
        assert_eq!(schedule.rate_at(at(Weekday::Fri, 19, 0)), Some(BitRate(90)));
        assert_eq!(schedule.rate_at(at(Weekday::Thu, 19, 0)), Some(BitRate(50)));
    }

    #[test]
    fn a_whole_day_has_no_gap_at_midnight() {
        let schedule = Schedule { otherwise: None, windows: vec![window(&Weekday::ALL, 0, 24, 10)] };
        for day in Weekday::ALL {
            for minute in 0..MINUTES_PER_DAY {
                assert_eq!(schedule.rate_at(Moment { day, minute }), Some(BitRate(10)));
            }
        }
        assert_eq!(Schedule::default().rate_at(at(Weekday::Mon, 0, 0)), None);
    }

    /// The naive way: mark every minute of the week that a window covers, walking from its beginning.
    fn marked(window: &Window) -> Vec<bool> {
        let (day, week) = (usize::from(MINUTES_PER_DAY), 7 * usize::from(MINUTES_PER_DAY));
        let mut marks = vec![false; week];
        for start in Weekday::ALL.into_iter().filter(|day| window.days.has(*day)) {
            let length = (usize::from(window.to) + day - usize::from(window.from) - 1) % day + 1;
            let first = start as usize * day + usize::from(window.from);
            (first..first + length).for_each(|minute| marks[minute % week] = true);
        }
        marks
    }

    proptest! {
        #[test]
        fn every_minute_of_the_week_is_judged_as_by_walking_through_it(
            days in 0_u8..128,
            from in 0_u16..MINUTES_PER_DAY,
            to in 1_u16..=MINUTES_PER_DAY,
        ) {
            prop_assume!(from != to);
            let window = Window { days: Days(days), from, to, rate: BitRate(1) };
            let marks = marked(&window);
            for day in Weekday::ALL {
                for minute in 0..MINUTES_PER_DAY {
                    let expected = marks[day as usize * usize::from(MINUTES_PER_DAY) + usize::from(minute)];
                    prop_assert_eq!(window.holds(Moment { day, minute }), expected, "{:?} {}", day, minute);
                }
            }
        }
    }
}
