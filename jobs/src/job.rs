//! A job, as the work that it stands for has it: tells how far it is, and sees whether somebody wants it to end.

use std::sync::Arc;

use tokio::sync::watch;

use crate::record::Outcome;
use crate::table::Inner;

/// A running job. Dropped without an end it counts as interrupted: the agent stops.
pub struct Job {
    meter: Meter,
    is_over: bool,
}

/// Shows the progress of a job, from any thread.
#[derive(Clone)]
pub struct Meter {
    inner: Arc<Inner>,
    id: u64,
    asked: watch::Receiver<bool>,
}

impl Job {
    pub(crate) fn new(inner: Arc<Inner>, id: u64) -> Self {
        let asked = inner.asked(id);
        Self { meter: Meter { inner, id, asked }, is_over: false }
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.meter.id
    }

    /// What shows its progress.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// It has ended.
    pub fn finish(mut self, outcome: Outcome) {
        self.is_over = true;
        self.meter.inner.finish(self.meter.id, outcome);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.is_over {
            self.meter.inner.finish(self.meter.id, Outcome::Interrupted);
        }
    }
}

impl Meter {
    /// So much of a step is done; `total_bytes` 0: it has no measure.
    pub fn show(&self, step: &str, done_bytes: u64, total_bytes: u64) {
        self.inner.progress(self.id, |row, now| {
            if row.record.step != step {
                step.clone_into(&mut row.record.step);
                row.rate = crate::rate::Rate::default();
            }
            (row.record.done_bytes, row.record.total_bytes) = (done_bytes, total_bytes);
            row.rate.sample(now, done_bytes);
        });
    }

    /// Whether somebody asked the job to end.
    pub fn is_cancelled(&self) -> bool {
        *self.asked.borrow()
    }

    /// Returns when somebody asks the job to end.
    pub async fn cancelled(&mut self) {
        if self.asked.wait_for(|asked| *asked).await.is_err() {
            // The table is gone, and with it whoever could ask.
            std::future::pending::<()>().await;
        }
    }
}
