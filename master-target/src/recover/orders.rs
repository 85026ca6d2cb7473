//! What operators want of a failback that runs: another point, its end, or to go on without the source.
//!
//! The driver looks at them between its steps and breaks long steps off for them. Before it records the disks as handed
//! over it closes them: what comes later is for the next job, and nothing is lost in between.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::steps::Choice;

/// Orders to one job.
#[derive(Debug)]
pub(super) struct Orders {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug)]
struct State {
    /// The newest choice.
    choice: Choice,
    /// It was not taken yet.
    is_new: bool,
    gives_up: bool,
    cancels: bool,
    may_cancel: bool,
    is_closed: bool,
}

/// Whether a job can be cancelled: not once its disks were handed over before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It can be given up.
    Back,
    /// It ends with a point.
    Forward,
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Taken {
    /// Another point.
    pub choice: Option<Choice>,
    /// Go on without the source.
    pub gives_up: bool,
    /// End.
    pub cancels: bool,
}

/// The job takes no more orders: it is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed;

impl Orders {
    pub fn new(choice: Choice, way: Way) -> Self {
        let may_cancel = way == Way::Back;
        let state = State { choice, is_new: false, gives_up: false, cancels: false, may_cancel, is_closed: false };
        Self { state: Mutex::new(state), news: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, order: impl FnOnce(&mut State)) -> Result<(), Closed> {
        let mut state = self.lock();
        if state.is_closed || state.cancels {
            return Err(Closed);
        }
        order(&mut state);
        drop(state);
        self.news.notify_one();
        Ok(())
    }

    /// Another point is wanted, or the same.
    pub fn choose(&self, choice: Choice) -> Result<(), Closed> {
        self.give(|state| {
            state.is_new |= state.choice != choice;
            state.choice = choice;
        })
    }

    /// The source is given up. Of no effect once the job is about to end.
    pub fn give_up(&self) {
        let _ = self.give(|state| state.gives_up = true);
    }

    /// The job is to end.
    pub fn cancel(&self) -> Result<(), Closed> {
        if !self.lock().may_cancel {
            return Err(Closed);
        }
        self.give(|state| state.cancels = true)
    }

    /// What a step is broken off for.
    pub fn break_off(&self) -> bool {
        let state = self.lock();
        state.is_new || state.cancels
    }

    /// Takes what is new.
    pub fn take(&self) -> Taken {
        let mut state = self.lock();
        let choice = std::mem::take(&mut state.is_new).then_some(state.choice);
        Taken { choice, gives_up: std::mem::take(&mut state.gives_up), cancels: state.cancels }
    }

    /// Takes no more orders. False where there are some to be taken first.
    pub fn close(&self) -> bool {
        let mut state = self.lock();
        if state.is_new || state.cancels {
            return false;
        }
        state.is_closed = true;
        true
    }

    /// Returns when something may be new.
    pub async fn news(&self) {
        self.news.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_taken_once_and_none_is_lost_at_the_end() {
        let orders = Orders::new(Choice::Latest, Way::Back);
        orders.choose(Choice::Latest).unwrap();
        assert_eq!((orders.break_off(), orders.take()), (false, Taken::default()), "the same point is no news");
        orders.choose(Choice::Point(3)).unwrap();
        orders.choose(Choice::Point(4)).unwrap();
        orders.give_up();
        assert!(orders.break_off() && !orders.close());
        let taken = Taken { choice: Some(Choice::Point(4)), gives_up: true, cancels: false };
        assert_eq!((orders.take(), orders.take()), (taken, Taken::default()));
        assert!(orders.close());
        assert_eq!((orders.choose(Choice::Latest), orders.cancel()), (Err(Closed), Err(Closed)));
    }

    #[test]
    fn nothing_is_chosen_after_a_cancellation() {
        let orders = Orders::new(Choice::Latest, Way::Back);
        orders.cancel().unwrap();
        assert_eq!(orders.choose(Choice::Point(1)), Err(Closed));
        assert!(orders.break_off() && !orders.close() && orders.take().cancels);
        let forward = Orders::new(Choice::Latest, Way::Forward);
        assert_eq!((forward.cancel(), forward.break_off(), forward.close()), (Err(Closed), false, true));
    }

    #[tokio::test]
    async fn an_order_given_before_anybody_waits_is_news() {
        let orders = Orders::new(Choice::Latest, Way::Back);
        orders.give_up();
        orders.news().await;
    }
}
