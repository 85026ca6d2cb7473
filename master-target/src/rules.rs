//! The rules of the journal as switches, so that the simulation can show what each is for.
//!
//! In the agent every rule holds, and the compiler removes the question. The simulation switches one off at a time and
//! counts the seeds until its judge notices (`make sim-rules`); docs/rules.md keeps the list. `process-server` has the
//! same for its rules.

/// Declares the rules, and all of them in a row.
macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// A rule that can be switched off.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Rule {
            $($(#[doc = $doc])+ $name,)*
        }

        impl Rule {
            /// All of them.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

rules! {
    /// L3: a set counts when all its parts are here.
    SetsAreWhole,
    /// L4: "same" is said only of what is durable.
    SameIsDurable,
    /// L5: a rollback saves what it overwrites.
    RollbackSaves,
    /// J1: what an earlier generation has not applied yet is looked up in its redo.
    EarlierRedoIsRead,
    /// J1, J9: of two undo records the first one wins.
    FirstRecordWins,
    /// J2: after the disk was read undo is looked up again.
    UndoIsReadAgain,
    /// J3: an apply batch stays within one generation.
    BatchOfOneGeneration,
    /// J4: the applied mark is durable before bulk opens.
    MarkBeforeBulk,
    /// J5: the start of a generation is a point only if its last set is one.
    StartIsPoint,
    /// J6: nothing is removed above the durable mark.
    RemovesBelowMark,
    /// J7: the newest point stays while there is no newer one.
    NewestStays,
    /// J8: files that are found are synced before they are relied upon.
    FoundIsSynced,
    /// J8: so are the disks.
    DisksAreSynced,
    /// J9: what was saved is known again after a crash.
    SavedIsFound,
    /// J10: the undo of what was accepted has room.
    UndoHasRoom,
    /// J11: a repair saves nothing.
    RepairSavesNothing,
    /// J11: a repair of what the newest generation saved begins one.
    RepairBeginsGeneration,
    /// J11: a sum is forgotten before its block is written.
    SumsAreForgotten,
    /// J11: and durably so.
    SumsAreForgottenDurably,
    /// J11: a sum is kept only after the disks were synced.
    SumsWaitForSync,
    /// J11: sums that are found are synced before they are relied upon.
    FoundSumsAreSynced,
    /// J11: all sums are forgotten before the disks are handed over.
    HandedOverIsForgotten,
    /// J11: what is read is judged by its sum.
    SumsAreAsked,
    /// J11: a block of which a part is rotten stays damaged.
    RotStaysKnown,
    /// J11, REVIEW J14: what is under lost content is saved before it is called damaged.
    LostIsSaved,
    /// J12: a reader keeps its files.
    ReadersPin,
    /// J13: after a failed sync nothing is written.
    FailureStops,
    /// J16: what was durable of a segment is known elsewhere too.
    SegmentsVouch,
    /// J16: a target that lost what it had acknowledged begins a generation.
    LossEndsGeneration,
    /// J15: redo is durable before it is acknowledged.
    RedoBeforeAnswer,
    /// J15: undo is durable before the disk is written.
    UndoBeforeWrite,
    /// J15: the disk is synced before the mark moves.
    DiskBeforeMark,
}

impl Rule {
    /// Whether the rule holds.
    #[cfg(not(test))]
    #[inline(always)]
    pub(crate) const fn holds(self) -> bool {
        true
    }

    /// Whether the rule holds.
    #[cfg(test)]
    pub(crate) fn holds(self) -> bool {
        OFF.get() != Some(self)
    }

    /// Does something while the rule is off.
    #[cfg(test)]
    pub(crate) fn off<T>(self, work: impl FnOnce() -> T) -> T {
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
}

#[cfg(test)]
thread_local! {
    static OFF: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}
