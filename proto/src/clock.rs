//! Notices that the wall clock of a machine jumps, and says so once.
//!
//! Nothing relies on the wall clock but the times that people read, and the age of points: these never go back, whatever the
//! clock does. But who looks at them should know why they are far apart, or alike. Both agents watch it the same way. A
//! clock that jumps all the time is told of now and then, with the number of jumps that were left out.

use std::time::Duration;

use crate::time::Timestamp;

/// Time between two looks at the clock.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What counts as a jump. A clock that is being corrected gradually gains or loses some milliseconds between two looks.
const JUMP_MIN_US: i64 = 1_000_000;
/// Time in which one jump is told of at most.
const TELL_EVERY: Duration = Duration::from_secs(600);
/// A reading of both clocks that took longer than this says nothing: the agent did not run in between.
const READING_MAX: Duration = Duration::from_millis(200);

/// A jump of the wall clock that is to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jump {
    /// By how much, in microseconds; negative where it went back.
    pub by_us: i64,
    /// Jumps since the last one that was told of.
    pub left_out: u32,
}

/// Compares the wall clock with the monotonic one.
#[derive(Debug, Default)]
pub struct JumpWatch {
    /// The wall clock less the monotonic one, in microseconds.
    offset_us: Option<i64>,
    told: Option<Duration>,
    left_out: u32,
}

impl JumpWatch {
    /// Takes a reading of both clocks. Gives a jump since the last one, if it is to be told of.
    pub fn observe(&mut self, mono: Duration, wall: Timestamp) -> Option<Jump> {
        let offset_us = wall.us() as i64 - mono.as_micros() as i64;
        let before = self.offset_us.replace(offset_us)?;
        let by_us = offset_us - before;
        if by_us.abs() < JUMP_MIN_US {
            return None;
        }
        if self.told.is_some_and(|told| mono < told + TELL_EVERY) {
            self.left_out += 1;
            return None;
        }
        self.told = Some(mono);
        Some(Jump { by_us, left_out: std::mem::take(&mut self.left_out) })
    }
}

/// Watches the clocks for as long as it is polled. `clock` reads the monotonic one, then the other.
pub async fn watch(clock: impl Fn() -> (Duration, Timestamp)) {
    let mut watch = JumpWatch::default();
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let ((mono, wall), (after, _)) = (clock(), clock());
        if after.saturating_sub(mono) > READING_MAX {
            continue;
        }
        if let Some(Jump { by_us, left_out }) = watch.observe(mono, wall) {
            let seconds = by_us as f64 / 1e6;
            tracing::warn!(
                seconds,
                left_out,
                "the clock of this machine jumped, or the machine was suspended: times of points never go back, but they, and \
                 what is kept by age, follow the clock; check how it is set"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(watch: &mut JumpWatch, mono_s: u64, wall_s: u64) -> Option<(i64, u32)> {
        let jump = watch.observe(Duration::from_secs(mono_s), Timestamp(wall_s * 1_000_000));
        jump.map(|jump| (jump.by_us / 1_000_000, jump.left_out))
    }

    #[test]
    fn a_jump_is_told_of_once_in_either_direction() {
        let mut watch = JumpWatch::default();
        assert_eq!(at(&mut watch, 1, 1000), None, "nothing to compare with");
        assert_eq!(at(&mut watch, 6, 1005), None);
        assert_eq!(at(&mut watch, 11, 4610), Some((3600, 0)));
        assert_eq!(at(&mut watch, 16, 4615), None, "from then on that is the time");
        assert_eq!(at(&mut watch, 1000, 5599), None);
        assert_eq!(at(&mut watch, 1005, 2004), Some((-3600, 0)));
    }

    #[test]
    fn a_clock_that_jumps_all_the_time_does_not_flood_the_log() {
        let mut watch = JumpWatch::default();
        let told: Vec<_> =
            (0..1000u64).filter_map(|look| at(&mut watch, look * 5, look * 5 + look % 2 * 100)).collect();
        assert_eq!(told.len(), 9, "one in ten minutes");
        assert_eq!(told[1].1, 119);
    }

    #[test]
    fn a_clock_that_is_corrected_gradually_does_not_jump() {
        let mut watch = JumpWatch::default();
        for look in 0..1000u64 {
            let wall = Timestamp(look * 5_000_000 + look * 2_500);
            assert_eq!(watch.observe(Duration::from_secs(look * 5), wall), None);
        }
    }
}
