//! Where a group durably stands with a failback, as the journal keeps it (rule L7).

use proto::ids::SetNumber;

use crate::journal::{Journal, JournalResult, RecoveryRecord, Volume};

/// `RecoveryRecord::step` while a failback is under way.
const FAILING_BACK: u32 = 1;
/// `RecoveryRecord::step` once the disks are handed over.
const FAILED_BACK: u32 = 2;
/// `RecoveryRecord::step` once the choice is final.
const COMMITTED: u32 = 3;

/// Where a group stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryState {
    /// Replicating, or waiting for its source.
    Normal,
    /// A failback was begun and has to be finished.
    FailingBack {
        /// Its plan, as JSON.
        plan: String,
    },
    /// The disks were handed over.
    FailedBack {
        /// Its report, as JSON.
        report: String,
    },
    /// They were, and the choice is final.
    Committed {
        /// The report, as JSON.
        report: String,
    },
}

impl RecoveryState {
    /// As the journal has it. A step of a later release is an unfinished failback: nothing is taken.
    pub fn of(journal: &Journal<impl Volume>) -> Self {
        match journal.recovery_state() {
            None => Self::Normal,
            Some(record) if record.step == FAILED_BACK => Self::FailedBack { report: record.text },
            Some(record) if record.step == COMMITTED => Self::Committed { report: record.text },
            Some(record) => Self::FailingBack { plan: record.text },
        }
    }

    /// Makes it durable, unless the point that it `needs` has gone; blocks.
    pub fn record(&self, journal: &Journal<impl Volume>, needs: Option<SetNumber>) -> JournalResult<()> {
        journal.set_recovery_state(self.to_record(), needs)
    }

    /// As the journal keeps it.
    pub fn to_record(&self) -> Option<RecoveryRecord> {
        match self {
            Self::Normal => None,
            Self::FailingBack { plan } => Some(RecoveryRecord { step: FAILING_BACK, text: plan.clone() }),
            Self::FailedBack { report } => Some(RecoveryRecord { step: FAILED_BACK, text: report.clone() }),
            Self::Committed { report } => Some(RecoveryRecord { step: COMMITTED, text: report.clone() }),
        }
    }
}
