//! The table of an agent's jobs: begins them, keeps them, shows them, asks them to end.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::time::Timestamp;
use tokio::sync::watch;

use crate::job::Job;
use crate::rate::Rate;
use crate::record::{Cancel, Kind, Outcome, Record, State};
use crate::store::{JOBS_MAX, Kept, Store, TEXT_BYTES_MAX};

/// What time it is.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic.
    pub mono: Duration,
    /// By the wall.
    pub wall: Timestamp,
}

/// Reads the clocks of the agent.
pub type Clock = Box<dyn Fn() -> Now + Send + Sync>;

/// Why a job was not asked to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CancelError {
    /// There is no such job.
    Unknown,
    /// It has ended already.
    Ended(State),
    /// It can't be ended; the text says what to do instead.
    Refused(&'static str),
}

/// The jobs of an agent. Copies show the same.
#[derive(Clone)]
pub struct Table {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    store: Store,
    clock: Clock,
    rows: Mutex<Rows>,
    /// Counts changes.
    changes: watch::Sender<u64>,
}

struct Rows {
    next: u64,
    rows: Vec<Row>,
    /// The file could not be written; said once.
    is_unsaved: bool,
}

/// A job with what is known of it while it runs.
pub(crate) struct Row {
    pub record: Record,
    pub rate: Rate,
    pub cancel: Cancel,
    pub is_asked: watch::Sender<bool>,
}

impl Row {
    fn new(record: Record, cancel: Cancel) -> Self {
        Self { record, rate: Rate::default(), cancel, is_asked: watch::Sender::new(false) }
    }
}

impl Table {
    /// The table in a file. Jobs that an earlier life of the agent left running are interrupted.
    pub fn open(path: &Path, clock: Clock) -> Self {
        let store = Store::at(path);
        let Kept { next, jobs, .. } = store.load();
        let rows = jobs.into_iter().map(|record| Row::new(record, Cancel::Taken)).collect();
        let rows = Mutex::new(Rows { next, rows, is_unsaved: false });
        let inner = Inner { store, clock, rows, changes: watch::Sender::new(0) };
        let now = (inner.clock)();
        inner.change(|rows| {
            for row in rows.rows.iter_mut().filter(|row| row.record.state == State::Running) {
                row.record.state = State::Interrupted;
                row.record.ended_us = Some(now.wall.us());
            }
        });
        Self { inner: Arc::new(inner) }
    }

    /// Begins a job. Its row is durable when this returns, unless the state volume fails.
    pub fn begin(&self, kind: Kind, group: Option<&str>, cancel: Cancel) -> Job {
        let now = (self.inner.clock)();
        let id = self.inner.change(|rows| {
            let id = rows.next;
            rows.next += 1;
            let record = Record {
                id,
                group: group.map(str::to_owned),
                kind,
                state: State::Running,
                began_us: now.wall.us(),
                ended_us: None,
                error: None,
                result: None,
                step: String::new(),
                done_bytes: 0,
                total_bytes: 0,
            };
            rows.rows.push(Row::new(record, cancel));
            rows.forget_oldest();
            id
        });
        Job::new(self.inner.clone(), id)
    }

    /// Goes on with the newest job of a kind and group that was interrupted or has failed; begins one where none was.
    pub fn resume(&self, kind: Kind, group: Option<&str>, cancel: Cancel) -> Job {
        let resumed = self.inner.change(|rows| {
            let newest = rows.rows.iter_mut().rev();
            let mut newest = newest.filter(|row| row.record.kind == kind && row.record.group.as_deref() == group);
            let row = newest.next().filter(|row| matches!(row.record.state, State::Interrupted | State::Failed))?;
            row.record.state = State::Running;
            (row.record.ended_us, row.record.error) = (None, None);
            row.cancel = cancel;
            row.is_asked.send_replace(false);
            Some(row.record.id)
        });
        match resumed {
            Some(id) => Job::new(self.inner.clone(), id),
            None => self.begin(kind, group, cancel),
        }
    }

    /// All jobs, newest first.
    pub fn list(&self) -> Vec<proto::control::Job> {
        let now = (self.inner.clock)();
        self.inner.lock().rows.iter().rev().map(|row| shown(row, now)).collect()
    }

    /// One job.
    pub fn get(&self, id: u64) -> Option<proto::control::Job> {
        let now = (self.inner.clock)();
        self.inner.lock().rows.iter().find(|row| row.record.id == id).map(|row| shown(row, now))
    }

