//! The rules of the protocol as switches, so that the simulation can show what each is for.
//!
//! In an agent as it is released every rule holds, and the compiler removes the question. Builds with debug assertions
//! have the switches, for a thread at a time: the simulations, which live in two crates, switch one off and count the
//! seeds until their judge notices (`make sim-rules`); docs/rules.md keeps the list.

/// A rule that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// S1: a set is sealed when no write of it or before it is unfinished.
    SealsWait,
    /// S2: overlapping writes keep their order.
    OverlapsWait,
    /// S3: what a failed write left is read again.
    FailedWritesAreRead,
    /// S4: old content is saved before it is overwritten.
    CopyBeforeWrite,
    /// S6: a write sets its dirty bits once more when it completes.
    CompletionMarks,
    /// S6: bits whose comparison was never answered go back.
    SuspectsReturn,
    /// S7: a write waits until its regions are marked.
    MarksWait,
    /// S7: a region is unmarked only after its disk was flushed.
    FlushBeforeUnmark,
    /// S7: a region is unmarked only when everything in it is acknowledged.
    AcknowledgedBeforeUnmark,
    /// S7: a write in flight keeps its regions marked.
    InFlightKeepsMarks,
    /// S7: dirty, suspect and travelling blocks keep their regions marked.
    BusyKeepsMarks,
    /// S7, REVIEW W2: a region that is being unmarked needs a new mark.
    UnmarkingNeedsMark,
    /// S8: what was dropped becomes dirty.
    DroppedIsDirty,
    /// S8: what was on its way when the session ended becomes dirty.
    TravellingReturns,
    /// S17, L2: a set of which less can be read than its first seal said is told anew, in a new phase.
    BeliedIsToldAnew,
    /// S10: the record of a clean stop has what is in sets.
    ExactHasSets,
    /// S10, W10: the record of a clean stop has what a disk that can't be flushed may have lost.
    ExactHasUnflushed,
    /// S7, W8: writes go on without marks only when the target has noted that they are void.
    VoidBeforeUnmarkedWrites,
    /// S12, W8: all regions are marked before the note is taken back.
    AllMarkedBeforeLift,
    /// W8: a start that finds a note compares everything.
    VoidIsDoubt,
    /// L1, W8: a note that the target has lost is asked for again.
    LostVoidIsRenewed,
    /// P6: what comes back from the spool is checked against the CRC of its capture.
    SpoolIsChecked,
    /// P4: content counts as spooled when its write has ended.
    SpooledWhenWritten,
    /// P4: what could not be written to the spool stays in memory.
    FailedSpoolWritesStay,
    /// P4: a write to the spool keeps its room until it has ended, whatever became of its set.
    SpoolWritesKeepRoom,
    /// P4: nothing is written to the spool while it is being emptied.
    EmptiedAlone,
    /// L1: a target with a lower counter is compared.
    CounterIsChecked,
    /// L1, W6: a source whose marks are older than what the target has is compared.
    OldMarksAreDoubt,
    /// L1, W6: marks keep their number in a start until the target has been heard.
    NumbersWaitForTarget,
    /// S12, W6: a doubt is settled when every page has its marks, not when the first has.
    DoubtIsWhole,
    /// S12: a doubt is durable before the target goes on.
    DoubtIsDurableFirst,
    /// W10: after a failed flush, what was written since the last good one is read again.
    ReadAgainAfterFailedFlush,
    /// W10: and once more after the next that succeeds.
    ReadAgainAfterGoodFlush,
    /// S17, S20: what could not be read or flushed is tried once more before a fence is reported.
    FenceTriesAgain,
    /// Verify: a difference in a block written since it was read says nothing.
    TouchedIsAskedAgain,
    /// Verify: nor does one in a block that was not acknowledged when it was read.
    UnsettledIsAskedAgain,
}

impl Rule {
    /// Whether the rule holds.
    #[cfg(not(any(test, debug_assertions)))]
    #[inline(always)]
    pub(crate) const fn holds(self) -> bool {
        true
    }

    /// Whether the rule holds.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn holds(self) -> bool {
        OFF.get() != Some(self)
    }

    /// Does something while the rule is off.
    #[cfg(any(test, debug_assertions))]
    pub fn off<T>(self, work: impl FnOnce() -> T) -> T {
        struct Restore;
        impl Drop for Restore {
            fn drop(&mut self) {
                OFF.set(None);
            }
        }
        let _restore = Restore;
        OFF.set(Some(self));
        work()
    }

    /// Those that the simulations try: all but seven that they meet too rarely, which have scenarios of
    /// their own (docs/rules.md).
    #[cfg(any(test, debug_assertions))]
    pub const ALL: [Self; 29] = [
        Self::SealsWait,
        Self::OverlapsWait,
        Self::FailedWritesAreRead,
        Self::CopyBeforeWrite,
        Self::CompletionMarks,
        Self::SuspectsReturn,
        Self::MarksWait,
        Self::FlushBeforeUnmark,
        Self::AcknowledgedBeforeUnmark,
        Self::InFlightKeepsMarks,
        Self::BusyKeepsMarks,
        Self::UnmarkingNeedsMark,
        Self::DroppedIsDirty,
        Self::TravellingReturns,
        Self::ExactHasSets,
        Self::VoidBeforeUnmarkedWrites,
        Self::AllMarkedBeforeLift,
        Self::VoidIsDoubt,
        Self::LostVoidIsRenewed,
        Self::SpoolIsChecked,
        Self::SpooledWhenWritten,
        Self::FailedSpoolWritesStay,
        Self::SpoolWritesKeepRoom,
        Self::EmptiedAlone,
        Self::CounterIsChecked,
        Self::OldMarksAreDoubt,
        Self::DoubtIsWhole,
        Self::TouchedIsAskedAgain,
        Self::UnsettledIsAskedAgain,
    ];
}

#[cfg(any(test, debug_assertions))]
thread_local! {
    static OFF: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}
