//! How far history reaches, and how far it could with the room there is.

use std::time::Duration;

use proto::time::Timestamp;

use crate::journal::{Journal, JournalResult, Volume};

/// Less history than this says nothing about the rate at which it grows.
const HISTORY_MIN: Duration = Duration::from_secs(60);

/// What there is of history, and what the room holds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Forecast {
    /// From the oldest point to the newest; none without points.
    pub history: Option<Duration>,
    /// How much history fits, at the rate at which the journal has grown since its oldest generation began; none where it is
    /// too young to say.
    pub fits: Option<Duration>,
}

impl<V: Volume> Journal<V> {
    /// Looks at points, size and room.
    pub fn forecast(&self, now: Timestamp) -> JournalResult<Forecast> {
        let (history, since) = {
            let state = self.state();
            let times = || state.point_times().map(|(_, time)| time);
            let history = times().next().zip(times().last()).map(|(oldest, newest)| newest.since(oldest));
            (history, state.manifest.generations.first().map_or(now, |oldest| Timestamp(oldest.opened_us)))
        };
        let (stored, age) = (self.stored_bytes(), now.since(since));
        if age < HISTORY_MIN || stored == 0 {
            return Ok(Forecast { history, fits: None });
        }
        let room = stored.saturating_add(self.free_bytes()?.saturating_sub(self.options.reserve_bytes));
        let fits = Duration::try_from_secs_f64(room as f64 / stored as f64 * age.as_secs_f64()).ok();
        Ok(Forecast { history, fits })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::journal::{Fuse, MemVolume, Options};
    use super::*;

    #[test]
    fn a_journal_that_took_a_quarter_of_its_room_in_an_hour_reaches_four() {
        let volume = MemVolume::new(1, Fuse::default());
        let now = Timestamp(1_000_000);
        let options = Options { reserve_bytes: 0, ..Options::default() };
        let journal = Journal::open(volume.clone(), &[], now, options).unwrap();
        assert_eq!(journal.forecast(now).unwrap(), Forecast::default(), "too young to say");
        let hour = Duration::from_secs(3600);
        assert_eq!(journal.forecast(now.plus(hour)).unwrap(), Forecast::default(), "nothing is stored");
        let stored = 1 << 20;
        let segment = crate::journal::SegmentId { generation: 0, index: 1 };
        journal.state().segments.entry(segment).or_default().bytes = stored;
        let used: u64 = volume.list().unwrap().iter().map(|name| volume.len(name).unwrap()).sum();
        volume.set_capacity(used + 3 * stored);
        assert_eq!(journal.forecast(now.plus(hour)).unwrap().fits, Some(hour * 4));
    }
}