    /// Told of each change, of any job.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Asks a job to end; it does when it sees that.
    pub fn cancel(&self, id: u64) -> Result<(), CancelError> {
        let rows = self.inner.lock();
        let row = rows.rows.iter().find(|row| row.record.id == id).ok_or(CancelError::Unknown)?;
        if row.record.state != State::Running {
            return Err(CancelError::Ended(row.record.state));
        }
        match row.cancel {
            Cancel::Refused(why) => Err(CancelError::Refused(why)),
            Cancel::Taken => {
                row.is_asked.send_replace(true);
                Ok(())
            }
        }
    }
}

impl Rows {
    /// Keeps the bound, at the cost of the oldest that have ended.
    fn forget_oldest(&mut self) {
        while self.rows.len() > JOBS_MAX {
            let Some(oldest) = self.rows.iter().position(|row| row.record.state != State::Running) else { return };
            self.rows.remove(oldest);
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Rows> {
        // A row is changed as a whole: what a thread that panicked left is whole.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes rows and makes the change durable. It waits for the state volume: a job begins and ends rarely.
    fn change<T>(&self, change: impl FnOnce(&mut Rows) -> T) -> T {
        let mut rows = self.lock();
        let result = change(&mut rows);
        let kept = Kept::new(rows.next, rows.rows.iter().map(|row| row.record.clone()).collect());
        let saved = self.store.save(&kept);
        if let Err(what) = &saved
            && !rows.is_unsaved
        {
            tracing::warn!("the history of jobs can't be kept: {what}");
        }
        rows.is_unsaved = saved.is_err();
        drop(rows);
        self.changes.send_modify(|count| *count += 1);
        result
    }

    /// Shows progress; not kept before the job ends.
    pub(crate) fn progress(&self, id: u64, change: impl FnOnce(&mut Row, Duration)) {
        let now = (self.clock)().mono;
        let mut rows = self.lock();
        if let Some(row) = rows.rows.iter_mut().find(|row| row.record.id == id) {
            change(row, now);
        }
        drop(rows);
        self.changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn finish(&self, id: u64, outcome: Outcome) {
        let now = (self.clock)().wall;
        self.change(|rows| {
            let Some(row) = rows.rows.iter_mut().find(|row| row.record.id == id) else { return };
            let record = &mut row.record;
            record.ended_us = Some(now.us());
            record.state = match outcome {
                Outcome::Done(result) => {
                    record.result = Some(cut(result));
                    State::Done
                }
                Outcome::Failed(error) => {
                    record.error = Some(cut(error));
                    State::Failed
                }
                Outcome::Cancelled => State::Cancelled,
                Outcome::Interrupted => State::Interrupted,
            };
        });
    }

    pub(crate) fn asked(&self, id: u64) -> watch::Receiver<bool> {
        let rows = self.lock();
        let row = rows.rows.iter().find(|row| row.record.id == id);
        row.map_or_else(|| watch::channel(false).1, |row| row.is_asked.subscribe())
    }
}

fn cut(mut text: String) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}

fn shown(row: &Row, now: Now) -> proto::control::Job {
    let record = &row.record;
    let is_running = record.state == State::Running;
    let rate = row.rate.bytes_per_second(now.mono).filter(|_| is_running);
    let left = record.total_bytes.saturating_sub(record.done_bytes);
    let ended = record.ended_us.map(Timestamp);
    proto::control::Job {
        id: record.id,
        group: record.group.clone(),
        kind: record.kind.as_str().to_owned(),
        state: record.state.as_str().to_owned(),
        step: record.step.clone(),
        done_bytes: record.done_bytes,
        total_bytes: record.total_bytes,
        rate_bytes_per_second: rate,
        remaining_seconds: rate.filter(|rate| *rate > 0).map(|rate| left as f64 / rate as f64),
        error: record.error.clone(),
        result: record.result.clone(),
        began: Timestamp(record.began_us).to_string(),
        ended: ended.map(|ended| ended.to_string()),
        seconds: ended.unwrap_or(now.wall).since(Timestamp(record.began_us)).as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn table(path: &Path, seconds: &Arc<AtomicU64>) -> Table {
        let seconds = seconds.clone();
        Table::open(
            path,
            Box::new(move || {
                let now = Duration::from_secs(seconds.load(Ordering::Relaxed));
                Now { mono: now, wall: Timestamp(0).plus(now) }
            }),
        )
    }

    #[test]
    fn a_job_shows_progress_rate_and_estimate_and_then_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let seconds = Arc::new(AtomicU64::new(100));
        let table = table(&folder.path().join("jobs.json"), &seconds);
        let job = table.begin(Kind::Restore, Some("web"), Cancel::Taken);
        job.meter().show("copying", 0, 1000);
        seconds.store(102, Ordering::Relaxed);
        job.meter().show("copying", 200, 1000);
        let shown = table.get(job.id()).unwrap();
        assert_eq!(
            (shown.kind.as_str(), shown.state.as_str(), shown.group.as_deref()),
            ("restore", "running", Some("web"))
        );
        assert_eq!((shown.rate_bytes_per_second, shown.remaining_seconds), (Some(100), Some(8.0)));
        assert_eq!((shown.seconds, shown.ended.as_deref()), (2.0, None));
        let id = job.id();
        job.finish(Outcome::Failed("no room".into()));
        let shown = table.get(id).unwrap();
        assert_eq!((shown.state.as_str(), shown.error.as_deref()), ("failed", Some("no room")));
        assert_eq!((shown.rate_bytes_per_second, shown.ended.is_some()), (None, true));
    }

    #[test]
    fn history_outlives_the_agent_and_what_it_left_running_is_interrupted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.json");
        let seconds = Arc::new(AtomicU64::new(1));
        let first = table(&path, &seconds);
        first.begin(Kind::Scrub, None, Cancel::Taken).finish(Outcome::Done("no damage".into()));
        let running = first.begin(Kind::Failback, Some("web"), Cancel::Taken);
        // kill -9: nothing is said any more.
        std::mem::forget(running);
        let second = table(&path, &seconds);
        let jobs = second.list();
        assert_eq!(jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [2, 1]);
        assert_eq!((jobs[0].state.as_str(), jobs[1].state.as_str()), ("interrupted", "done"));
        assert_eq!(jobs[1].result.as_deref(), Some("no damage"));
        let resumed = second.resume(Kind::Failback, Some("web"), Cancel::Taken);
        assert_eq!((resumed.id(), second.get(2).unwrap().state.as_str()), (2, "running"));
        drop(resumed);
        assert_eq!(second.get(2).unwrap().state, "interrupted", "the agent stops");
        second.resume(Kind::Failback, Some("web"), Cancel::Taken).finish(Outcome::Cancelled);
        let anew = second.resume(Kind::Failback, Some("web"), Cancel::Taken);
        assert_eq!(anew.id(), 3, "one that has ended is not gone on with");
        assert_eq!(second.resume(Kind::Failback, Some("db"), Cancel::Taken).id(), 4);
    }

    #[test]
    fn the_history_is_bounded_and_a_running_job_is_never_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let table = table(&folder.path().join("jobs.json"), &Arc::default());
        let running = table.begin(Kind::Verify, Some("web"), Cancel::Taken);
        let filled = {
            let rows = table.inner.lock();
            let first = rows.rows[0].record.clone();
            (2..=JOBS_MAX as u64).map(|id| Record { id, state: State::Done, ..first.clone() }).collect::<Vec<_>>()
        };
        table.inner.change(|rows| {
            rows.next = JOBS_MAX as u64 + 1;
            rows.rows.extend(filled.into_iter().map(|record| Row::new(record, Cancel::Taken)));
        });
        for _ in 0..3 {
            table.begin(Kind::Scrub, None, Cancel::Taken).finish(Outcome::Failed("x".repeat(TEXT_BYTES_MAX * 2)));
        }
        let jobs = table.list();
        assert_eq!(jobs.len(), JOBS_MAX);
        assert_eq!(jobs.last().map(|job| job.id), Some(running.id()));
        assert_eq!(jobs[JOBS_MAX - 2].id, 5, "the oldest that have ended went");
        assert_eq!(jobs[0].error.as_ref().map(String::len), Some(TEXT_BYTES_MAX));
    }

    #[tokio::test]
    async fn a_job_is_asked_to_end_where_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let table = table(&folder.path().join("jobs.json"), &Arc::default());
        let job = table.begin(Kind::Verify, Some("web"), Cancel::Taken);
        assert!(!job.meter().is_cancelled());
        table.cancel(job.id()).unwrap();
        job.meter().clone().cancelled().await;
        assert!(job.meter().is_cancelled());
        let id = job.id();
        job.finish(Outcome::Cancelled);
        assert_eq!(table.cancel(id), Err(CancelError::Ended(State::Cancelled)));
        assert_eq!(table.cancel(99), Err(CancelError::Unknown));
        let sync = table.begin(Kind::Resync, Some("web"), Cancel::Refused("stop the agent"));
        assert_eq!(table.cancel(sync.id()), Err(CancelError::Refused("stop the agent")));
    }
}
