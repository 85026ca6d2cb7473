//! How hard apply may use the disks: gently while it keeps up, with all their depth when sets pile up.
//!
//! Apply shares its device with the journal, and in small sites with the protected disks themselves. Nobody waits for
//! it but a failback, whose outage is the time to apply what waits. So the depth of its reads and writes follows the
//! backlog: it doubles with every step of it, and beyond `BACKLOG_BYTES_MAX` nothing is held back.

/// Operations in flight while little waits. With 100 us per operation that is 40,000 scattered
/// blocks a second, or 150 MiB.
const DEPTH_MIN: u32 = 4;
/// Operations in flight without restraint; the disks have a bound of their own.
pub(super) const DEPTH_MAX: u32 = 64;
/// Redo that waits to be applied before the depth is doubled for the first time, bytes.
const BACKLOG_STEP_BYTES: u64 = 64 << 20;
/// Redo that waits at most before apply takes all it can get, bytes: some seconds of outage at a failback.
const BACKLOG_BYTES_MAX: u64 = BACKLOG_STEP_BYTES * (DEPTH_MAX / DEPTH_MIN).ilog2() as u64;

const _: () = assert!(DEPTH_MIN.is_power_of_two() && DEPTH_MAX.is_power_of_two());
const _: () = assert!(BACKLOG_BYTES_MAX <= 256 << 20);

/// Whether somebody waits for apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Nobody: the depth follows the backlog.
    Gentle,
    /// A failback, a catching-up.
    Full,
}

/// Operations that may be in flight while this much redo waits to be applied.
pub(super) fn depth(backlog_bytes: u64) -> u32 {
    let steps = (backlog_bytes / BACKLOG_STEP_BYTES).min(BACKLOG_BYTES_MAX / BACKLOG_STEP_BYTES);
    DEPTH_MIN << steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_depth_follows_the_backlog_from_gentle_to_all_there_is() {
        assert_eq!(depth(0), DEPTH_MIN);
        assert_eq!(depth(BACKLOG_STEP_BYTES - 1), DEPTH_MIN);
        assert_eq!(depth(BACKLOG_STEP_BYTES), 2 * DEPTH_MIN);
        assert_eq!(depth(BACKLOG_BYTES_MAX), DEPTH_MAX);
        assert_eq!(depth(u64::MAX), DEPTH_MAX);
    }
}
