//! The bounds of the overload ladder (streaming, spooling, catching up), and why each has its value.
//!
//! All are parts of a group's memory budget. "Uses" means what sets are charged for: pinned buffers and the index.

/// Change sets that wait at most: a quarter of an hour of one-second points. More are merged through the bitmap.
pub(super) const SETS_MAX: usize = 1024;

/// A set is cut, also within the point interval, when it has grown to this part of the budget, so that it can leave
/// before the budget is used up: 1/4 leaves room for three more while it is sent.
pub(super) const CUT_SHARE: u64 = 4;
/// The same where there is a spool: only sealed sets go there, so the open set must not take the room they are to free.
pub(super) const CUT_SHARE_WITH_SPOOL: u64 = 8;

/// Spooling begins when sets use more than this part of the budget. The other half takes what guests write while the
/// first chunks are on their way to the cache volume, and the index of what lies there.
pub(super) const SPOOL_ABOVE_SHARE: u64 = 2;
/// Spooling ends when memory and spool together hold less than this part of the budget: all of it would fit in memory,
/// and as much again may come before it begins anew. The distance to [`SPOOL_ABOVE_SHARE`] is the hysteresis.
pub(super) const SPOOL_BELOW_SHARE: u64 = 4;
/// Captured content that stays in memory while spooling, the oldest: it is sent next, and costs no read.
pub(super) const KEPT_SHARE: u64 = 4;

/// The last cut of a catching-up is taken when the rest, with what is written meanwhile, fits this part of the budget;
/// the other half is for the sets that follow it.
pub(super) const REST_SHARE: u64 = 2;

/// A round shrinks if it leaves at most `ROUND_LEAVES / ROUND_OF` of what it began with. Below that, five rounds send
/// more than twice what there was at first, and the last cut is cheaper (S18).
pub(super) const ROUND_LEAVES: u64 = 3;
/// See [`ROUND_LEAVES`].
pub(super) const ROUND_OF: u64 = 4;

const _: () = assert!(SPOOL_BELOW_SHARE >= 2 * SPOOL_ABOVE_SHARE, "what ends spooling is far below what begins it");
const _: () = assert!(CUT_SHARE > SPOOL_ABOVE_SHARE, "one set alone never begins spooling");
const _: () = assert!(
    // What is kept, the open set and the sealed one behind it leave half of the budget for the index.
    KEPT_SHARE * CUT_SHARE_WITH_SPOOL >= 2 * (CUT_SHARE_WITH_SPOOL + 2 * KEPT_SHARE),
    "the index of the spool has half of the budget"
);
const _: () = assert!(ROUND_LEAVES < ROUND_OF);
